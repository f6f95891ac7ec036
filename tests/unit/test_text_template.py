"""Templates: roles, placement, open answers, chat templates of others, refusals."""

from __future__ import annotations

import pytest

from retinue.core.errors import ConfigError, DataError
from retinue.text.labels import tokenize
from retinue.text.template import resolve
from retinue.text.templates import TEMPLATES
from retinue.text.templates.hf import HfTemplate
from retinue.text.train import train_bpe
from retinue.text.versions import policy_for_version, template_for_version, training_messages
from retinue.types import Media, Message, Text

PICTURE = Media(source=b"")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def say(role: str, *parts: str | Media, train: bool | None = None) -> Message:
    made = tuple(Text(text=part) if isinstance(part, str) else part for part in parts)
    return Message(role=role, parts=made, train=train)  # type: ignore[arg-type]


def ask(*parts: str | Media) -> Message:
    return say("user", *parts)


def trained(segments: list) -> list[str]:
    return [s.text for s in segments if s.train]


def test_a_system_message_replaces_the_prompt() -> None:
    chat = [say("system", "Be brief."), ask("hi")]
    assert resolve("vicuna_v1").text(chat, reply=True) == "Be brief. USER: hi ASSISTANT:"
    assert resolve("mpt").text(chat).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert resolve({"name": "v1", "system": ""}).text([ask("q")]) == "USER: q "
    with pytest.raises(DataError, match="comes first"):
        resolve("v1").render([ask("hi"), say("system", "late")])
    with pytest.raises(DataError, match="'tool' message"):
        resolve("v1").render([say("tool", "42")])


def test_placements() -> None:
    message = ask("see ", PICTURE, " and ", PICTURE)
    shown = {
        placement: resolve({"name": "v1", "system": "", "placement": placement}).text([message])
        for placement in ("keep", "front", "collapse", "lead")
    }
    assert shown == {
        "keep": "USER: see <image> and <image> ",
        "front": "USER: <image>\n<image>\nsee  and ",
        "collapse": "USER: <image>\nsee  and ",
        "lead": "USER: <image>\n<image>\nsee  and ",
    }


def test_collapse_keeps_the_first_mediums_number() -> None:
    template = resolve({"name": "v1", "placement": "collapse"})
    segments = template.render([ask(PICTURE, PICTURE, "a"), ask(PICTURE, "b")])
    assert [s.media for s in segments if s.media is not None] == [0, 2]


@pytest.mark.parametrize("name", ["vicuna_v1", "llama_2", "mpt", "llava_v0", "chatml"])
def test_an_open_answer_is_continued(name: str) -> None:
    template = resolve(name)
    chat = [ask("q"), say("assistant", "The ans")]
    assert template.text(chat, reply=True).endswith("The ans")
    assert template.text(chat).rstrip("\n").endswith(template.stop[0])


def test_messages_may_be_left_out_of_training() -> None:
    chat = [ask("a"), say("assistant", "b", train=False), ask("c"), say("assistant", "d")]
    assert "".join(trained(resolve("v1").render(chat))) == " d</s>"


def test_captions() -> None:
    plain = resolve("plain")
    segments = plain.render([ask("What?", PICTURE), say("assistant", "a cat")])
    assert [(s.text, s.train, s.media) for s in segments] == [
        ("", False, 0),
        ("a cat", True, None),
        ("\n", True, None),
    ]
    with pytest.raises(DataError, match="not a picture with a caption"):
        plain.render([ask("What?"), say("assistant", "a cat")])


def test_unknown_names_and_fields() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vicuna_v1'"):
        resolve("vicuna_v2")
    with pytest.raises(ConfigError, match="did you mean 'system'"):
        resolve({"name": "v1", "sytem": "x"})
    with pytest.raises(ConfigError, match="jinja"):
        resolve("hf")
    with pytest.raises(ConfigError, match="needs 'name'"):
        resolve({"system": "x"})


