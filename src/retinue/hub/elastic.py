"""A loaded model and its processor made elastic together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from retinue.core.errors import ConfigError
from retinue.model import nest
from retinue.model.retinue import Retinue
from retinue.processor import Processor


def make_elastic(
    model: Retinue,
    processor: Processor,
    *,
    scales: Sequence[int] | None = None,
    rounding: Literal["exact", "original"] | None = None,
    budget: int | None = None,
) -> None:
    """Let a model answer with fewer visual tokens, in place; its weights and full answers stay.

    scales: budgets per view that it is (to be) trained with, empty = all that the grid can meet;
    rounding: as in kind: elastic; budget: the default of requests that name none. Of a model that
    is elastic already, what is given changes. The model pools after its projector, as M3 does; for
    answers as good as M3's it must be trained so.
    Raises ConfigError for a connector without a grid, or scales or a budget that it cannot meet.
    """
    spec = model.plan.spec
    if spec.connector.elastic and spec.connector.kind != "elastic":
        raise ConfigError(
            f"a connector {spec.connector.kind!r} that is elastic inside",
            where="model.connector",
            rule="it pools before its projection, where its own fields decide",
            fix="change them in its config",
        )
    if scales is None:
        scales = getattr(spec.connector, "scales", [])
    before = model.config.spec
    if budget is not None:
        model.config.spec = {**before, "budget": budget}
    try:
        plan = nest.make_elastic(model, scales=sorted(set(scales)), rounding=rounding)
    except ConfigError:
        model.config.spec = before
        raise
    processor.plan = plan
