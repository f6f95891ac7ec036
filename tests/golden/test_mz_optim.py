"""Cerebras' AdamW, schedules and lists of them, and freezing by regular expressions."""

import json
import math

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from test_mz_models import SYSTEM
from torch import nn

from retinue.core.errors import ConfigError
from retinue.model.freeze_regex import frozen_by, rules_of
from retinue.train.adamw_plain_eps import AdamWPlainEps
from retinue.train.rates import RatePart
from retinue.train.schedule import ScheduleSpec, factor

CASES = cases(SYSTEM, "optim_*")
TOLERANCE = 1e-6  # stated by the case


def facts_of(case):
    return json.loads((case / "expected.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_adamw(case):
    facts, tensors = facts_of(case)["adamw"], load_file(case / "adamw.safetensors")
    assert facts.pop("correct_bias")
    names = sorted(key.removesuffix("_init") for key in tensors if key.endswith("_init"))
    parameters = [nn.Parameter(tensors[f"{name}_init"].clone()) for name in names]
    facts["betas"] = tuple(facts["betas"])
    optimizer = AdamWPlainEps(parameters, **facts)
    steps = sum(key.startswith(f"{names[0].replace('p', 'g')}_") for key in tensors)
    assert steps
    for step in range(steps):
        for name, parameter in zip(names, parameters, strict=True):
            parameter.grad = tensors[f"{name.replace('p', 'g')}_{step}"]
        optimizer.step()
        for name, parameter in zip(names, parameters, strict=True):
            expected = tensors[f"{name}_{step}"]
            torch.testing.assert_close(parameter.data, expected, atol=TOLERANCE, rtol=0)
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_list(case):
    facts = facts_of(case)["phase1_schedule"]
    (a, b, n), (c, d, m) = facts["linear"], facts["cosine"]
    top = max(b, c)
    parts = (
        RatePart(kind="linear", start=a / top, end=b / top, steps=n),
        RatePart(kind="cosine", start=c / top, end=d / top, steps=m),
    )
    assert facts["milestones"] == [n]
    spec = ScheduleSpec(kind="list", parts=parts)
    for step, rate in zip(facts["steps"], facts["lr"], strict=True):
        assert top * factor(step, spec=spec, total=1) == pytest.approx(rate, abs=TOLERANCE)


def fitted(name, rates):
    """The scheduler behind recorded rates: its shape is the class's, its numbers the rates'."""
    first, last = rates[0], rates[-1]
    reached = next(i for i, rate in enumerate(rates) if math.isclose(rate, last, rel_tol=1e-5))
    if name == "ConstantLR":
        return RatePart(kind="constant", start=first)
    if name == "PolynomialLR":
        power = math.log((rates[1] - last) / (first - last)) / math.log(1 - 1 / reached)
        return RatePart(
            kind="polynomial", start=first, end=last, steps=reached, power=round(power, 3)
        )
    if name == "ExponentialLR":
        return RatePart(kind="exponential", start=first, steps=1, decay=rates[1] / first)
    if name == "InverseSquareRootDecayLR":
        count = len(rates) - 1
        scale = last * math.sqrt(count)
        hold = round((scale / first) ** 2)
        return RatePart(kind="inverse_sqrt", start=scale, hold=hold)
    if name == "PiecewiseConstantLR":
        bounds = [i for i in range(1, len(rates)) if rates[i] != rates[i - 1]]
        values = [rates[0], *(rates[i] for i in bounds)]
        return RatePart(kind="piecewise", values=tuple(values), bounds=tuple(bounds))
    assert name == "CosineDecayLR"
    return RatePart(kind="cosine", start=first, end=last, steps=reached)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_schedules(case):
    facts = facts_of(case)
    names = [name for name in facts if name.endswith("LR")]
    assert names
    for name in names:
        part = fitted(name, facts[name])
        found = [part.rate(step) for step in range(len(facts[name]))]
        assert found == pytest.approx(facts[name], abs=TOLERANCE), name


class Tiny(nn.Module):
    """The names that the case's patterns speak of."""

    def __init__(self):
        super().__init__()
        encoder = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        encoder.cls = nn.Parameter(torch.zeros(2))
        self.image_model = nn.Module()
        self.image_model.image_model_list = nn.ModuleList([nn.ModuleList([encoder, nn.Identity()])])
        self.image_model.projection = nn.Linear(2, 2)
        self.text_model = nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_freeze(case):
    model = Tiny()
    names = [name for name, _ in model.named_parameters()]
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    for facts in facts_of(case)["freeze"]:
        if "error" in facts:
            with pytest.raises(ConfigError, match="did not match any module names"):
                frozen_by(facts["patterns"], parameters=names, modules=leaves, exact=True)
            continue
        frozen = frozen_by(facts["patterns"], parameters=names, modules=leaves, exact=True)
        assert [name for name in names if name not in frozen] == facts["trainable"]
    assert frozen_by(["weight$"], parameters=names, modules=leaves)


def test_rules_say_the_same():
    from retinue.model.freeze import apply_rules

    model = Tiny()
    names = [name for name, _ in model.named_parameters()]
    frozen = {"image_model.projection.bias", "text_model.0.weight"}
    table = apply_rules(model, rules_of(names, frozen), lr=1.0)
    assert set(table.names) == set(names) - frozen
    table = apply_rules(model, {"re:projection|text": "full"}, lr=1.0)
    assert {name.split(".")[0] for name in table.names} == {"image_model", "text_model"}
    with pytest.raises(ConfigError, match="no regular expression"):
        apply_rules(model, {"re:(": "full"}, lr=1.0)
