"""A loaded model given an elastic connector, its weights kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from retinue.model.connectors.base import build
from retinue.model.spec import Plan

if TYPE_CHECKING:
    from retinue.model.retinue import Retinue


def make_elastic(
    model: Retinue, *, scales: Sequence[int], rounding: Literal["exact", "original"] | None = None
) -> Plan:
    """Wrap the model's connector in kind: elastic, in place; returns the new plan.

    scales: tokens per view to train with; empty = all that the grid can meet. rounding: as in the
    connector, None = as it is. A connector that is elastic at its root only gets the new scales.
    The projector's weights stay, one level deeper (`connector.of`). Raises ConfigError for scales
    that the grid cannot meet; the model is then as it was.
    """
    config = model.config
    before = config.spec
    node = dict(before["connector"])
    wrapped = node["kind"] == "elastic"
    if not wrapped:
        node = {"kind": "elastic", "of": node}
    node["scales"] = list(scales)
    if rounding is not None:
        node["rounding"] = rounding
    config.spec = {**before, "connector": node}
    try:
        plan = Plan(config)
        with torch.device("meta"):
            made = build(plan.spec.connector, plan.shapes, plan.lm_width)
    except Exception:
        config.spec = before
        raise
    old = model.connector
    made.of = old.of if wrapped else old
    model.connector, model.plan = made.train(old.training), plan
    return plan
