"""A tiny model, hand-made batches and a loader over them, for tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from retinue.model.build import build_model
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.types import IGNORE, Batch, Grid, Visual

VOCAB, SIDE, PATCH = 40, 8, 4
VISUAL_TOKENS = (SIDE // PATCH) ** 2
IMAGE = VOCAB


def tiny_config(layers: int = 2) -> RetinueConfig:
    return RetinueConfig(
        text_config=LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        ),
        encoders={
            "clip": CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=12,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=SIDE,
                patch_size=PATCH,
            )
        },
        spec={
            "encoders": {"clip": {"kind": "clip"}},
            "connector": {
                "kind": "mlp",
                "depth": 2,
                "of": {"kind": "take", "encoder": "clip", "layer": -2, "prefix": False},
            },
            "image_token_id": IMAGE,
        },
    )


def tiny_model(seed: int = 0) -> Retinue:
    return build_model(tiny_config(), seed=seed)


def tiny_batch(seed: int, *, rows: int = 1, length: int = 12, images: bool = True) -> Batch:
    """`rows` sequences; with images the first tokens of each stand for one picture."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB, (rows, length), generator=generator)
    labels = torch.full_like(tokens, IGNORE)
    start = VISUAL_TOKENS + 1 if images else 1
    for row in range(rows):
        first = int(torch.randint(start, length - 2, (1,), generator=generator))
        labels[row, first:-1] = tokens[row, first + 1 :]
    visual = None
    if images:
        tokens[:, :VISUAL_TOKENS] = IMAGE
        index = torch.arange(rows)[:, None] * length + torch.arange(VISUAL_TOKENS)
        visual = Visual(
            pixels={
                "rgb": torch.randint(
                    0, 256, (rows, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8
                )
            },
            grids=[Grid(size=(SIDE, SIDE))] * rows,
            budgets=[None] * rows,
            spans=torch.tensor([[row, 0, VISUAL_TOKENS] for row in range(rows)]),
            index=index.flatten(),
        )
    return Batch(
        ids=[f"{seed}-{row}" for row in range(rows)],
        tokens=tokens,
        positions=torch.arange(length).expand(rows, length),
        segments=torch.ones_like(tokens),
        labels=labels,
        supervised=(labels.flatten() != IGNORE).nonzero().flatten(),
        visual=visual,
    )


def joined(batches: list[Batch]) -> Batch:
    """Batches of one shape, all with pictures, as one batch."""
    visuals = [batch.visual for batch in batches]
    length = batches[0].tokens.shape[1]
    offsets = [sum(len(b.tokens) for b in batches[:n]) for n in range(len(batches))]
    return Batch(
        ids=[i for batch in batches for i in batch.ids],
        tokens=torch.cat([b.tokens for b in batches]),
        positions=torch.cat([b.positions for b in batches]),
        segments=torch.cat([b.segments for b in batches]),
        labels=torch.cat([b.labels for b in batches]),  # type: ignore[misc]
        supervised=torch.cat(
            [b.supervised + n * length for b, n in zip(batches, offsets, strict=True)]  # type: ignore[operator]
        ),
        visual=Visual(
            pixels={"rgb": torch.cat([v.pixels["rgb"] for v in visuals])},  # type: ignore[union-attr]
            grids=[g for v in visuals for g in v.grids],  # type: ignore[union-attr]
            budgets=[b for v in visuals for b in v.budgets],  # type: ignore[union-attr]
            spans=torch.cat(
                [
                    v.spans + torch.tensor([n, 0, 0])  # type: ignore[union-attr]
                    for v, n in zip(visuals, offsets, strict=True)
                ]
            ),
            index=torch.cat(
                [v.index + n * length for v, n in zip(visuals, offsets, strict=True)]  # type: ignore[union-attr]
            ),
        ),
    )


class TinyLoader:
    """Steps of `micro` batches, each a pure function of its number; `images(step)` says which."""

    def __init__(self, *, micro: int = 2, images: Any = lambda step: True, rows: int = 1) -> None:
        self.micro, self.images, self.rows = micro, images, rows
        self.skipped: list[Any] = []
        self._step = 0

    def seek(self, step: int) -> None:
        self._step = step

    def state(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seek(state["step"])

    def steps(self, stop: int | None = None) -> Iterator[tuple[int, list[Batch]]]:
        step = self._step
        while stop is None or step < stop:
            batches = [
                tiny_batch(100 * step + m, rows=self.rows, images=bool(self.images(step)))
                for m in range(self.micro)
            ]
            self._step = step + 1
            yield step, batches
            step += 1
