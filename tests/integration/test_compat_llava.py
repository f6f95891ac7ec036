"""The snippets of LLaVA's documentation with the import line changed, beside our own path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from retinue.compat.llava import (
    DEFAULT_IMAGE_TOKEN,
    IMAGE_TOKEN_INDEX,
    conv_mode_of,
    conv_templates,
    eval_model,
    get_model_name_from_path,
    load_pretrained_model,
    process_images,
    tokenizer_image_token,
)
from retinue.core.errors import CheckpointError, ConfigError, MediaError, RequestError
from retinue.decode.chat import Chat
from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.types import Media, Message, Sample, Text
from tiny import picture, tiny_model

STEPS = 8
FULL = 16
"""Visual tokens of the tiny model's one view."""
QUESTION = "what colour is the circle?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compat")
    save(*tiny_model(seed=5), place / "llava-v1.5-tiny")
    for number in range(3):
        picture(number).save(place / f"{number}.png")
    return place


def question(folder: Path, **changes: Any) -> Any:
    """The `args` of M3's quick start."""
    model_path = str(folder / "llava-v1.5-tiny")
    return type(
        "Args",
        (),
        {
            "model_path": model_path,
            "model_base": None,
            "model_name": get_model_name_from_path(model_path),
            "query": QUESTION,
            "conv_mode": None,
            "image_file": str(folder / "0.png"),
            "sep": ",",
            "temperature": 0,
            "top_p": None,
            "num_beams": 1,
            "max_new_tokens": STEPS,
            "device": "cpu",
            **changes,
        },
    )()


def ours(folder: Path, *, template: str, budget: int | None, images: tuple[str, ...]) -> str:
    """The answer of our own chat."""
    model, processor = load(folder / "llava-v1.5-tiny", template=template)
    if budget is not None:
        from retinue.hub.elastic import make_elastic

        make_elastic(model, processor)
    talk = Chat(model, processor, params=SamplingParams(max_new_tokens=STEPS), budget=budget)
    return "".join(talk.ask(QUESTION, images=[str(folder / name) for name in images])).strip()


@pytest.mark.parametrize("scale", [None, FULL, 4, 1])
@pytest.mark.parametrize("conv_mode", [None, "vicuna_v1"])
def test_eval_model_answers_as_our_chat(
    folder: Path, capsys: pytest.CaptureFixture[str], scale: int | None, conv_mode: str | None
) -> None:
    eval_model(question(folder, matryoshka_vis_token_scale=scale, conv_mode=conv_mode))
    said = capsys.readouterr().out
    assert (
        said
        == ours(folder, template=conv_mode or "llava_v1", budget=scale, images=("0.png",)) + "\n"
    )


def test_scales_matter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison above can fail: budgets, templates and pictures all change the logits."""
    said = []
    for changes in (
        {},
        {"matryoshka_vis_token_scale": 1},
        {"conv_mode": "mpt"},
        {"image_file": str(folder / "2.png")},
    ):
        eval_model(question(folder, **changes))
        said.append(capsys.readouterr().out)
    assert len(set(said)) > 1


def test_several_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ";".join(str(folder / f"{n}.png") for n in range(2))
    query = "<image-placeholder>\n<image-placeholder>\n" + QUESTION
    eval_model(question(folder, image_file=files, sep=";", query=query))
    both = capsys.readouterr().out.strip()
    assert both == ours(folder, template="llava_v1", budget=None, images=("0.png", "1.png"))
    eval_model(question(folder, image_file=files, sep=";"))
    first = capsys.readouterr()
    eval_model(question(folder))
    assert first.out == capsys.readouterr().out
    with pytest.raises(RequestError, match="2 places in the query for 1 pictures"):
        eval_model(question(folder, query=query))
    with pytest.raises(MediaError, match="no such file"):
        eval_model(question(folder, image_file="nowhere.png"))


def test_beams_and_sampling(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beams are those of transformers' generate on our own inputs."""
    eval_model(question(folder, num_beams=3))
    said = capsys.readouterr().out.strip()
    model, processor = load(folder / "llava-v1.5-tiny", template="llava_v1")
    content = [
        {"type": "image", "image": str(folder / "0.png")},
        {"type": "text", "text": QUESTION},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    ids = model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=STEPS)
    assert said == processor.decode(ids[0, inputs["input_ids"].shape[1] :].tolist()).strip()
    torch.manual_seed(0)
    eval_model(question(folder, temperature=0.7, top_p=0.9))
    assert capsys.readouterr().out


def test_the_long_snippet(folder: Path) -> None:
    """Loading, a conversation, pixels, generate and decoding, step by step."""
    path = str(folder / "llava-v1.5-tiny")
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        model_path=path, model_base=None, model_name=get_model_name_from_path(path), device="cpu"
    )
    assert context_len == 2048
    image = Image.open(folder / "0.png").convert("RGB")
    image_tensor = process_images([image], image_processor, model.config)
    image_tensor = [part.to(dtype=model.dtype, device=model.device) for part in image_tensor]
    conv = conv_templates["vicuna_v1"].copy()
    conv.append_message(conv.roles[0], DEFAULT_IMAGE_TOKEN + "\n" + QUESTION)
    conv.append_message(conv.roles[1], None)
    input_ids = tokenizer_image_token(
        conv.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
    )
    output = model.generate(
        input_ids.unsqueeze(0).to(model.device),
        images=image_tensor,
        image_sizes=[image.size],
        do_sample=False,
        temperature=0,
        max_new_tokens=STEPS,
    )
    said = tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()
    assert said == ours(folder, template="vicuna_v1", budget=None, images=("0.png",))
    parts = (Media(source=image), Text(text="\n" + QUESTION))
    sample = Sample(id="a", messages=(Message(role="user", parts=parts),))
    plain, processor = load(path, template="vicuna_v1")
    (answer,) = generate(plain, processor, [sample], params=SamplingParams(max_new_tokens=STEPS))
    assert said == answer.text.strip()
    assert image_processor.preprocess(image)["pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(RequestError, match="1 pictures for 0 placeholders"):
        model.generate(torch.tensor([[1, 5]]), images=image_tensor)
    with pytest.raises(ConfigError, match="nearest"):
        model.generate(input_ids[None], images=image_tensor, matryoshka_vis_token_scale=FULL + 1)


def test_refusals(folder: Path) -> None:
    path = str(folder / "llava-v1.5-tiny")
    with pytest.raises(ConfigError, match="load_8bit and load_4bit"):
        load_pretrained_model(path, None, "x", load_8bit=True, load_4bit=True)
    with pytest.raises(CheckpointError):
        load_pretrained_model(str(folder), None, "llava")
    with pytest.raises(ConfigError, match="did you mean"):
        conv_templates["vicuna_v2"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("llava-llama-2-13b-chat", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("LLaVA-V1.5-7b", "llava_v1"),
        ("llava-mpt-7b", "mpt"),
        ("llava-next-vicuna-7b-m3", "llava_v0"),
    ],
)
def test_the_name_rule(name: str, mode: str) -> None:
    assert conv_mode_of(name) == mode
    assert mode in conv_templates
