"""Visual-token budgets of requests: what was asked for, and prompts at another budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retinue.core.errors import ConfigError
from retinue.decode.auto import AutoBudget, elastic_only, policy_for
from retinue.model.spec import Plan
from retinue.processor import Processor
from retinue.types import Example, Media, Message, Sample, Span

Budget = int | AutoBudget | None
"""Visual tokens per view, a policy that chooses them, or None: the model's default."""


def budget_of(
    plan: Plan,
    asked: int | str | AutoBudget | None,
    *,
    threshold: float | str | Path | None = None,
    folder: Path | None = None,
) -> Budget:
    """A request's budget from a number, `auto` or their text; None stays the default.

    threshold, folder: as in `policy_for`. Raises ConfigError for what is no budget of this model,
    naming the nearest that is.
    """
    if asked is None:
        return None
    if isinstance(asked, AutoBudget):
        elastic_only(plan, "auto")
        asked.check(plan)
        return asked
    if asked == "auto":
        return policy_for(plan, threshold=threshold, folder=folder)
    try:
        budget = int(asked)
    except ValueError:
        raise ConfigError(
            f"{asked!r} is no number of visual tokens",
            rule=f"a number or auto; this model has {', '.join(map(str, plan.budgets))}",
        ) from None
    if budget != plan.per_view().length:
        elastic_only(plan, budget)
    plan.per_view(budget)
    return budget


def with_budget(sample: Sample, budget: int | None) -> Sample:
    """The sample with this budget at every picture and video that names none itself."""
    if budget is None or all(media.budget is not None for media in sample.media):
        return sample
    return replace(
        sample, messages=tuple(_budgeted(message, budget) for message in sample.messages)
    )


def _budgeted(message: Message, budget: int) -> Message:
    parts = tuple(
        replace(part, budget=budget) if isinstance(part, Media) and part.budget is None else part
        for part in message.parts
    )
    return replace(message, parts=parts)


def at_budget(
    processor: Processor, example: Example, *, budget: int, free: Sequence[bool]
) -> Example:
    """A prompt's example with its pictures at another budget, those of them that are `free`.

    Raises DataError where it is then too long for the processor's limit.
    """
    items = [
        replace(item, budget=budget, num_tokens=processor.plan.tokens_for(item.grid, budget))
        if own
        else item
        for item, own in zip(example.items, free, strict=True)
    ]
    tokens: list[int] = []
    labels: list[int] = []
    spans: list[Span] = []
    at = 0
    for span in sorted(example.spans, key=lambda span: span.start):
        length = processor.plan.spec.fusion.num_placeholders(items[span.item].num_tokens)
        tokens += example.tokens[at : span.start]
        labels += example.labels[at : span.start]
        spans.append(Span(start=len(tokens), length=length, item=span.item))
        tokens += [processor.image_id] * length
        labels += example.labels[span.start : span.start + 1] * length
        at = span.start + span.length
    made = Example(
        id=example.id,
        tokens=tokens + example.tokens[at:],
        labels=labels + example.labels[at:],
        spans=spans,
        items=items,
    )
    return processor.truncate(made)


def visual_tokens(example: Example) -> int:
    """Visual tokens of all pictures of an example."""
    return sum(example.items[span.item].num_tokens for span in example.spans)
