"""LLaVA-MOSS2's text side: tokenizer, training masks, collator; exactly."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cases import cases, compared

from retinue.core.errors import RetinueError
from retinue.text.labels import Tokenized, tokenize
from retinue.text.llava import LlavaV1
from retinue.text.spm import spaced
from retinue.text.template import resolve
from retinue.text.tokenizer import Tokenizer
from retinue.text.versions import policy_for_template, training_messages, training_template
from retinue.types import IGNORE, Media, Message, Part, Segment, Text

pytestmark = pytest.mark.golden

CASES = cases("llava-moss2", "*", having="preprocess.json")
ROLES = {"human": "user", "gpt": "assistant"}
IMAGE = -200


def load(case: Path, *, bos: bool = True) -> Tokenizer:
    """The vocabulary beside the case, which keeps none of its own."""
    folder = next(iter(sorted(case.parent.glob("*/*/tokenizer.model")))).parent
    return loaded(folder, bos, read(case)["tokenizer"]["len"])


@cache
def loaded(folder: Path, bos: bool, size: int) -> Tokenizer:
    made = Tokenizer.load(folder)
    if not bos:
        files = dict(made.facts.files)
        config = json.loads(files["tokenizer_config.json"]) | {"add_bos_token": False}
        files["tokenizer_config.json"] = json.dumps(config).encode()
        made = Tokenizer(files)
    assert made.vocab_size == size
    return made


@cache
def read(case: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case / "preprocess.json").read_text("utf-8"))
    return found


def parts(text: str, *, images: bool = True) -> tuple[Part, ...]:
    found: list[Part] = []
    for i, piece in enumerate(text.split("<image>") if images else [text]):
        if i:
            found.append(Media(source=b""))
        if piece:
            found.append(Text(text=piece))
    return tuple(found)


def trained(row: dict[str, Any], tokenizer: Tokenizer, limit: int | None) -> tuple[str, Tokenized]:
    template = resolve(row["version"])
    shown = [
        Message(role=ROLES[turn["from"]], parts=parts(turn["value"], images=row["has_image"]))
        for turn in row["conversations"]
    ]
    kept = training_messages(shown, template)
    segments = training_template(template).render(kept)
    text = "".join("<image>" if s.media is not None else s.text for s in segments)
    policy = policy_for_template(template, max_length=limit)
    return text, tokenize(segments, tokenizer, policy=policy)


def recorded(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return [IMAGE if id == tokenizer.image_id else id for id in ids]


ROWS = (("samples", True, None), ("no_bos_tokenizer", False, None))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_masks(case: Path) -> None:
    data = read(case)
    limited = [key for key in data if key.startswith("with_model_max_length_")]
    rows = [*ROWS, *((key, True, int(key.rpartition("_")[2])) for key in limited)]
    for key, bos, limit in rows:
        tokenizer = load(case, bos=bos)
        for row in data[key]:
            if "error" in row:
                with pytest.raises(RetinueError):
                    trained(row, tokenizer, limit)
                continue
            text, done = trained(row, tokenizer, limit)
            assert text == row["prompt"]
            assert recorded(done.tokens, tokenizer) == row["input_ids"], row["prompt"]
            assert done.labels == row["labels"], row["prompt"]
            pieces = [tokenizer.token_of(done.tokens[at]) for at in done.supervised]
            assert pieces == row["supervised_pieces"]
            warning = ""
            if done.mismatch is not None:
                warning = "WARNING: tokenization mismatch: {} vs. {}. (ignored)".format(
                    *done.mismatch
                )
            assert warning == row["stdout"].strip()
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokenizer(case: Path) -> None:
    data, tokenizer = read(case), load(case)
    facts = data["tokenizer"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (facts["bos"], facts["eos"])
    assert tokenizer.adds_bos == facts["add_bos_token"]
    for row in data["tokenizer_encode"]:
        ids = tokenizer.call(row["text"])
        assert ids == row["ids"]
        assert [tokenizer.token_of(id) for id in ids] == row["pieces"]
        assert spaced(tokenizer.pieces, ids) == row["decode"]
        assert tokenizer.decode(ids) == row["decode_skip_special"]
    for key, bos in (("tokenizer_image_token", True), ("tokenizer_image_token_no_bos", False)):
        words = load(case, bos=bos)
        for row in data[key]:
            segments = [
                Segment(media=0) if isinstance(part, Media) else Segment(text=part.text)
                for part in parts(row["text"])
            ]
            found = LlavaV1().whole([*segments, Segment()], words)[1].tokens
            assert recorded(found, words) == row["ids"], row["text"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_collator(case: Path) -> None:
    data, tokenizer = read(case), load(case)
    indices = data["collator"]["sample_indices"]
    for key in ("collator", *(key for key in data if key.startswith("collator_max"))):
        table = data[key]
        limit = int(key.removeprefix("collator_max") or 10**9) if key != "collator" else 10**9
        for i, row in enumerate(indices):
            _, done = trained(data["samples"][row], tokenizer, None)
            cut = done.cut(limit)
            width = len(table["input_ids"][i])
            pad = width - len(cut.tokens)
            fill = data["tokenizer"]["pad_id"]
            assert recorded(cut.tokens, tokenizer) + [fill] * pad == table["input_ids"][i]
            assert cut.labels + [IGNORE] * pad == table["labels"][i]
            assert [1] * len(cut.tokens) + [0] * pad == table["attention_mask"][i]
