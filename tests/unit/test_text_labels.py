"""Labels: the default policy, refusals with the sample's name, quirks of the originals' masks."""

from __future__ import annotations

import pytest

from retinue.core.errors import ConfigError, DataError
from retinue.text.labels import LABELS, encode, resolve_policy, tokenize
from retinue.text.llava import MARK
from retinue.text.stopping import KeywordsStopping
from retinue.text.template import resolve
from retinue.text.tokenizer import Tokenizer
from retinue.text.train import train_bpe
from retinue.types import IGNORE, Media, Message, Segment, Text


def chat(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], parts=(Text(text=t),)) for i, t in enumerate(texts)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["USER: q ASSISTANT: a"] * 2, vocab_size=280, specials=["<image>"])


def test_nothing_to_learn_names_the_sample(tokenizer: Tokenizer) -> None:
    segments = resolve("v1").render(chat("q", ""))
    with pytest.raises(DataError, match="sample-7: no token to learn from") as caught:
        tokenize(segments, tokenizer, where="sample-7")
    assert caught.value.exit_code == 3


def test_one_bos(tokenizer: Tokenizer) -> None:
    for segments in ([Segment(text="<s>a")], [Segment(text="a")]):
        assert encode(segments, tokenizer).tokens.count(1) == 1
    pictured = encode([Segment(media=0), Segment(text="x", train=True)], tokenizer)
    assert pictured.tokens[:2] == [1, tokenizer.image_id]
    assert pictured.labels[:2] == [IGNORE, IGNORE]
    assert pictured.places == [(1, 0)]
    assert pictured.cut(1).places == []


def test_a_placeholder_in_the_text_is_refused(tokenizer: Tokenizer) -> None:
    for policy in ("prompt", "llava-v1"):
        with pytest.raises(DataError, match="holds the image placeholder"):
            tokenize([Segment(text="<image>")], tokenizer, policy=policy)
    literal = [Segment(text="<image>", literal=True)]
    assert tokenizer.image_id not in tokenize(literal, tokenizer, policy="prompt").tokens


def test_a_continued_prompt_has_no_labels(tokenizer: Tokenizer) -> None:
    done = tokenize(resolve("v1").render(chat("q", "a")), tokenizer, policy="prompt")
    assert set(done.labels) == {IGNORE}


def test_policies_by_name(tokenizer: Tokenizer) -> None:
    for name in LABELS:
        assert resolve_policy(name).kind == name  # type: ignore[attr-defined]
        assert LABELS.describe(name)
    with pytest.raises(ConfigError, match="did you mean 'llava-v1'"):
        resolve_policy("llava-v2")
    with pytest.raises(ConfigError, match="max_length"):
        resolve_policy({"kind": "llava-v1", "max_lenght": 3})


def test_v1_mask_needs_the_legacy_flag_from_the_second_turn_on(tokenizer: Tokenizer) -> None:
    template = resolve("v1")
    assert tokenize(template.render(chat("q", "a")), tokenizer, policy="llava-v1").supervised
    with pytest.raises(ConfigError, match="legacy"):
        tokenize(template.render(chat("q", "a", "b", "c")), tokenizer, policy="llava-v1")


def test_a_cut_sample_is_not_counted(tokenizer: Tokenizer) -> None:
    segments = resolve("v1").render(chat("q</s>", "a"))
    dropped = tokenize(segments, tokenizer, policy="llava-v1")
    assert dropped.mismatch is not None
    assert dropped.supervised == []
    kept = tokenize(segments, tokenizer, policy={"kind": "llava-v1", "max_length": 1})
    assert (kept.mismatch, len(kept.tokens)) == (None, 1)


def test_captions_need_a_picture(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no image"):
        tokenize([Segment(text="a")], tokenizer, policy="llava-plain")
    with pytest.raises(DataError, match=r"U\+FDD0"):
        tokenize([Segment(text=MARK), Segment(media=0)], tokenizer, policy="llava-plain")


def test_caption_policies_agree(tokenizer: Tokenizer) -> None:
    asked = Message(role="user", parts=(Media(source=b""), Text(text="What?")))
    segments = resolve("plain").render([asked, chat("", "a cat")[1]])
    ours = tokenize(segments, tokenizer)
    assert ours == tokenize(segments, tokenizer, policy="llava-plain")
    assert tokenizer.decode([ours.tokens[i] for i in ours.supervised]) == "a cat\n"


def test_keywords_stop_only_when_every_row_did(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.call("q")
    stopping = KeywordsStopping(["ASS"], tokenizer=tokenizer, prompt_length=len(prompt))
    going, done = (prompt + tokenizer.encode(text) for text in ("a cat", "a cat ASS"))
    assert stopping([done, done])
    assert not stopping([done, going])
