"""LLaVA's own interface on LLaVA's own checkpoints: ids, pixels, answers, beams, scales."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import cases, compared
from PIL import Image
from safetensors.torch import load_file

from retinue.compat.llava import (
    conv_templates,
    eval_model,
    get_model_name_from_path,
    load_pretrained_model,
    process_images,
    tokenizer_image_token,
)
from retinue.core.errors import ConfigError


def having(*keys: str) -> list[Path]:
    """Cases with a checkpoint whose outputs.json has all `keys`."""
    return [
        case
        for case in cases("m3-llava", "*", having="outputs.json")
        if (case / "model").exists()
        and set(keys) <= json.loads((case / "outputs.json").read_text()).keys()
    ]


# Recorded answers begin with a bos that the original's generate puts there.


def opened(case: Path) -> tuple[Any, Any, Any, int, dict[str, Any]]:
    path = str(case / "model")
    name = get_model_name_from_path(path)
    outputs = json.loads((case / "outputs.json").read_text())
    return (*load_pretrained_model(path, None, name, device="cpu"), outputs)


def pictures(case: Path, count: int) -> list[Image.Image]:
    files = sorted((case / "inputs").glob("*.png"))
    return [Image.open(file).convert("RGB") for file in files[:count]]


def beams(key: str) -> int:
    """`..._beams3` was recorded with three."""
    return int(key.partition("_beams")[2] or 1)


@pytest.mark.parametrize("case", having("prompts", "generate"), ids=lambda case: case.name)
def test_prompts_and_answers(case: Path) -> None:
    tokenizer, model, image_processor, context, outputs = opened(case)
    assert context == outputs["context_len"]
    arrays = load_file(case / "outputs.safetensors")
    for key, recorded in outputs["generate"].items():
        facts = outputs["prompts"].get(key, recorded)
        ids = tokenizer_image_token(facts["prompt"], tokenizer, return_tensors="pt")
        assert ids.tolist() == facts.get("input_ids", ids.tolist()), key
        images = pictures(case, facts["prompt"].count("<image>"))
        pixels = process_images(images, image_processor, model.config) if images else None
        if images and len(images) == len(arrays["pixel_values"]):
            torch.testing.assert_close(pixels, arrays["pixel_values"], atol=1e-5, rtol=0)
        wanted = recorded["output_ids"]
        answer = model.generate(
            ids[None],
            images=pixels,
            image_sizes=[image.size for image in images],
            do_sample=False,
            temperature=0,
            num_beams=beams(key),
            max_new_tokens=len(wanted) - 1,
        )
        assert [tokenizer.bos_token_id, *answer[0].tolist()] == wanted, key
        if "text" in recorded:
            said = tokenizer.batch_decode(answer, skip_special_tokens=True)[0].strip()
            assert said == recorded["text"].strip(), key
        compared(case)


@pytest.mark.parametrize("case", having("prompts", "generate"), ids=lambda case: case.name)
def test_eval_model_prints_the_answer(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers recorded for a prompt that the quick start makes: template, picture, query."""
    outputs = json.loads((case / "outputs.json").read_text("utf-8"))
    seen = 0
    for recorded in outputs["generate"].values():
        found = re.fullmatch(
            r".*USER: <image>\n([^<]*) ASSISTANT:", recorded.get("prompt", ""), re.S
        )
        if not found or "text" not in recorded:
            continue
        fields = {
            "model_path": str(case / "model"),
            "model_base": None,
            "query": found[1],
            "conv_mode": "vicuna_v1",
            "image_file": str(min((case / "inputs").glob("*.png"))),
            "sep": ",",
            "temperature": 0,
            "top_p": None,
            "num_beams": 1,
            "max_new_tokens": len(recorded["output_ids"]) - 1,
            "device": "cpu",
        }
        eval_model(SimpleNamespace(**fields))
        assert capsys.readouterr().out == recorded["text"].strip() + "\n"
        compared(case)
        seen += 1
    assert seen


@pytest.mark.parametrize(
    "case", having("tokens_for_requested_scale", "generate"), ids=lambda case: case.name
)
def test_scales(case: Path) -> None:
    """Every scale, those too that the original rounds, and `none`."""
    tokenizer, model, image_processor, _, outputs = opened(case)
    ids = torch.tensor([outputs["input_ids"]])
    images = pictures(case, 1)
    pixels = process_images(images, image_processor, model.config)
    for scale, recorded in outputs["generate"].items():
        answer = model.generate(
            ids,
            images=pixels,
            image_sizes=[images[0].size],
            do_sample=False,
            max_new_tokens=len(recorded["output_ids"]) - 1,
            matryoshka_vis_token_scale=None if scale == "none" else int(scale),
        )
        assert [tokenizer.bos_token_id, *answer[0].tolist()] == recorded["output_ids"], scale
        compared(case)
    for scale, count in outputs["tokens_for_requested_scale"].items():
        (item,) = model.items(pixels, None, scale=int(scale))
        assert item.num_tokens == count
    above = next(key for key in outputs if key.startswith("errors_for_scale"))
    for scale in outputs[above]:
        with pytest.raises(ConfigError, match="nearest"):
            model.generate(ids, images=pixels, matryoshka_vis_token_scale=int(scale))
    assert tokenizer.decode(ids[0]).startswith("<s>")


@pytest.mark.parametrize("case", having("images", "m3"), ids=lambda case: case.name)
def test_tiles(case: Path) -> None:
    """Any resolution, whole and pooled: one picture each."""
    tokenizer, model, image_processor, _, outputs = opened(case)
    ids = torch.tensor([outputs["input_ids"]])
    for number, recorded in enumerate(outputs["images"]):
        image = Image.open(case / "inputs" / recorded["file"]).convert("RGB")
        pixels = process_images([image], image_processor, model.config)
        stem = Path(recorded["file"]).stem
        runs = {None: recorded["generate"]} if "generate" in recorded else {}
        for key, wanted in outputs["m3"].items():
            if key.startswith(f"{stem}.scale") and key.endswith(".generate"):
                runs[int(key.split(".")[1].removeprefix("scale"))] = wanted
        assert runs, number
        for scale, wanted in runs.items():
            answer = model.generate(
                ids,
                images=pixels,
                image_sizes=[image.size],
                do_sample=False,
                max_new_tokens=len(wanted) - 1,
                matryoshka_vis_token_scale=scale,
            )
            assert [tokenizer.bos_token_id, *answer[0].tolist()] == wanted, (stem, scale)
            compared(case)


@pytest.mark.parametrize(
    "case", cases("m3-llava", "*conversation*", having="prompts.json"), ids=lambda case: case.name
)
def test_conversations(case: Path) -> None:
    """Prompts by `append_message`, as text; tuples of a picture belong to the demo."""
    seen = set()
    for record in json.loads((case / "prompts.json").read_text("utf-8")):
        if "error" in record or any(isinstance(m, list) for m in record["messages"]):
            continue
        talk = conv_templates[record["template"]].copy()
        for number, message in enumerate(record["messages"]):
            talk.append_message(talk.roles[number % 2], message)
        assert talk.get_prompt() == record["prompt"], (record["template"], record["pattern"])
        assert talk.copy().get_prompt() == record["prompt"]
        seen.add(record["template"])
        compared(case)
    assert seen <= set(conv_templates)
    assert len(conv_templates) >= len(seen) > 0
