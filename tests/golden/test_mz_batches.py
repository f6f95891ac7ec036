"""ModelZoo's data processor: batches, orders, mixtures and pictures."""

import json

import pytest
import torch
import yaml
from cases import cases, compared
from safetensors.torch import load_file
from test_mz_models import SYSTEM

from retinue.data.modelzoo import ModelZooData, ModelZooDataSpec

PIXELS = {"atol": 1e-5, "rtol": 0}  # stated by the cases


@pytest.mark.parametrize("case", cases(SYSTEM, "dp_*"), ids=lambda case: case.name)
def test_batches(case):
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    section = yaml.safe_load((case / "config.yaml").read_text("utf-8"))["train_input"]
    data = ModelZooData(ModelZooDataSpec.parse(section, where="case"), root=case)
    assert len(data) == expected["len_dataset"]
    tensors = load_file(case / "batches.safetensors")
    sampler = data.sampler()
    found = list(data.batches(sampler))
    told = expected["batches"]
    for batch, facts in zip(found, told, strict=False):
        assert list(batch) == expected["key_order"]
        for name, (shape, dtype) in facts.items():
            assert list(batch[name].shape) == shape
            assert str(batch[name].dtype) == dtype
    for key, wanted in tensors.items():
        number, name = key.removeprefix("batch").split("/")
        value = found[int(number)][name]
        if name == "image_data":
            torch.testing.assert_close(value, wanted, **PIXELS)
        else:
            assert torch.equal(value, wanted), key
    assert list(sampler) == expected["sampler_order"]
    compared(case)
