"""A processor of words for tests of the data package: one token per word, pictures by header."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from retinue.core.errors import DataError, MediaError
from retinue.types import IGNORE, Batch, Example, Grid, Item, Media, Sample, Span, Visual

SIDE = 4


class WordTokenizer:
    """One id per word; `decode` gives the words back."""

    def __init__(self) -> None:
        self.seen: dict[int, str] = {}

    def id(self, word: str) -> int:
        """A number that depends on the letters alone, so that processes agree."""
        value = 1 + sum(ord(letter) * (31**k % 997) for k, letter in enumerate(word)) % 9973
        self.seen[value] = word
        return value

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return " ".join(self.seen.get(i, "<image>") for i in ids)

    def token_of(self, id: int) -> str:
        return self.seen.get(id, "<image>")


class FakeProcessor:
    """The Processor's API on word tokens; a picture is `tokens_per_image` placeholders."""

    def __init__(self, *, tokens_per_image: int = 3) -> None:
        self.tokens_per_image = tokens_per_image
        self.tokenizer = WordTokenizer()

    def unfold(self, sample: Sample, *, pixels: bool = True) -> Sample:
        return sample

    def example(self, sample: Sample, *, train: bool = False, pixels: bool = True) -> Example:
        tokens: list[int] = []
        labels: list[int] = []
        spans: list[Span] = []
        items: list[Item] = []
        for message in sample.messages:
            for part in message.parts:
                if isinstance(part, Media):
                    spans.append(
                        Span(start=len(tokens), length=self.tokens_per_image, item=len(items))
                    )
                    items.append(self._item(part, pixels=pixels, sample=sample))
                    ids = [0] * self.tokens_per_image
                    trained = False
                else:
                    ids = [self.tokenizer.id(word) for word in part.text.split()]
                    trained = message.role == "assistant"
                tokens += ids
                labels += ids if trained else [IGNORE] * len(ids)
        example = Example(id=sample.id, tokens=tokens, labels=labels, spans=spans, items=items)
        if train and not example.num_supervised:
            raise DataError("no target", where=f"sample {sample.id!r}")
        return example

    def fingerprint(self) -> str:
        return f"fake-{self.tokens_per_image}"

    def length(self, sample: Sample) -> tuple[int, int]:
        example = self.example(sample, pixels=False)
        return len(example.tokens), len(example.items)

    def collate(
        self,
        examples: Sequence[Example],
        *,
        train: bool = False,
        packed: bool = False,
        pad_side: str = "right",
    ) -> Batch:
        rows = [(one.tokens, one.labels) for one in examples]
        width = max(len(tokens) for tokens, _ in rows)
        if packed:
            tokens = torch.tensor([[t for row, _ in rows for t in row]])
            labels = torch.tensor([[t for _, row in rows for t in row]])
            segments = torch.tensor([[k + 1 for k, (row, _) in enumerate(rows) for _ in row]])
        else:
            pad = [width - len(row) for row, _ in rows]
            tokens = torch.tensor([row + [0] * n for (row, _), n in zip(rows, pad, strict=True)])
            labels = torch.tensor(
                [row + [IGNORE] * n for (_, row), n in zip(rows, pad, strict=True)]
            )
            segments = torch.tensor(
                [[1] * len(row) + [0] * n for (row, _), n in zip(rows, pad, strict=True)]
            )
        items = [item for one in examples for item in one.items]
        visual = None
        if items:
            visual = Visual(
                pixels={"rgb": torch.cat([item.pixels["rgb"] for item in items])},
                grids=[item.grid for item in items],
                budgets=[None] * len(items),
                spans=torch.zeros(len(items), 3, dtype=torch.int64),
                index=torch.zeros(0, dtype=torch.int64),
            )
        return Batch(
            ids=[one.id for one in examples],
            tokens=tokens,
            positions=torch.zeros_like(tokens),
            segments=segments,
            labels=labels if train else None,
            visual=visual,
        )

    def _item(self, part: Media, *, pixels: bool, sample: Sample) -> Item:
        where = f"sample {sample.id!r}: {part.name}"
        held = isinstance(part.source, bytes)
        path = io.BytesIO(part.source) if held else Path(str(part.source))
        if not held and not path.exists():
            raise MediaError("there is no such image", where=where)
        try:
            with Image.open(path) as image:
                size = (image.height, image.width)
                tensors = {}
                if pixels:
                    raw = bytearray(image.convert("RGB").resize((SIDE, SIDE)).tobytes())
                    flat = torch.frombuffer(raw, dtype=torch.uint8)
                    tensors = {"rgb": flat.reshape(1, SIDE, SIDE, 3).permute(0, 3, 1, 2)}
        except OSError as error:
            raise MediaError(f"the image is broken: {error}", where=where) from None
        return Item(pixels=tensors, grid=Grid(size=size), num_tokens=self.tokens_per_image)
