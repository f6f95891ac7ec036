"""Random tiny Llava and LlavaNext of transformers: same ids, logits, greedy text, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, MistralConfig

import tiny_hf
from retinue.convert.weights import Weights
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.processor import Processor

KINDS = ["llava", "llava_next"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": {"vision_feature_select_strategy": "full"},
    "two layers, no bias": {"vision_feature_layer": [-2, 1], "multimodal_projector_bias": False},
}
CASES = [("llava", name) for name in VARIANTS] + [("llava_next", "plain")]


def mistral() -> Any:
    return MistralConfig(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=333,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=0,
    )


def check(reference: Any, theirs: Any, folder: Path) -> None:
    """The folder gives the reference's ids, pixels, logits (1e-5, fp32) and greedy ids."""
    wanted = tiny_hf.inputs(theirs)
    model, processor = load(folder, template="vicuna_v1")
    ours = processor(text=tiny_hf.PROMPTS, images=tiny_hf.pictures())
    assert torch.equal(ours["input_ids"], wanted["input_ids"])
    assert torch.equal(ours["attention_mask"], wanted["attention_mask"])
    assert torch.equal(ours["pixel_values"].flatten(), wanted["pixel_values"].flatten())
    real = wanted["attention_mask"].bool()
    with torch.no_grad():
        expected, found = reference(**wanted).logits, model(**ours).logits
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)
        theirs_ids = reference.generate(**wanted, max_new_tokens=8, do_sample=False)
        our_ids = model.generate(**ours, max_new_tokens=8, do_sample=False)
    assert torch.equal(our_ids, theirs_ids)
    assert processor.batch_decode(our_ids) == theirs.batch_decode(
        our_ids.masked_fill(our_ids == processor.image_id, 0), skip_special_tokens=True
    )


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_loads_with_the_same_logits_and_greedy_text(
    tmp_path: Path, kind: str, variant: str
) -> None:
    model, processor = tiny_hf.save(kind, tmp_path / "hf", **VARIANTS[variant])
    check(model, processor, tmp_path / "hf")


@pytest.mark.parametrize("kind", KINDS)
def test_mistral_inside(tmp_path: Path, kind: str) -> None:
    model, processor = tiny_hf.save(kind, tmp_path / "hf", text=mistral())
    check(model, processor, tmp_path / "hf")


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bit_exact(tmp_path: Path, kind: str) -> None:
    reference, processor = tiny_hf.save(kind, tmp_path / "hf")
    report = convert(tmp_path / "hf", tmp_path / "own", to="retinue", template="vicuna_v1")
    assert report.coverage.complete
    check(reference, processor, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", to="hf")
    before, after = Weights.of(tmp_path / "hf"), Weights.of(tmp_path / "back")
    names = {key.replace("vision_tower.vision_model.", "vision_tower."): key for key in after}
    assert set(names) == set(before)
    assert all(torch.equal(before.read(key), after.read(names[key])) for key in before)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads(
        (tmp_path / "hf/config.json").read_text()
    )
    again = tiny_hf.CLASSES[kind][1].from_pretrained(tmp_path / "back").eval()
    wanted = tiny_hf.inputs(AutoProcessor.from_pretrained(tmp_path / "back"))
    assert torch.equal(wanted["input_ids"], tiny_hf.inputs(processor)["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(
            again(**wanted).logits, reference(**tiny_hf.inputs(processor)).logits, atol=0, rtol=0
        )


def test_auto_processor_of_a_converted_folder_is_ours(tmp_path: Path) -> None:
    """The tokenizer's config named transformers' processor, which the new folder lacks."""
    tiny_hf.save("llava", tmp_path / "hf")
    assert "processor_class" in (tmp_path / "hf/tokenizer_config.json").read_text()
    convert(tmp_path / "hf", tmp_path / "own", to="retinue", template="vicuna_v1")
    words = AutoProcessor.from_pretrained(tmp_path / "own")
    assert type(words) is Processor
    assert words.fingerprint() == load(tmp_path / "own")[1].fingerprint()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["4.x", "5.x in memory"])
def test_every_key_layout_is_read(tmp_path: Path, kind: str, layout: str) -> None:
    reference, processor = tiny_hf.save(kind, tmp_path / "hf")
    file = tmp_path / "hf/model.safetensors"
    if layout == "4.x":
        state = {
            key.replace("vision_tower.", "vision_tower.vision_model."): value
            for key, value in load_file(file).items()
        }
        state["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    else:
        state = {key: value.contiguous() for key, value in reference.state_dict().items()}
    save_file(state, file, metadata={"format": "pt"})
    check(reference, processor, tmp_path / "hf")


@pytest.mark.parametrize("kind", KINDS)
def test_retinue_to_transformers_without_history(tmp_path: Path, kind: str) -> None:
    """A model whose config forgot where it came from is described from its specs alone."""
    reference, _ = tiny_hf.save(kind, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "own", to="retinue", template="vicuna_v1")
    file = tmp_path / "own/config.json"
    config = json.loads(file.read_text())
    del config["foreign"]
    file.write_text(json.dumps(config))
    convert(tmp_path / "own", tmp_path / "back", to="hf")
    again = tiny_hf.CLASSES[kind][1].from_pretrained(tmp_path / "back").eval()
    wanted = tiny_hf.inputs(AutoProcessor.from_pretrained(tmp_path / "back"))
    with torch.no_grad():
        torch.testing.assert_close(again(**wanted).logits, reference(**wanted).logits)


def test_rounding_of_the_filled_side_follows_transformers() -> None:
    """Sizes whose filled side is a whole number up to float error: transformers rounds first."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    from retinue.ops.grid import unpad_slices

    differs = 0
    for height in range(1, 120):
        for width in range(1, 120, 7):
            plane = torch.zeros(1, 24, 48)
            kept = unpad_image(plane, (height, width)).shape[1:]
            slices = unpad_slices((height, width), rows=24, cols=48, snap=True)
            assert plane[0][slices].shape == kept
            plain = unpad_slices((height, width), rows=24, cols=48)
            differs += plane[0][plain].shape != kept
    assert differs, "the sizes tried never needed the rounding"
