"""Tokenizer: both kinds of vocabulary, files, ids of roles, special tokens, refusals."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from retinue.core.errors import CheckpointError, ConfigError
from retinue.text.labels import tokenize
from retinue.text.tokenizer import Tokenizer
from retinue.text.train import train_bpe
from retinue.types import Segment

LINES = ["the cat and the dog", "USER: what is it? ASSISTANT: a red bus </s> on the street"] * 3


@pytest.fixture(scope="module")
def model() -> bytes:
    """A tiny SentencePiece model with byte fallback, as LLaMA's: no text normalisation."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=out,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return out.getvalue()


def pieces(model: bytes, **config: object) -> Tokenizer:
    config = {"tokenizer_class": "LlamaTokenizer", **config}
    files = {"tokenizer.model": model, "tokenizer_config.json": json.dumps(config).encode()}
    return Tokenizer(files)


def spell(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_of(id) for id in tokenizer.encode(text, specials=True)]


def test_legacy_prefixes_every_run(model: bytes) -> None:
    assert spell(pieces(model, legacy=True), "the</s>the") == ["▁the", "</s>", "▁the"]
    fresh = spell(pieces(model, legacy=False), "the</s>the")
    assert fresh[:2] == ["▁the", "</s>"]
    assert "".join(fresh[2:]) == "the"


def test_without_legacy_blanks_are_kept(model: bytes) -> None:
    tokenizer = pieces(model, legacy=False)
    assert spell(tokenizer, "  the")[:2] == ["▁", "▁"]
    assert spell(tokenizer, "</s> the") == ["</s>", "▁the"]
    assert spell(tokenizer, "<s>")[0] == "<s>"


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    "text", ["the cat", "  two  blanks ", "é 你好 😀x", "\nline\n", "a</s>b", ""]
)
def test_round_trip_and_spans(model: bytes, text: str, legacy: bool) -> None:
    tokenizer = pieces(model, legacy=legacy)
    for specials in (True, False):
        ids, spans = tokenizer.encode_with_offsets(text, specials=specials)
        assert tokenizer.decode(ids, skip_special=False) == text
        assert {i for a, b in spans for i in range(a, b)} == set(range(len(text)))
        assert spans == sorted(spans)
        assert (2 in ids) == (specials and "</s>" in text)


def test_bytes_of_a_character_share_its_span(model: bytes) -> None:
    ids, spans = pieces(model).encode_with_offsets("你")
    assert len(ids) == 4
    assert spans == [(0, 0), (0, 1), (0, 1), (0, 1)]


def test_an_answers_dummy_prefix_is_a_target(model: bytes) -> None:
    """At inference the model has to say it: it stands for no character, but comes first."""
    segments = [Segment(media=0), Segment(text="你", train=True)]
    done = tokenize(segments, pieces(model))
    assert done.supervised == [2, 3, 4, 5]


def test_roles_and_placeholder(model: bytes) -> None:
    tokenizer = pieces(model)
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.pad_id == 0
    assert tokenizer.vocab_size == 330
    assert tokenizer.image_id == 330
    assert tokenizer.adds_bos
    assert tokenizer.legacy is True
    tokenizer.model_vocab = 512
    assert tokenizer.image_id == 512
    assert not pieces(model, add_bos_token=False).adds_bos
    other = pieces(model, tokenizer_class="Moss2Tokenizer", pad_token="</s>")
    assert (other.legacy, other.pad_id) == (None, 2)


def test_call_cuts_the_end_and_wraps(model: bytes) -> None:
    tokenizer = pieces(model, add_eos_token=True)
    ids = tokenizer.call("the cat and the dog", max_length=4)
    assert (len(ids), ids[0], ids[-1]) == (4, 1, 2)
    assert ids[1:3] == tokenizer.encode("the cat and the dog")[:2]


def test_added_tokens_of_old_folders(model: bytes) -> None:
    files = {
        "tokenizer.model": model,
        "tokenizer_config.json": b"{}",
        "added_tokens.json": json.dumps({"<im_start>": 331, "[PAD]": 330}).encode(),
        "special_tokens_map.json": json.dumps({"pad_token": "[PAD]"}).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [2, 331]}).encode(),
    }
    tokenizer = Tokenizer(files)
    assert tokenizer.vocab_size == 332
    assert tokenizer.pad_id == 330
    assert tokenizer.special_ids == {0, 1, 2, 330}
    assert tokenizer.eos_ids == [2, 331]
    assert tokenizer.encode("x<im_start>")[-1] == 331  # not special: users may write it
    assert tokenizer.decode([330, 331]) == "<im_start>"


@pytest.mark.parametrize("kind", ["pieces", "bpe"])
def test_saving_and_adding_tokens(model: bytes, tmp_path: Path, kind: str) -> None:
    first = pieces(model) if kind == "pieces" else train_bpe(LINES, vocab_size=300)
    grown = first.with_tokens(["<image>", "[PAD]", "<s>"], pad="[PAD]")
    assert grown.vocab_size == first.vocab_size + 2
    assert grown.image_id == first.vocab_size
    assert grown.pad_id == first.vocab_size + 1
    grown.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = "the cat<image> é</s>"
    assert again.call(text) == grown.call(text)
    assert again.image_id in again.call(text)
    assert again.image_id not in again.encode(text)
    assert again.facts.files == grown.facts.files
    assert first.call("the cat") == grown.call("the cat")


@pytest.mark.parametrize("kind", ["pieces", "bpe"])
def test_transformers_view(model: bytes, kind: str) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    ours = pieces(model, **config) if kind == "pieces" else train_bpe(LINES, vocab_size=300)
    theirs = ours.hf()
    assert len(theirs) == ours.vocab_size
    assert theirs("the cat", add_special_tokens=False).input_ids == ours.encode("the cat")
    assert theirs.eos_token_id == ours.eos_id


def test_training_is_deterministic() -> None:
    first, second = (train_bpe(LINES, vocab_size=310, specials=["<image>"]) for _ in range(2))
    assert first.facts.files == second.facts.files
    assert 260 < first.vocab_size <= 310
    assert (first.pad_id, first.bos_id, first.eos_id, first.image_id) == (0, 1, 2, 3)
    assert first.call("the cat")[0] == 1
    assert len(first.encode("the cat")) < len("the cat")
    with pytest.raises(ConfigError, match="need 259"):
        train_bpe(LINES, vocab_size=258)


def test_bpe_literal_spans_stay_text() -> None:
    tokenizer = train_bpe(LINES, vocab_size=300)
    text = "the</s>cat</s>"
    ids, spans = tokenizer.encode_with_offsets(text, specials=True, literal=[(0, 10)])
    assert ids.count(2) == 1
    assert spans[-1] == (10, 14)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.encode("x", bos=True)[0] == 1


def test_refusals(model: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        Tokenizer.load(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        with pytest.raises(CheckpointError, match=name):
            Tokenizer({name: b"nonsense"})
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Tokenizer({"tokenizer.model": model, "tokenizer_config.json": b"{"})
    folder = tmp_path / "both"
    train_bpe(LINES, vocab_size=300).save(folder)
    (folder / "tokenizer.model").write_bytes(model)
    assert Tokenizer.load(folder).vocab_size == 300
    assert Tokenizer.load(folder, slow=True).vocab_size == 330
