"""Counts of what the server did, as Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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

    def lines(self, model: str) -> Iterator[str]:
        """Rows of one model; `NAME` stands for the metric's."""
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            mark = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f"NAME_bucket{labels(model, le=mark)} {total}"
        yield f"NAME_sum{labels(model)} {self.sum:.6f}"
        yield f"NAME_count{labels(model)} {total}"


class Metrics:
    """What routes count of one model; figures of its engine are read when asked for."""

    def __init__(self) -> None:
        self.budgets: Counter[int] = Counter()
        self.cancelled = self.shrunk = 0
        self.first, self.gap, self.whole = Histogram(), Histogram(), Histogram()


class Page:
    """The whole page: every metric once, with a row for each model."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def put(self, name: str, kind: str, what: str, rows: Iterable[str]) -> None:
        """A metric; `NAME` in its rows stands for its full name."""
        full = f"retinue_{name}"
        self.found += [f"# HELP {full} {what}", f"# TYPE {full} {kind}"]
        self.found += [row.replace("NAME", full, 1) for row in rows]

    @property
    def text(self) -> str:
        return "\n".join(self.found) + "\n"


def page(
    models: Mapping[str, tuple[Metrics, Engine]], replies: Mapping[tuple[str, int], int]
) -> str:
    """Prometheus' page. replies: their number by route and status, whatever the model."""
    made = Page()
    rows = [
        f'NAME{{route="{route}",status="{status}"}} {count}'
        for (route, status), count in sorted(replies.items())
    ]
    made.put("replies_total", "counter", "Replies by route and status.", rows)
    for name, kind, what, value in FIGURES:
        rows = [
            f"NAME{labels(model)} {value(metrics, engine)}"
            for model, (metrics, engine) in models.items()
        ]
        made.put(name, kind, what, rows)
    rows = [
        f"NAME{labels(model, visual_tokens=budget)} {count}"
        for model, (metrics, _) in models.items()
        for budget, count in sorted(metrics.budgets.items())
    ]
    made.put("pictures_total", "counter", "Pictures by visual tokens per view.", rows)
    for name, what in HISTOGRAMS.items():
        rows = [
            line
            for model, (metrics, _) in models.items()
            for line in getattr(metrics, name).lines(model)
        ]
        made.put(SECONDS_OF[name], "histogram", what, rows)
    return made.text


def labels(model: str, **more: object) -> str:
    """{model="...", ...}, quoted as Prometheus wants it."""
    quoted = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return "{" + ",".join([f'model="{quoted}"', *(f'{k}="{v}"' for k, v in more.items())]) + "}"


Figure = Callable[[Metrics, Engine], float]
FIGURES: tuple[tuple[str, str, str, Figure], ...] = (
    ("requests_waiting", "gauge", "Requests in the queue.", lambda m, e: len(e.scheduler.waiting)),
    ("requests_running", "gauge", "Requests being run.", lambda m, e: len(e.scheduler.running)),
    ("cancelled_total", "counter", "Calls that ended early.", lambda m, e: m.cancelled),
    ("shrunk_total", "counter", "Calls with fewer visual tokens.", lambda m, e: m.shrunk),
    ("prompt_tokens_total", "counter", "Tokens of prompts.", lambda m, e: e.prompt_tokens),
    ("cached_tokens_total", "counter", "Those found in blocks.", lambda m, e: e.cached_tokens),
    ("generated_tokens_total", "counter", "Tokens of answers.", lambda m, e: e.new_tokens),
    ("encoded_views_total", "counter", "Views encoded.", lambda m, e: e.runner.encoded),
    ("feature_hits_total", "counter", "Pictures found encoded.", lambda m, e: e.features.hits),
    ("feature_misses_total", "counter", "Pictures not so.", lambda m, e: e.features.misses),
    ("preemptions_total", "counter", "Sent back to wait.", lambda m, e: e.scheduler.preemptions),
    ("steps_total", "counter", "Steps of the engine.", lambda m, e: e.steps),
    ("feature_bytes", "gauge", "Memory of encoded pictures.", lambda m, e: e.features.bytes),
    ("blocks", "gauge", "Blocks of keys and values.", lambda m, e: e.blocks.usable),
    ("blocks_free", "gauge", "Blocks without a user.", lambda m, e: e.blocks.free),
    ("adapters", "gauge", "Adapters loaded.", lambda m, e: len(e.adapters.held)),
)
SECONDS_OF = {
    "first": "first_token_seconds",
    "gap": "next_token_seconds",
    "whole": "reply_seconds",
}
HISTOGRAMS = {
    "first": "From request to first token.",
    "gap": "From one token of an answer to the next.",
    "whole": "From request to the end of the reply.",
}
