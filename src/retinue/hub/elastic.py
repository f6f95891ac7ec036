"""A loaded model made elastic: its connector pooled to budgets, its weights untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import Connector
from retinue.model.connectors.elastic import Elastic
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan
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
    Raises ConfigError for a connector without a grid, or scales that it cannot meet.
    """
    old = model.plan.spec.connector
    if old.elastic and old.kind != "elastic":
        raise ConfigError(
            f"a connector {old.kind!r} that is elastic inside",
            where="model.connector",
            rule="it pools before its projection, where its own fields decide",
            fix="change them in its config",
        )
    changes: dict[str, Any] = {} if scales is None else {"scales": sorted(set(scales))}
    changes |= {} if rounding is None else {"rounding": rounding}
    node = old.model_dump(mode="json") if old.elastic else {"kind": "elastic", "of": dump(old)}
    before = dict(model.config.spec)
    model.config.spec = {**before, "connector": {**node, **changes}}
    if budget is not None:
        model.config.spec["budget"] = budget
    try:
        plan = Plan(model.config)
        plan.per_view()
    except ConfigError:
        model.config.spec = before
        raise
    inner = model.connector.of if old.elastic else model.connector
    assert isinstance(inner, Connector)
    model.connector = wrapped(inner, plan)
    model.plan = processor.plan = plan


def dump(spec: Any) -> dict[str, Any]:
    """A connector node as plain data."""
    data: dict[str, Any] = spec.model_dump(mode="json")
    return data


def wrapped(inner: Connector, plan: Plan) -> Elastic:
    """An elastic node around a connector that has its weights already."""
    node = Elastic.__new__(Elastic)
    nn.Module.__init__(node)
    node.spec, node.of = plan.spec.connector, inner  # type: ignore[assignment]
    return node.train(inner.training)
