"""A step's forward passes: pictures to visual tokens, rows of new tokens to scores.

Legend: B rows, T new tokens, N views, L tokens of a view, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retinue.core.errors import MediaError
from retinue.model.connectors.base import reduce_items
from retinue.model.fusions.splice import Splice
from retinue.model.lm.fused import Twin, inference_twin
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan
from retinue.processor import Processor
from retinue.serve.adapters import Adapters
from retinue.serve.features import FeatureCache
from retinue.serve.led import recipe_of
from retinue.serve.mirror import Mirror
from retinue.serve.pool import Pool, StepCache
from retinue.serve.request import Running
from retinue.types import Batch, Cache, Features, Item, Visual, VisualTokens

STEADY = ("default", "linear", "llama3", "yarn")
"""Rope types under which keys depend on their own position alone."""
WASTE = 0.25
"""Share of padding up to which rows of different lengths go through the layers together."""

State = dict[int, tuple[Tensor, Tensor, Tensor]]


class ModelRunner:
    """The model, or its inference twin, over blocks of keys and values."""

    def __init__(
        self,
        model: Retinue,
        processor: Processor,
        *,
        pool: Pool,
        features: FeatureCache,
        adapters: Adapters,
    ) -> None:
        self.model, self.processor = model, processor
        self.runner: Any = inference_twin(model)
        self.pool, self.features, self.adapters = pool, features, adapters
        # the same blocks as the layers of transformers fill them, which adapters need
        self.layered = Pool(pool.slots // pool.size, size=pool.size)
        self.plan: Plan = model.plan
        self.encoded = 0
        self.mirrors: dict[str, Mirror] = {}

    @property
    def led(self) -> bool:
        """Whether other processes run the layers along with this one."""
        return hasattr(self.model.lm, "lead")

    @property
    def pieces(self) -> bool:
        """Whether a prompt may be read in pieces, and its keys be shared with others.

        Not where a fusion keeps more than keys and values, nor where keys depend on the length.
        """
        lm: Any = self.model.lm
        text = lm.config
        rope = getattr(text, "rope_parameters", None) or {}
        kinds = rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]
        steady = all(one.get("rope_type", "default") in STEADY for one in kinds)
        return type(self.model.fusion) is Splice and steady

    # ------------------------------------------------------------------ pictures

    def views(self, one: Running, start: int, stop: int) -> int:
        """Views of pictures in tokens start..stop that have yet to be encoded."""
        return sum(
            one.request.example.items[number].grid.num_views
            for number in self._items(one, start, stop)
            if number not in one.words and one.request.pictures[number].key not in self.features
        )

    def look(self, chosen: Sequence[tuple[Running, int]]) -> dict[str, Exception]:
        """Visual tokens for the next tokens of some requests: one pass of the encoders for all.

        Returns what went wrong, by the request's id: its picture is broken, say.
        """
        wrong: dict[str, Exception] = {}
        for name in dict.fromkeys(one.request.adapter for one, _ in chosen):
            self.adapters.activate(name)
            wrong |= self._look([share for share in chosen if share[0].request.adapter == name])
        return wrong

    def _look(self, chosen: Sequence[tuple[Running, int]]) -> dict[str, Exception]:
        """The same for requests of one adapter."""
        wrong: dict[str, Exception] = {}
        fresh: dict[bytes, Item] = {}
        wanted: list[tuple[Running, int]] = []
        known: dict[bytes, Features] = {}
        for one, count in chosen:
            for number in self._items(one, one.computed, one.computed + count):
                if number in one.words or one.id in wrong:
                    continue
                picture, item = one.request.pictures[number], one.request.example.items[number]
                wanted.append((one, number))
                if picture.key in known or picture.key in fresh:
                    continue
                found = self.features.get(picture.key)
                if found is not None:
                    known[picture.key] = found
                    continue
                try:
                    if not item.pixels:
                        item = self.processor.item(picture.media, where=picture.where)
                except MediaError as error:
                    wrong[one.id] = error
                    continue
                fresh[picture.key] = item
        known |= self._encode(fresh)
        for one, number in wanted:
            if one.id not in wrong:
                item = one.request.example.items[number]
                one.words[number] = self._words(item, known[one.request.pictures[number].key])
        return wrong

    def _items(self, one: Running, start: int, stop: int) -> list[int]:
        spans = one.request.example.spans
        return [s.item for s in spans if s.start < stop and start < s.start + s.length]

    def _encode(self, fresh: dict[bytes, Item]) -> dict[bytes, Features]:
        """Features of pictures, those with as many views and pixels in one pass."""
        groups: dict[tuple[Any, ...], list[bytes]] = {}
        for key, item in fresh.items():
            shapes = tuple((name, tuple(x.shape[1:])) for name, x in sorted(item.pixels.items()))
            groups.setdefault(shapes, []).append(key)
        found: dict[bytes, Features] = {}
        for keys in groups.values():
            items = [fresh[key] for key in keys]
            views = self.model.connector.encode(self.model.encode(_visual(items).to(self.device)))
            self.encoded += sum(item.grid.num_views for item in items)
            parts = views.x_NLD.split([item.grid.num_views for item in items])
            for key, part in zip(keys, parts, strict=True):
                found[key] = replace(views, x_NLD=part.clone())
                self.features.put(key, found[key])
        return found

    def _words(self, item: Item, features: Features) -> Tensor:
        """(tokens, D) visual tokens of one item at its budget."""
        budget = self.plan.spec.budget if item.budget is None else item.budget
        visual = replace(_visual([item], pixels=False), features=features)
        views = reduce_items(self.model.connector, features, visual=visual, budgets=[budget])
        words: VisualTokens = self.model.layout(views, [item.grid])
        assert words.lengths == [item.num_tokens], "processor and model count alike"
        return words.x_TD

    # ------------------------------------------------------------------ rows

    @property
    def device(self) -> torch.device:
        return self.model.device

    def groups(self, shares: Sequence[tuple[Running, int]]) -> list[list[tuple[Running, int]]]:
        """Rows that go through the layers together: of one adapter, alike enough in length."""
        found: list[list[tuple[Running, int]]] = []
        for one, count in sorted(shares, key=lambda share: (share[0].request.adapter, share[1])):
            if found and found[-1][0][0].request.adapter == one.request.adapter:
                rows = [*(n for _, n in found[-1]), count]
                if sum(rows) >= (1 - WASTE) * len(rows) * count and (count > 1) == (rows[0] > 1):
                    found[-1].append((one, count))
                    continue
            found.append([(one, count)])
        return found

    def run(self, shares: Sequence[tuple[Running, int]]) -> Tensor:
        """(B, V) scores after each row's new tokens; keys and values go into their blocks."""
        adapter = shares[0][0].request.adapter
        self.adapters.activate(adapter)
        runner = self.model if adapter else self.runner
        held, rows = self._held(shares, self.layered if adapter else self.pool)
        number = {id(one): count for one, count in shares}
        starts, counts = [one.computed for one in rows], [number[id(one)] for one in rows]
        cache = Cache(
            lm=held,
            segments_BS=held.past_BP if held.length else None,
            cross=_joined([one.state for one in rows]),
        )
        batch, words = self._batch(rows, starts, counts)
        batch, words = batch.to(self.device), None if words is None else words.to(self.device)
        x_BTD = self.model.lm.embed(batch.tokens)
        inputs = self.model.fusion(x_BTD, words, batch, cache=cache)
        twin = isinstance(runner, Twin)
        h_BTD = runner.hidden(inputs, held) if twin else self.model.lm(inputs, cache=cache)
        output = self.model.head(runner if twin else self.model.lm, h_BTD, batch, keep="last")
        for row, one in enumerate(rows):
            one.state = {k: (a[row], b[row], c[row]) for k, (a, b, c) in cache.cross.items()}
        logits_BV: Tensor = output.logits
        at = {id(one): row for row, one in enumerate(rows)}
        return logits_BV[[at[id(one)] for one, _ in shares]]

    def forget(self) -> None:
        """After a forward that failed, or when nobody decodes: gather anew next time."""
        self.mirrors.clear()

    def _held(
        self, shares: Sequence[tuple[Running, int]], pool: Pool
    ) -> tuple[StepCache, list[Running]]:
        """What rows see of the pool, and their order; rows that decode find it as they left it."""
        rows = [one for one, _ in shares]
        if all(count == 1 for _, count in shares):
            mirror = self.mirrors.setdefault(
                rows[0].request.adapter, Mirror(pool, device=self.device)
            )
            if self.led:
                mirror.recipe = recipe_of(shares, pool, mirror=mirror)
            return mirror, mirror.arrange(rows)
        held = StepCache(
            pool,
            tables=[one.table for one in rows],
            starts=[one.computed for one in rows],
            counts=[count for _, count in shares],
            device=self.device,
        )
        if self.led:
            held.recipe = recipe_of(shares, pool, mirror=None)
        return held, rows

    def _batch(
        self, rows: Sequence[Running], starts: Sequence[int], counts: Sequence[int]
    ) -> tuple[Batch, VisualTokens | None]:
        """Right-padded rows of new tokens, and the visual tokens among them."""
        B, T = len(rows), max(counts)
        tokens = torch.zeros(B, T, dtype=torch.long)
        positions, segments = torch.zeros_like(tokens), torch.zeros_like(tokens)
        spans: list[list[int]] = []
        index: list[Tensor] = []
        words: list[Tensor] = []
        for row, (one, start, count) in enumerate(zip(rows, starts, counts, strict=True)):
            stop = start + count
            tokens[row, :count] = torch.tensor(one.tokens[start:stop])
            positions[row, :count] = torch.arange(start, stop)
            segments[row, :count] = 1
            for span in sorted(one.request.example.spans, key=lambda span: span.start):
                first, last = max(span.start, start), min(span.start + span.length, stop)
                if first >= last:
                    continue
                spans.append([row, first - start, last - first])
                index.append(torch.arange(first, last) - start + row * T)
                own = one.words[span.item]
                if len(own) == span.length:  # one placeholder a token, of which some are new
                    own = own[first - span.start : last - span.start]
                words.append(own)
        visual = None
        if spans:
            visual = Visual(
                pixels={},
                grids=[],
                budgets=[],
                spans=torch.tensor(spans),
                index=torch.cat(index),
            )
        batch = Batch(
            ids=[one.id for one in rows],
            tokens=tokens,
            positions=positions,
            segments=segments,
            visual=visual,
        )
        if not words:
            return batch, None
        return batch, VisualTokens(x_TD=torch.cat(words), lengths=[len(part) for part in words])


