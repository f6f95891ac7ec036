"""Counts of what the server did, as Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from retinue.serve.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How many values were at most so large."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.sum += value
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), -1)
        self.counts[place] += 1

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            mark = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{name}_bucket{{le="{mark}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """What routes count; figures of the engine are read when asked for."""

    def __init__(self) -> None:
        self.replies: Counter[tuple[str, int]] = Counter()
        self.budgets: Counter[int] = Counter()
        self.cancelled = 0
        self.first, self.gap, self.whole = Histogram(), Histogram(), Histogram()

    def page(self, engine: Engine) -> str:
        """The whole page."""
        lines: list[str] = []

        def put(name: str, kind: str, what: str, *rows: str) -> None:
            full = f"retinue_{name}"
            lines.extend([f"# HELP {full} {what}", f"# TYPE {full} {kind}"])
            lines.extend(row.replace("NAME", full) for row in rows)

        scheduler, features, blocks = engine.scheduler, engine.features, engine.blocks
        waiting, running = len(scheduler.waiting), len(scheduler.running)
        put("requests_waiting", "gauge", "Requests in the queue.", f"NAME {waiting}")
        put("requests_running", "gauge", "Requests being computed.", f"NAME {running}")
        rows = [
            f'NAME{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.replies.items())
        ]
        put("replies_total", "counter", "Replies by route and status.", *rows)
        put("cancelled_total", "counter", "Calls that ended early.", f"NAME {self.cancelled}")
        used = [f'NAME{{visual_tokens="{b}"}} {n}' for b, n in sorted(self.budgets.items())]
        put("pictures_total", "counter", "Pictures by visual tokens per view.", *used)
        for name, value, what in (
            ("prompt_tokens", engine.prompt_tokens, "Tokens of prompts."),
            ("cached_tokens", engine.cached_tokens, "Prompt tokens found in the block cache."),
            ("generated_tokens", engine.new_tokens, "Tokens of answers."),
            ("encoded_views", engine.runner.encoded, "Views that passed the encoders."),
            ("feature_hits", features.hits, "Pictures found in the feature cache."),
            ("feature_misses", features.misses, "Pictures not found there."),
            ("preemptions", scheduler.preemptions, "Requests sent back to the queue."),
            ("steps", engine.steps, "Steps of the engine."),
        ):
            put(f"{name}_total", "counter", what, f"NAME {value}")
        put("feature_bytes", "gauge", "Memory of the feature cache.", f"NAME {features.bytes}")
        put("blocks", "gauge", "Blocks of keys and values.", f"NAME {blocks.usable}")
        put("blocks_free", "gauge", "Blocks without a user.", f"NAME {blocks.free}")
        for histogram, name, what in (
            (self.first, "first_token_seconds", "From request to first token."),
            (self.gap, "next_token_seconds", "From one token of an answer to the next."),
            (self.whole, "reply_seconds", "From request to the end of the reply."),
        ):
            full = f"retinue_{name}"
            put(name, "histogram", what, *histogram.lines(full))
        return "\n".join(lines) + "\n"
