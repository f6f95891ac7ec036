"""M3's loss at several scales: values, gradients and their norms, with one pass of the tower.

Losses and gradients to 1e-5 as the case states, where norms sum over many of them to 1e-4.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from torch import Tensor

from retinue.convert.llava import llava_keys
from retinue.hub.load import load
from retinue.model.nest import make_elastic
from retinue.ops.collate import collate
from retinue.processor import Processor
from retinue.train.objectives.elastic import Elastic, ElasticSpec
from retinue.types import IGNORE, Batch, Example, Media

pytestmark = pytest.mark.golden

IMAGE = -200  # the original's placeholder
CASES = [
    case
    for case in cases("m3-llava", "*m3-*", "*scale*", having="outputs.json")
    if "per_scale" in json.loads((case / "outputs.json").read_text())
]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
FORMS = ["packed", "accumulated"]


def opened(case: Path, scales: list[int]) -> tuple[Any, Processor]:
    """The case's model, trainable as the original had it, with these scales."""
    (tower,) = {path.parent for path in case.glob("*/*/preprocessor_config.json")}
    model, processor = load(case / "model", encoders={"clip": tower}, dtype=torch.float32)
    plan = make_elastic(model, scales=scales, rounding="original")
    return model.train(), Processor(plan, tokenizer=processor.tokenizer, spec=processor.spec)


def batch_of(case: Path, processor: Processor, tensors: dict[str, Tensor]) -> Batch:
    """The case's micro-batch: samples with a placeholder show its pictures in turn."""
    files = sorted((case / "inputs").glob("img*.png"))
    rows, shown = [], 0
    for ids_T, labels_T in zip(tensors["batch.input_ids"], tensors["batch.labels"], strict=True):
        length = int((ids_T != 0).nonzero().max()) + 1
        ids, labels = ids_T[:length].tolist(), labels_T[:length].tolist()
        places = [(at, 0) for at, token in enumerate(ids) if token == IMAGE]
        file = files[shown % len(files)]
        shown += len(places)
        items = [processor.item(Media(source=str(file)), where=file.name)] if places else []
        rows.append(example(processor, ids, labels, places, items))
    return collate(rows, train=True)


def example(processor: Processor, ids: Any, labels: Any, places: Any, items: Any) -> Example:
    labels = [IGNORE if label == IMAGE else label for label in labels]
    return processor.expand("golden", ids, labels, places, items)


def runs(outputs: dict[str, Any]) -> dict[str, list[int]]:
    """Names of the case's training forwards -> their scales."""
    return {
        name: [int(scale) for scale in name.split("_")[1:]]
        for name in outputs
        if re.fullmatch(r"train(_\d+)+", name)
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_and_gradients_with_one_pass_of_the_tower(case: Path, form: str) -> None:
    outputs = json.loads((case / "outputs.json").read_text())
    tensors = load_file(case / "outputs.safetensors")
    longest = max(runs(outputs).values(), key=len)
    for name, scales in runs(outputs).items():
        model, processor = opened(case, scales)
        (encoder,) = model.encoders.values()
        passes: list[int] = []
        encoder.register_forward_hook(lambda m, i, o, seen=passes: seen.append(len(i[0])))
        batch = batch_of(case, processor, tensors)
        assert batch.supervised is not None
        assert batch.visual is not None
        count = len(batch.supervised)
        objective = Elastic(ElasticSpec.parse({"kind": "elastic", "form": form, "tower": "still"}))
        objective.check(model)
        total, metrics = 0.0, dict[str, Tensor]()
        for part in objective.parts(model, batch):
            assert part.loss_sum is not None
            (part.loss_sum / count).backward()  # type: ignore[no-untyped-call]
            total += part.loss_sum.item() / count
            metrics |= part.metrics
        assert passes == [sum(batch.visual.num_views)]
        assert total == pytest.approx(outputs[name]["loss"], abs=1e-5)
        for scale in scales:
            expected = outputs["per_scale"][str(scale)]["loss"]
            assert metrics[f"loss/{scale}"].item() == pytest.approx(expected, abs=1e-5)
        check_gradients(model, outputs[name], tensors if scales == longest else {})
        compared(case)


def check_gradients(model: Any, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    visual = [grad for name, grad in own.items() if name.startswith("encoders.")]
    assert visual
    assert sum(grad is not None for grad in visual) == facts["vision_tower_grads"] == 0
    total = torch.nn.utils.get_total_norm([grad for grad in own.values() if grad is not None])
    assert total.item() == pytest.approx(facts["grad_norm_all"], abs=1e-4)
    projector = [grad for name, grad in own.items() if name.startswith("connector.")]
    norm = torch.nn.utils.get_total_norm(projector)
    assert norm.item() == pytest.approx(facts["grad_norm_projector"], abs=1e-4)
    for key, expected in tensors.items():
        if key.startswith("train.grad."):
            name = llava_keys().to_retinue(key.removeprefix("train.grad."))
            assert name is not None
            grad = own[name.replace("connector.", "connector.of.", 1)]
            torch.testing.assert_close(grad, expected, **CLOSE)
