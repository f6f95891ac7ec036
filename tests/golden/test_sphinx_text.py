"""LLaMA2-Accessory's conversations, prompts, searches in tokens, and picture transforms: exact."""

from __future__ import annotations

import json
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import all_cases, cases, compared
from PIL import Image
from safetensors.torch import load_file

from retinue.compat.sphinx import SphinxTokenizer
from retinue.core.errors import ConfigError, DataError
from retinue.media.random_crop import CentreCrop, RandomCrop
from retinue.media.resize import letterbox
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.media.whole import Pad
from retinue.ops.pixels import normalize
from retinue.text.accessory import AccessoryDialog
from retinue.text.single_turn import single_prompt
from retinue.text.template import Template, resolve
from retinue.text.tokenizer import Tokenizer
from retinue.types import IGNORE, Message, Text

pytestmark = pytest.mark.golden

CONVERSATIONS = cases("sphinx", "*conversation*", having="outputs.json")
TRANSFORMS = cases("sphinx", "*transform*", having="outputs.json")


@cache
def tokenizer_of(words: int) -> Tokenizer:
    """The vocabulary of that size among the root's checkpoints."""
    for case in all_cases("sphinx"):
        for file in case.glob("*/tokenizer.model"):
            found = Tokenizer.load(file.parent)
            if found.vocab_size == words:
                return found
    raise AssertionError(f"no tokenizer of {words} words")


def template_of(name: str) -> Template:
    same = ("default", "simple", "v1", "v1_old")
    return resolve("accessory" if name in same else f"accessory_{name}")


def messages_of(qas: list[list[str | None]]) -> list[Message]:
    found = []
    for question, answer in qas:
        found.append(Message(role="user", parts=(Text(text=str(question)),)))
        if answer is not None:
            found.append(Message(role="assistant", parts=(Text(text=answer),)))
    return found


@pytest.mark.parametrize("case", CONVERSATIONS, ids=lambda path: path.name)
def test_conversations(case: Path) -> None:
    outputs = json.loads((case / "outputs.json").read_text("utf-8"))
    tokenizer = tokenizer_of(outputs["tokenizer"]["n_words"])
    for record in outputs["conversations"]:
        template, messages = template_of(record["template"]), messages_of(record["qas"])
        reply = record["qas"][-1][1] is None
        assert template.stop == [record["response_end_signal"]]
        if "error" in record:
            with pytest.raises(DataError):
                template.text(messages, reply=reply)
            continue
        text = template.text(messages, reply=reply)
        assert text == record["conv"]
        segments = template.render(messages, reply=reply)
        answers = [
            "".join(piece.text for piece in run).lstrip(" ")
            for trained, run in groupby(segments, key=lambda piece: piece.train)
            if trained
        ]
        assert answers == record["to_predict"]
        prompt = SphinxTokenizer(tokenizer).encode(text, bos=True, eos=False)
        assert prompt == record["prompt_ids"]
        if record["to_predict"]:
            done = AccessoryDialog().tokenize(segments, tokenizer)
            assert done.tokens == [*prompt, tokenizer.eos_id]
            assert all(
                label in (IGNORE, id) for label, id in zip(done.labels, done.tokens, strict=True)
            )
            assert done.labels[-1] == IGNORE
    compared(case)


@pytest.mark.parametrize("case", CONVERSATIONS, ids=lambda path: path.name)
def test_tokens_inside_texts(case: Path) -> None:
    wanted = json.loads((case / "outputs.json").read_text("utf-8"))["tokenizer"]
    found = SphinxTokenizer(tokenizer_of(wanted["n_words"]))
    assert found.need_space_before_segment == wanted["need_space_before_segment"]
    assert (found.bos_id, found.eos_id) == (wanted["bos"], wanted["eos"])
    for record in wanted["segments"]:
        assert found.encode(record["s"], False, False) == record["encode"]
        assert found.encode_segment(record["s"]) == record["encode_segment"]
        assert found.encode_wo_prefix_space(record["s"]) == record["encode_wo_prefix_space"]
    compared(case)


@pytest.mark.parametrize("case", CONVERSATIONS, ids=lambda path: path.name)
def test_single_prompts(case: Path) -> None:
    """An unknown name is no prompt in the original; here it is an error."""
    for record in json.loads((case / "outputs.json").read_text("utf-8"))["format_prompt"]:
        fields, name = record["fields"], record["sys_name"]
        options = {"instruction": fields.get("instruction"), "input": fields.get("input")}
        if record.get("prompt") is None:
            with pytest.raises(ConfigError):
                single_prompt(str(name), **options)
            continue
        assert single_prompt(str(name), **options) == record["prompt"]
    compared(case)


@pytest.mark.parametrize("case", TRANSFORMS, ids=lambda path: path.name)
def test_transforms(case: Path) -> None:
    outputs = json.loads((case / "outputs.json").read_text("utf-8"))
    tensors = load_file(case / "outputs.safetensors")
    stream = StreamSpec(size=outputs["size"], mean=outputs["mean"], std=outputs["std"])
    seen = set()
    for number, record in enumerate(outputs["images"]):
        image = Image.open(case / record["file"]).convert("RGB")
        policies: dict[str, tuple[ViewPolicy, StreamSpec, int]] = {
            "padded_resize": (Pad(), stream, 1),
            "resized_center_crop": (CentreCrop(), stream, 1),
            "random_resized_crop": (RandomCrop(), stream, 1),
        }
        for key in tensors:
            head, _, tail = key.partition(".padded_resize_")
            if head == f"image{number}" and tail:
                side, _, step = tail.partition("_stride")
                wide = stream.model_copy(update={"size": (int(side), int(side))})
                policies[f"padded_resize_{tail}"] = (Pad(), wide, int(step))
        for name, (policy, how, step) in policies.items():
            key = f"image{number}.{name}"
            if key not in tensors:
                continue
            torch.manual_seed(record["seed"])
            levels, grid = policy.views(image, how)
            assert grid == policy.grid((image.height, image.width), how)
            got = normalize(levels, mean=how.mean, std=how.std)[0, :, ::step, ::step]
            torch.testing.assert_close(got, tensors[key], atol=1e-6, rtol=0)
            seen.add(key)
        torch.manual_seed(record["seed"])
        window = RandomCrop().window((image.height, image.width))
        assert list(window) == record["random_crop_params_top_left_h_w"]
        side = max(image.size)
        square = letterbox(image, (side, side), colour=tuple(outputs["fill_rgb"]))
        key = f"image{number}.padded_uint8"
        levels = torch.from_numpy(np.array(square))
        assert torch.equal(levels, tensors[key].to(torch.uint8))
        seen.add(key)
    assert seen == set(tensors)
    compared(case)
