"""Schedules and optimizer groups."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import get_scheduler

from retinue.core.errors import ConfigError
from retinue.model.freeze import FullRule, apply_rules
from retinue.train.optim import OptimSpec, make_optimizer, set_rates
from retinue.train.schedule import ScheduleSpec, factor
from tiny_train import tiny_model


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.25, 3), (4, 4)])
def test_schedules_equal_transformers(kind: str, warmup: float, steps: int) -> None:
    total = 10
    spec = ScheduleSpec.parse({"kind": kind, "warmup": warmup})
    assert spec.warmup_steps(total) == steps
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=steps, num_training_steps=total)
    for step in range(total + 1):
        assert factor(step, spec=spec, total=total) == pytest.approx(theirs.get_last_lr()[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
            theirs.step()


def test_floor_and_bad_warmup() -> None:
    spec = ScheduleSpec(kind="cosine", floor=0.1)
    assert factor(10, spec=spec, total=10) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="whole number"):
        ScheduleSpec.parse({"warmup": 1.5})


def test_groups_of_a_model() -> None:
    model = tiny_model()
    rules = {"lm.**": "full", "connector.**": FullRule.parse({"full": {"lr": "x2"}})}
    table = apply_rules(model, rules, lr=1e-3)  # type: ignore[arg-type]
    spec = OptimSpec(lr=1e-3, weight_decay=0.1)
    optimizer, groups = make_optimizer(model, table, spec=spec)
    assert [(g.lr, g.weight_decay) for g in groups] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
        (2e-3, 0.1),
        (2e-3, 0.0),
    ]
    assert sorted(name for g in groups for name in g.names) == sorted(table.names)
    assert all(name.startswith("connector.") for g in groups[2:] for name in g.names)
    assert all("norm" in name for name in groups[1].names)
    set_rates(optimizer, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [5e-4, 5e-4, 1e-3, 1e-3]


def test_unknown_decay_rule() -> None:
    with pytest.raises(ConfigError, match="known: matrices, llava"):
        OptimSpec.parse({"lr": 1e-3, "decay": "lava"})
