"""Shortening an example to a token limit without ever cutting a picture's placeholders in two."""

from __future__ import annotations

from dataclasses import replace

from retinue.core.errors import DataError
from retinue.types import Example


def truncate(example: Example, *, max_tokens: int) -> Example:
    """The first max_tokens tokens, or fewer: a picture that does not fit ends the example.

    Raises DataError (naming the sample) where no supervised token is left.
    """
    if len(example.tokens) <= max_tokens:
        return example
    end = max_tokens
    while crossing := [s.item for s in example.spans if s.start < end < s.start + s.length]:
        end = min(s.start for s in example.spans if s.item in crossing)
    kept = [s for s in example.spans if s.start + s.length <= end]
    cut_items = {s.item for s in example.spans} - {s.item for s in kept}
    number: dict[int, int] = {}
    for i in range(len(example.items)):
        if i not in cut_items:
            number[i] = len(number)
    short = replace(
        example,
        tokens=example.tokens[:end],
        labels=example.labels[:end],
        spans=[replace(s, item=number[s.item]) for s in kept],
        items=[item for i, item in enumerate(example.items) if i in number],
        positions=None if example.positions is None else example.positions[:end],
        weights=None if example.weights is None else example.weights[:end],
    )
    if not short.tokens or (example.num_supervised and not short.num_supervised):
        raise DataError(
            f"truncation to {max_tokens} of {len(example.tokens)} tokens leaves no target",
            where=f"sample {example.id!r}",
            rule="a training sample needs one supervised token",
            fix="raise max_tokens, or set overlong to skip",
        )
    return short
