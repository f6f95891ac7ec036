"""LLaVA checkpoints through our path: features, embeddings, logits, losses and greedy ids.

Tolerance 1e-4 as the cases state (fp16 weights, another attention kernel); ids are exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from torch import Tensor

from retinue.convert.llava import ENCODER, connector_of
from retinue.core.errors import RetinueError
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.model.connectors.base import CONNECTORS
from retinue.model.encoders.base import EncoderShape
from retinue.ops.collate import collate
from retinue.processor import Processor
from retinue.types import IGNORE, Batch, Example, Features, Item, Media

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
IMAGE = -200  # the original's placeholder


def having(key: str) -> list[Path]:
    """Cases with a checkpoint whose outputs.json has `key`: their kind, whatever their name."""
    found = cases("m3-llava", "*", having="outputs.json")
    return [
        case
        for case in found
        if (case / "model").exists() and key in json.loads((case / "outputs.json").read_text())
    ]


def opened(case: Path) -> tuple[Any, Processor, dict[str, Any], dict[str, Tensor]]:
    model, processor = load(case / "model", dtype=torch.float32)
    outputs = json.loads((case / "outputs.json").read_text())
    return model, processor, outputs, load_file(case / "outputs.safetensors")


def pictures(case: Path, processor: Processor, names: Sequence[str]) -> list[Item]:
    return [processor.item(Media(source=str(case / "inputs" / name)), where=name) for name in names]


def example(
    processor: Processor,
    ids: Sequence[int],
    items: Sequence[Item],
    labels: Sequence[int] | None = None,
) -> Example:
    places = [(at, n) for n, at in enumerate(i for i, id in enumerate(ids) if id == IMAGE)]
    labels = [IGNORE] * len(ids) if labels is None else labels
    return processor.expand("golden", ids, labels, places, items)


def embeds(model: Any, batch: Batch) -> Tensor:
    inputs = model.fusion(model.lm.embed(batch.tokens), model.look(batch.visual), batch)
    found: Tensor = inputs.embeds_BTD
    return found


def greedy(model: Any, processor: Processor, made: Example, steps: int) -> list[int]:
    params = SamplingParams(max_new_tokens=steps)
    eos = processor.tokenizer.eos_ids
    answer = complete(model, collate([made]), params=params, decoder=processor, eos_ids=eos)
    return answer[0].tokens


@pytest.mark.parametrize("case", having("batch"), ids=lambda case: case.name)
@torch.inference_mode()
def test_llava15(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    names = sorted(path.name for path in (case / "inputs").glob("img*.png"))
    items = pictures(case, processor, names)
    batch = collate([example(processor, [IMAGE] * len(items), items)])
    assert batch.visual is not None
    hidden = tensors["vision.hidden_states"]
    (name,) = model.encoders
    encoder = model.encoders[name]
    found = encoder(tensors["pixel_values"], layers=tuple(range(len(hidden))))
    for layer, expected in enumerate(hidden):
        torch.testing.assert_close(found[layer].x_NLD, expected, **TOLERANCE)
    features = model.encode(batch.visual)
    ((_, layer),) = features
    with_prefix = features[name, layer].x_NLD
    torch.testing.assert_close(with_prefix[:, 1:], tensors["vision.selected"], **TOLERANCE)
    torch.testing.assert_close(with_prefix, tensors["vision.selected_cls_patch"], **TOLERANCE)
    projected = model.connector.encode(features).x_NLD
    torch.testing.assert_close(projected, tensors["vision.projected"], **TOLERANCE)
    for key, record in outputs["prompts"].items():
        used = items[: record["images"]]
        made = example(processor, record["input_ids"], used)
        plain = [i for i in record["input_ids"] if i != IMAGE]
        text = processor.prompt_example(
            "p", record["prompt"], [names_path(case, n) for n in names][: record["images"]]
        )
        assert [i for i in text.tokens if i != processor.image_id] == plain, key
        assert len(made.tokens) == record["seq_len"]
        run = collate([made])
        if f"{key}.inputs_embeds" in tensors:
            torch.testing.assert_close(
                embeds(model, run), tensors[f"{key}.inputs_embeds"], **TOLERANCE
            )
        logits = model.run(run).logits
        expected = tensors[f"{key}.logits"]
        torch.testing.assert_close(logits[:, -expected.shape[1] :], expected, **TOLERANCE)
        wanted = outputs["generate"][key]["output_ids"][1:]
        assert greedy(model, processor, made, len(wanted)) == wanted, key
    compared(case)


def names_path(case: Path, name: str) -> str:
    return str(case / "inputs" / name)


@pytest.mark.parametrize("case", having("batch"), ids=lambda case: case.name)
@torch.inference_mode()
def test_llava15_template_and_beams(case: Path) -> None:
    model, processor, outputs, _ = opened(case)
    first = sorted(path.name for path in (case / "inputs").glob("img*.png"))[0]
    for key, record in outputs["generate"].items():
        if "prompt" not in record:
            continue
        beams = int(key.rpartition("beams")[2]) if "beams" in key else 1
        made = processor(text=record["prompt"], images=[names_path(case, first)])
        if "input_ids" in record:
            ids = [i for i in made["input_ids"][0].tolist() if i != processor.image_id]
            assert ids == [i for i in record["input_ids"] if i != IMAGE]
        wanted = record["output_ids"][1:]
        got = model.generate(
            **made, num_beams=beams, do_sample=False, max_new_tokens=len(wanted), pad_token_id=0
        )
        assert got[0, made["input_ids"].shape[1] :].tolist() == wanted, key


@pytest.mark.parametrize("case", having("batch"), ids=lambda case: case.name)
@torch.inference_mode()
def test_llava15_batches(case: Path) -> None:
    """Padding left or right gives the same losses; the original's cut inside a picture is a prefix.

    The recorded batch holds a picture, none, and two (the second picture first).
    """
    model, processor, outputs, tensors = opened(case)
    names = sorted(path.name for path in (case / "inputs").glob("img*.png"))
    items = pictures(case, processor, names)
    dealt = [[items[0]], [], [items[1], items[0]]]
    examples = []
    for row, used in enumerate(dealt):
        keep = tensors["batch.attention_mask"][row].bool()
        ids = tensors["batch.input_ids"][row][keep].tolist()
        labels = tensors["batch.labels"][row][keep].tolist()
        examples.append(example(processor, ids, used, labels))
    for side, record in outputs["batch"].items():
        limit = record["tokenizer_model_max_length"]
        padding = record["padding_side"]
        batch = collate(examples, train=True, pad_side=padding)
        full = tensors[f"batch_{side}.attention_mask"].bool()
        width = min(limit, batch.tokens.shape[1])
        assert full.shape[1] == width
        assert torch.equal((batch.segments > 0)[:, :width], full)
        got, expected = embeds(model, batch)[:, :width], tensors[f"batch_{side}.inputs_embeds"]
        torch.testing.assert_close(got[full], expected[full], **TOLERANCE)
        logits = model.lm.logits(model.run(batch, keep="none").hidden)[:, :width]
        argmax = tensors[f"batch_{side}.logits_argmax"]
        assert torch.equal(logits.argmax(-1)[full], argmax[full])
        targets = tensors[f"batch_{side}.labels"]
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
        )
        assert abs(float(loss) - record["loss"]) < 1e-4
        if width == batch.tokens.shape[1]:
            ours = model.run(batch)
            assert abs(float(ours.loss_sum / ours.num_supervised) - record["loss"]) < 1e-4


@pytest.mark.parametrize("case", having("real_table"), ids=lambda case: case.name)
@torch.inference_mode()
def test_llava_next(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    ids = outputs["input_ids"]
    for number, record in enumerate(outputs["images"]):
        (item,) = pictures(case, processor, [record["file"]])
        assert item.num_tokens == record["tokens_spatial_unpad"]
        made = example(processor, ids, [item])
        batch = collate([made])
        words = model.look(batch.visual)
        key = f"img{number}"
        expected = tensors[f"{key}.features_spatial_unpad"]
        torch.testing.assert_close(words.x_TD, expected, **TOLERANCE)
        last = tensors[f"{key}.logits_last4"]
        logits = model.run(batch).logits[0, -len(last) :]
        torch.testing.assert_close(logits, last, **TOLERANCE)
        wanted = record["generate"][1:]
        assert greedy(model, processor, made, len(wanted)) == wanted
    compared(case)


@pytest.mark.parametrize("case", having("real_table"), ids=lambda case: case.name)
@pytest.mark.parametrize("merge", ["spatial", "flat"])
@torch.inference_mode()
def test_llava_next_other_merges(case: Path, merge: str, tmp_path: Path) -> None:
    """The same checkpoint with another `mm_patch_merge_type` in its config."""
    import shutil

    shutil.copytree(case, tmp_path / "case")
    config = tmp_path / "case" / "model" / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({**data, "mm_patch_merge_type": merge}))
    model, processor, outputs, tensors = opened(tmp_path / "case")
    for number, record in enumerate(outputs["images"]):
        if f"img{number}.features_{merge}" not in tensors:
            continue
        (item,) = pictures(case, processor, [record["file"]])
        assert item.num_tokens == record[f"tokens_{merge}"]
        batch = collate([example(processor, [IMAGE], [item])])
        expected = tensors[f"img{number}.features_{merge}"]
        torch.testing.assert_close(model.look(batch.visual).x_TD, expected, **TOLERANCE)


@pytest.mark.parametrize("case", having("real_table"), ids=lambda case: case.name)
@torch.inference_mode()
def test_llava_next_two_pictures(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    ids = outputs["input_ids_two"]
    (length,) = [outputs["shapes"]["two_images_list"][1]]
    files = [record["file"] for record in outputs["images"]]
    items = pictures(case, processor, files)
    pairs = [
        (a, b)
        for a in range(len(items))
        for b in range(len(items))
        if a != b and items[a].num_tokens + items[b].num_tokens + len(ids) - 2 == length
    ]
    assert pairs
    expected = tensors["two_images_list.logits_last4"]
    runs = [collate([example(processor, ids, [items[a], items[b]])]) for a, b in pairs]
    found = [model.run(run).logits[0, -len(expected) :] for run in runs]
    assert min(float((logits - expected).abs().max()) for logits in found) < 1e-4


@pytest.mark.parametrize("case", having("m3_scale_error"), ids=lambda case: case.name)
@torch.inference_mode()
def test_mistral(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    (name,) = [path.name for path in (case / "inputs").glob("img*.png")]
    (item,) = pictures(case, processor, [name])
    made = example(processor, outputs["input_ids"], [item])
    batch = collate([made])
    features = model.connector.encode(model.encode(batch.visual)).x_NLD
    torch.testing.assert_close(features, tensors["features"], **TOLERANCE)
    torch.testing.assert_close(model.run(batch).logits, tensors["logits"], **TOLERANCE)
    wanted = outputs["output_ids"][1:]
    assert greedy(model, processor, made, len(wanted)) == wanted
    text = processor.prompt_example("p", outputs["prompt"], [names_path(case, name)])
    assert text.tokens == made.tokens
    compared(case)


@pytest.mark.parametrize(
    "case", cases("m3-llava", "projector*", having="keys.json"), ids=lambda case: case.name
)
def test_projectors(case: Path) -> None:
    keys = json.loads((case / "keys.json").read_text())
    tensors = load_file(case / "outputs.safetensors")
    for kind, expected in keys.items():
        config = {"mm_projector_type": kind, "mm_vision_select_layer": -1}
        if isinstance(expected, str):
            with pytest.raises(RetinueError, match=kind.split("_")[0]):
                connector_of(config, where=case.name)
            continue
        x, y = tensors[f"{kind}.x"], tensors[f"{kind}.y"]
        half = (0.5, 0.5, 0.5)
        shapes = {
            ENCODER: EncoderShape(
                width=x.shape[-1],
                grid=(1, x.shape[1]),
                prefix=0,
                num_layers=1,
                size=(1, 1),
                mean=half,
                std=half,
            )
        }
        spec = CONNECTORS.spec_of(connector_of(config, where=case.name))
        module = CONNECTORS.get(spec.kind)(spec, shapes, y.shape[-1])
        state = {f"net.{key}": tensors[f"{kind}.weights.{key}"] for key in expected}
        module.load_state_dict(state, strict=True)
        out = module.encode({(ENCODER, -1): Features(x_NLD=x, grid=(1, x.shape[1]))})
        torch.testing.assert_close(out.x_NLD, y, atol=1e-6, rtol=1e-6)
    compared(case)
