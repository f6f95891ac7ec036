"""Samples whose tokens a data file holds already -> Example."""

from __future__ import annotations

from collections.abc import Sequence

from retinue.core.errors import DataError
from retinue.types import Example, Item, Ready, Span


def example_of(sample: str, ready: Ready, items: Sequence[Item], *, id: int) -> Example:
    """The example of ready tokens: slots become placeholders `id`.

    Raises DataError, naming the sample, where slots and visual tokens differ in number.
    """
    if len(ready.slots) != len(items):
        raise DataError(f"{len(ready.slots)} places for {len(items)} pictures", where=sample)
    tokens = list(ready.tokens)
    spans = []
    for number, ((start, length), item) in enumerate(zip(ready.slots, items, strict=True)):
        if length != item.num_tokens:
            raise DataError(
                f"picture {number} has {length} places for {item.num_tokens} visual tokens",
                where=f"sample {sample}",
                rule="the data was prepared for as many as the model gives (num_patches)",
                fix="prepare it again with this model's number",
            )
        if start + length > len(tokens):
            raise DataError(
                f"picture {number} ends at {start + length}, after the {len(tokens)} tokens",
                where=f"sample {sample}",
            )
        tokens[start : start + length] = [id] * length
        spans.append(Span(start=start, length=length, item=number))
    return Example(
        id=sample,
        tokens=tokens,
        labels=list(ready.labels),
        spans=spans,
        items=list(items),
        weights=None if ready.weights is None else list(ready.weights),
    )
