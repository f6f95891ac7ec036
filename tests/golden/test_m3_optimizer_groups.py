"""AdamW groups of LLaVA and M3: order of groups, order of names, rates and decay, exact."""

from __future__ import annotations

import json
import re
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cases import cases, compared

from retinue.train.optim import OptimSpec, Param, group_parameters

pytestmark = pytest.mark.golden

CASES = cases("m3-llava", "*optimizer*", having="groups.json")
OWN_RATES = {"mm_projector": "mm_projector_lr", "vision_tower": "mm_vision_tower_lr"}
"""Part of a name -> the setting with its rate, in the order in which the originals ask."""


def model_order(settings: list[dict[str, Any]]) -> list[str]:
    """An order of all names that agrees with every list; the groups are cut from it anew."""
    graph: dict[str, set[str]] = {}
    for setting in settings:
        for group in setting["groups"]:
            for name in group["params"]:
                graph.setdefault(name, set())
            for before, after in pairwise(group["params"]):
                graph[after].add(before)
    return list(TopologicalSorter(graph).static_order())


def owner(name: str) -> str:
    """Class of the module that holds a parameter, in the original's model."""
    if re.search(r"layer_?norm|layrnorm|\bnorm\b", name):
        return "LayerNorm" if "vision_model" in name else "LlamaRMSNorm"
    return "Embedding" if "embed" in name else "Linear"


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_groups_are_the_originals(case: Path) -> None:
    settings = json.loads((case / "groups.json").read_text())
    names = model_order(settings)
    for setting in settings:
        base = OptimSpec(lr=setting["groups"][0]["lr"], weight_decay=setting["weight_decay"])
        own = {
            rule: setting[key]
            for rule, key in enumerate(OWN_RATES.values())
            if setting.get(key) is not None
        }
        params = [
            Param(
                name=name,
                module=owner(name),
                dims=1,
                rule=next(
                    (r for r, part in enumerate(OWN_RATES) if r in own and part in name), None
                ),
            )
            for name in names
        ]
        groups = group_parameters(
            params, lr=base.lr, weight_decay=base.weight_decay, decay="llava", own=own
        )
        assert [(g.lr, g.weight_decay, g.names) for g in groups] == [
            (g["lr"], g["weight_decay"], g["params"]) for g in setting["groups"]
        ], setting["impl"]
        for group in setting["groups"]:
            assert (list(base.betas), base.eps) == (group["betas"], group["eps"])
        compared(case)
