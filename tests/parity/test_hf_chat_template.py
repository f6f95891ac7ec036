"""Chat templates whose contents are lists of parts: the ids of transformers' own processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

import tiny_hf
from retinue.core.errors import CheckpointError, DataError
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.text.templates.hf import HfTemplate
from retinue.types import IGNORE, Media, Message, Sample, Text

# Pictures before texts, whatever their order, and a mark around answers: what the conversions of
# LLaVA have.
JINJA = (
    "{% for m in messages %}{{ '' if m.role == 'system' else m.role | upper + ': ' }}"
    "{% for part in m.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% if m.role == 'assistant' %}{% for part in m.content if part.type == 'text' %}"
    "{% generation %}{{ part.text + ' ' }}{% endgeneration %}{% endfor %}"
    "{% else %}{% for part in m.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endif %}{% endfor %}{{ 'ASSISTANT:' if add_generation_prompt }}"
)
OTHER = "{% for m in messages %}{{ m.content }}!{% endfor %}"
A, B = tiny_hf.noise(40, 70), tiny_hf.noise(90, 31)
TURNS: dict[str, list[tuple[str, list[Any]]]] = {
    "one": [("user", [A, "what colour?"])],
    "two": [("user", ["is", A, "the circle", B, "red?"])],
    "turns": [
        ("system", ["the circle is red"]),
        ("user", ["what colour?", A]),
        ("assistant", ["red"]),
        ("user", [B, "is the circle red?"]),
    ],
    "text": [("user", ["what?"]), ("assistant", [" is "]), ("user", ["red?"])],
}


@pytest.fixture(scope="module", params=["llava", "llava_next"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hf")
    model, processor = tiny_hf.make(request.param)
    processor.chat_template = JINJA
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    ours, words = load(folder)
    return folder, AutoProcessor.from_pretrained(folder), ours, words


def theirs(turns: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
    def part(piece: Any) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"type": "text", "text": piece}
        return {"type": "image", "image": piece}

    return [{"role": role, "content": [part(p) for p in pieces]} for role, pieces in turns]


def messages(turns: list[tuple[str, list[Any]]]) -> list[Message]:
    made = []
    for role, pieces in turns:
        parts = [Text(text=p) if isinstance(p, str) else Media(source=p) for p in pieces]
        made.append(Message(role=role, parts=tuple(parts)))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("name", sorted(TURNS))
def test_prompts_have_the_ids_of_transformers(saved: Any, name: str) -> None:
    _, reference, _, processor = saved
    turns = TURNS[name]
    wanted = reference.apply_chat_template(
        theirs(turns),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    example = processor.example(Sample(id="a", messages=messages(turns)))
    assert example.tokens == wanted["input_ids"][0].tolist()
    assert len(example.spans) == sum(not isinstance(p, str) for _, ps in turns for p in ps)
    ours = processor.apply_chat_template(
        theirs(turns), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert torch.equal(ours["input_ids"], wanted["input_ids"])
    if example.spans:
        assert torch.equal(ours["pixel_values"].flatten(), wanted["pixel_values"].flatten())


def test_pictures_keep_their_order_and_a_typed_mark_stays_text(saved: Any) -> None:
    template = saved[3].template
    asked = messages([("user", ["see <image>", A, "\nand", B, "\n"])])
    segments = template.render(asked, reply=True)
    assert [s.media for s in segments if s.media is not None] == [0, 1]
    typed = [s for s in segments if "<image>" in s.text]
    assert [(s.text, s.literal) for s in typed] == [("see <image>", True)]
    # Line breaks beside a picture are the template's to write, and it has written its own.
    shown = template.text(asked, reply=True, media="#")
    assert shown == "USER: #\n#\nsee <image> and ASSISTANT:"
    with pytest.raises(DataError, match="U\\+FDD3"):
        template.render(messages([("user", ["a \ufdd3 b"])]))


def test_answers_are_the_targets(saved: Any) -> None:
    processor = saved[3]
    turns = [*TURNS["turns"], ("assistant", ["the circle", "is red"])]
    example = processor.example(Sample(id="a", messages=messages(turns)), train=True)
    text = processor.tokenizer.decode([label for label in example.labels if label != IGNORE])
    assert text == " red the circle is red"
    segments = processor.template.render(messages(turns))
    assert [s.text for s in segments if s.train] == [" ", "red", " ", "the circle", " ", "is red"]


def test_an_answer_is_continued_where_its_text_ends(saved: Any) -> None:
    turns = [*TURNS["one"], ("assistant", ["the circle"])]
    text = saved[3].template.text(messages(turns), reply=True)
    assert text == "USER: <image>\nwhat colour? ASSISTANT: the circle"


def test_the_template_lives_on_in_our_own_folder(saved: Any, tmp_path: Path) -> None:
    folder, _, model, processor = saved
    own = save(model, processor, tmp_path / "own")
    again = load(own)[1]
    assert again.template == processor.template
    assert again.fingerprint() == processor.fingerprint()
    assert (own / "chat_template.jinja").read_text() == JINJA
    assert load(folder, template="vicuna_v1")[1].template.name == "vicuna_v1"


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_files_are_read_in_the_order_of_transformers(saved: Any, tmp_path: Path, kept: int) -> None:
    """Of the four places, all but the first `kept` ones are filled; the others say it otherwise."""
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    places = ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"]
    places = [*places, "processor_config.json"][:kept]
    for place in places:
        text = JINJA if place == places[-1] else OTHER
        file = tmp_path / place
        data = json.loads(file.read_text()) if file.exists() else {}
        whole = text if place.endswith("jinja") else json.dumps({**data, "chat_template": text})
        file.write_text(whole)
    if kept > 1:  # transformers' processors leave the tokenizer's own template alone
        assert AutoProcessor.from_pretrained(tmp_path).chat_template == JINJA
    assert load(tmp_path)[1].template == saved[3].template


def test_a_broken_template_file_is_named(saved: Any, tmp_path: Path) -> None:
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"chat_template\.json is not valid JSON"):
        load(tmp_path)


def test_strings_or_parts_is_found_by_trying() -> None:
    either = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text if p.type == 'text' else '[<pic>]' }}{% endfor %}"
        "{% endif %}{% endfor %}"
    )
    asked = messages([("user", ["see ", A, " here"])])
    assert HfTemplate(jinja=OTHER).text(asked) == "see <image> here!"
    assert HfTemplate(jinja=either).text(asked) == "see <image> here"
    assert HfTemplate(jinja=either, mark="<pic>").text(asked) == "see [<image>] here"
    words = "{% for m in messages %}{{ m.content[0].text }}{% endfor %}"
    assert HfTemplate(jinja=words).text(messages([("user", ["hi"])])) == "hi"
    ended = HfTemplate(jinja=JINJA, system="the circle")
    assert ended.text(asked[:1]).startswith("the circle USER: <image>\n")