def test_every_name_is_described() -> None:
    for name in TEMPLATES:
        assert TEMPLATES.describe(name), name
        assert name == "hf" or TEMPLATES.get(name).name == name


def test_versions_choose_dialects_and_masks() -> None:
    chosen = {
        name: (template_for_version(name).name, policy_for_version(name).kind)  # type: ignore[attr-defined]
        for name in ("v0", "v0.5", "v1", "plain", "mpt", "llava_llama_2", "llava_v0", "nonsense")
    }
    assert chosen == {
        "v0": ("vicuna_v1", "llava-v1"),
        "v0.5": ("vicuna_v1", "llava-v1"),
        "v1": ("v1", "llava-v1"),
        "plain": ("plain", "llava-plain"),
        "mpt": ("mpt", "llava-mpt"),
        "llava_llama_2": ("llava_llama_2", "llava-llama2"),
        "llava_v0": ("llava_v0", "llava-legacy"),
        "nonsense": ("vicuna_v1", "llava-v1"),
    }
    with pytest.raises(DataError, match="take turns"):
        training_messages([ask("a"), ask("b")], template_for_version("v1"))


def test_chat_template_equals_our_chatml() -> None:
    template = HfTemplate(jinja=CHATML)
    ours = resolve("chatml")
    chat = [
        say("system", "Be brief."),
        ask(PICTURE, "one <|im_end|> two"),
        say("assistant", " padded "),
        ask("again"),
        say("assistant", "done"),
    ]
    tokenizer = train_bpe(["a b"], vocab_size=270, specials=["<|im_start|>", "<|im_end|>"])
    tame = [*chat[:2], say("assistant", "padded"), *chat[3:]]
    for mine, theirs in ((chat, tame), (chat[:2], tame[:2])):
        for reply in (False, True) if len(mine) == 2 else (False,):
            a, b = template.render(mine, reply=reply), ours.render(theirs, reply=reply)
            policy = "prompt" if len(mine) == 2 else "assistant"
            assert tokenize(a, tokenizer, policy=policy) == tokenize(b, tokenizer, policy=policy)
    assert template.text(chat, reply=True).endswith("assistant\ndone")


def test_chat_templates_that_cannot_be_trained_on() -> None:
    forgetful = (
        "{% for m in messages %}[{{ m.role }}]{% if loop.last or m.role == 'user' %}{{ m.content }}"
        "{% endif %}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = [ask("a"), say("assistant", "b"), ask("c"), say("assistant", "d")]
    with pytest.raises(DataError, match="rendered otherwise"):
        HfTemplate(jinja=forgetful).render(chat)
    segments = HfTemplate(jinja=forgetful).render([ask("a"), say("assistant", "b")])
    assert "".join(trained(segments)) == "b</s>"
    strict = "{{ raise_exception('no system here') }}"
    with pytest.raises(DataError, match="no system here"):
        HfTemplate(jinja=strict).render(chat)
    mute = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(DataError, match="picture is lost"):
        HfTemplate(jinja=mute).render([ask(PICTURE)], reply=True)
    with pytest.raises(ConfigError, match="no chat template"):
        HfTemplate.of(train_bpe(["a b"], vocab_size=270))


def test_documents_keep_pictures_between_their_words() -> None:
    """Three pictures in a document: order, targets, one end; a caption's question is no target."""
    document = [say("assistant", "One ", PICTURE, " two ", PICTURE, PICTURE, " three")]
    segments = resolve("document").render(document)
    assert [s.text if s.media is None else "*" for s in segments] == [
        *("One ", "*", " two ", "*", "*", " three", "</s>"),
    ]
    assert trained(segments) == ["One ", " two ", " three", "</s>"]
    pair = resolve("document").render([ask(PICTURE, "\ncaption: "), say("assistant", "a star")])
    assert trained(pair) == ["a star", "</s>"]
    assert resolve("document").text([ask(PICTURE, "\nIt is")], reply=True) == "<image>\nIt is"
