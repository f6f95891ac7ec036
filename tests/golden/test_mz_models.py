"""ModelZoo's multimodal_simple: features, embeddings, logits, loss, gradients of whole models."""

import json

import pytest
import torch
import yaml
from cases import cases, compared
from safetensors.torch import load_file

from retinue.convert.modelzoo import import_modelzoo
from retinue.convert.modelzoo_keys import WRAPPER
from retinue.hub.stream import place, shapes_of, skeleton
from retinue.types import Batch, Grid, Visual

SYSTEM = "cerebras-multimodal"
FEATURES = {"atol": 1e-5, "rtol": 0}  # stated by the cases, as are the next two
LOGITS = {"atol": 2e-5, "rtol": 0}
LOSS = {"atol": 0, "rtol": 1e-6}


def section(case):
    data = yaml.safe_load((case / "config.yaml").read_text("utf-8"))
    return data["trainer"]["init"]["model"]


def built(model_section, weights, *, wrapped=True):
    made = import_modelzoo(model_section, where="case")
    keys = made.keys.under(WRAPPER) if wrapped else made.keys
    model = skeleton(made.config)
    left = set(shapes_of(model))
    for key, tensor in weights.items():
        found = keys.match(key)
        if found is None:
            assert keys.ignores(key), key
            continue
        name, rule = found
        if name not in left:
            assert name in model._tied_weights_keys
            continue
        place(model, name, rule.op.apply(tensor.float()) if rule.op else tensor.float())
        left.remove(name)
    assert not left
    for name, other in (model._tied_weights_keys or {}).items():
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._parameters[leaf] = model.get_parameter(other)
    return model


def batch_of(tensors):
    """The original's batch in our types; absent pictures are left out."""
    ids = tensors["text_input_ids"].long()
    rows, width = ids.shape
    places, pixels, spans, index = tensors["image_data_loc"].long(), [], [], []
    for row in range(rows):
        for number in range(places.shape[1]):
            where = places[row, number]
            if where[0] == width:
                continue
            pixels.append(tensors["image_data"][row, number])
            spans.append([row, int(where[0]), len(where)])
            index.append(row * width + where)
    visual = None
    if spans:
        size = tuple(pixels[0].shape[-2:])
        visual = Visual(
            pixels={"rgb": torch.stack(pixels)},
            grids=[Grid(size=size)] * len(spans),
            budgets=[None] * len(spans),
            spans=torch.tensor(spans),
            index=torch.cat(index),
        )
    mask = tensors["loss_mask"]
    return Batch(
        ids=[str(row) for row in range(rows)],
        tokens=ids,
        positions=torch.arange(width).expand(rows, width),
        segments=1 - tensors["key_padding_mask"].long(),
        labels=tensors["labels"].long(),
        supervised=(mask.flatten() != 0).nonzero().flatten(),
        weights=mask.float(),
        visual=visual,
    )


def compare_forward(model, tensors, outputs):
    batch = batch_of(tensors)
    real = batch.segments > 0
    if batch.visual is not None:
        words = model.look(batch.visual)
        present = tensors["image_data_loc"][..., 0] != batch.tokens.shape[1]
        expected = outputs["image_features"][present]
        torch.testing.assert_close(words.x_TD.view_as(expected), expected, **FEATURES)
        if "scattered_embeddings" in outputs:
            found = model.fusion(model.lm.embed(batch.tokens), words, batch).embeds_BTD
            torch.testing.assert_close(found, outputs["scattered_embeddings"], **FEATURES)
    hidden = model.run(batch, keep="none").hidden
    logits = model.lm.logits(hidden)
    torch.testing.assert_close(logits[real], outputs["logits"][real], **LOGITS)
    return batch


@pytest.mark.parametrize("case", cases(SYSTEM, "model_*"), ids=lambda case: case.name)
def test_model(case):
    model_section = section(case)
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    tensors, outputs = (
        load_file(case / "batch.safetensors"),
        load_file(case / "outputs.safetensors"),
    )
    model = built(model_section, load_file(case / "model.safetensors"))
    with torch.no_grad():
        batch = compare_forward(model, tensors, outputs)
    out = model.run(batch)
    if model_section.get("loss_scaling", "num_tokens") == "num_tokens":
        loss = out.loss_sum / out.num_supervised
    else:
        loss = out.loss_sum / len(batch.ids) * model_section["loss_weight"]
    torch.testing.assert_close(loss.view(1), outputs["loss"].view(1), **LOSS)
    loss.backward()
    keys = import_modelzoo(model_section, where="case").keys.under(WRAPPER)
    for name, parameter in model.named_parameters():
        theirs = keys.from_retinue(name)
        norm = expected["grad_norms"].get(theirs)
        if norm is not None:
            found = 0.0 if parameter.grad is None else float(parameter.grad.norm())
            assert found == pytest.approx(norm, rel=1e-4, abs=1e-7), name
    compared(case)