def _visual(items: Sequence[Item], *, pixels: bool = True) -> Visual:
    """Pictures as the encoders take them; no sequence, no places."""
    names = list(items[0].pixels) if pixels else []
    return Visual(
        pixels={name: torch.cat([item.pixels[name] for item in items]) for name in names},
        grids=[item.grid for item in items],
        budgets=[item.budget for item in items],
        spans=torch.zeros(0, 3, dtype=torch.long),
        index=torch.zeros(0, dtype=torch.long),
    )


def _joined(states: Sequence[State]) -> State:
    """What fusions keep, of several rows: (L, ...) padded to the longest; {} where nobody has any.

    Rows without a state, beside others that have one, get an empty one.
    """
    keys = {key for state in states for key in state}
    found: State = {}
    for key in sorted(keys):
        like = next(state[key] for state in states if key in state)
        own = [state.get(key) or tuple(_empty(x) for x in like) for state in states]
        parts = [[_longest(rows) for rows in zip(*own, strict=True)]][0]
        found[key] = (parts[0], parts[1], parts[2])
    return found


def _empty(x: Tensor) -> Tensor:
    """What a row without media keeps: of (H, L, D) no L, of a number zero."""
    return x.new_zeros(x.shape[0], 0, x.shape[2]) if x.ndim == 3 else torch.zeros_like(x)


def _longest(rows: Sequence[Tensor]) -> Tensor:
    if rows[0].ndim != 3:
        return torch.stack(list(rows))
    most = max(row.shape[1] for row in rows)
    return torch.stack(
        [torch.nn.functional.pad(row, (0, 0, 0, most - row.shape[1])) for row in rows]
    )
