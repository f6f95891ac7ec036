"""LLaVA's training preprocessing: ids, targets, warnings and refusals of every recorded sample."""

from __future__ import annotations

import json
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from cases import cases, compared

from retinue.core.errors import RetinueError
from retinue.text.labels import Tokenized, encode, tokenize
from retinue.text.llava import LlavaV1
from retinue.text.template import resolve
from retinue.text.tokenizer import Tokenizer
from retinue.text.versions import (
    policy_for_template,
    training_messages,
    training_template,
    with_image_marks,
)
from retinue.types import IGNORE, Media, Message, Part, Segment, Text

CASES = cases("m3-llava", "*preprocess*", having="preprocess.jsonl")
MISC_CASES = cases("m3-llava", "*preprocess*", having="misc.json")
ROLES = {"human": "user", "gpt": "assistant"}
IMAGE = -200


@cache
def load(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@cache
def conversations(case: Path) -> dict[str, Any]:
    return json.loads((case / "conversations.json").read_text("utf-8"))


@cache
def records(case: Path) -> list[dict[str, Any]]:
    lines = (case / "preprocess.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def parts(text: str, *, images: bool = True) -> tuple[Part, ...]:
    found: list[Part] = []
    for i, piece in enumerate(text.split("<image>") if images else [text]):
        if i:
            found.append(Media(source=b""))
        if piece:
            found.append(Text(text=piece))
    return tuple(found)


def messages(stored: dict[str, Any]) -> list[Message]:
    return [
        Message(role=ROLES[m["from"]], parts=parts(m["value"], images=stored["has_image"]))
        for m in stored["conversations"]
    ]


def as_recorded(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return [IMAGE if id == tokenizer.image_id else id for id in ids]


def trainer(case: Path, record: dict[str, Any]) -> tuple[Tokenized, Tokenizer]:
    tokenizer = load(case / record["tokenizer"])
    template = resolve(record["version"])
    kept = training_messages(messages(conversations(case)[record["conversation"]]), template)
    policy = policy_for_template(template, max_length=record["model_max_length"])
    return tokenize(training_template(template).render(kept), tokenizer, policy=policy), tokenizer


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_trainer_masks(case: Path) -> None:
    for record in records(case):
        where = [record[key] for key in ("tokenizer", "version", "conversation")]
        if "error" in record:
            with pytest.raises(RetinueError):
                trainer(case, record)
            continue
        done, tokenizer = trainer(case, record)
        assert as_recorded(done.tokens, tokenizer) == record["input_ids"], where
        assert done.supervised == record["supervised"], where
        assert (not done.supervised) == record["all_masked"], where
        warning = ""
        if done.mismatch is not None:
            counted, real = done.mismatch
            warning = f"WARNING: tokenization mismatch: {counted} vs. {real}. (ignored)"
        assert warning == record.get("stdout", "").strip(), where
        compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_default_policy_trains_every_answer_and_nothing_else(case: Path) -> None:
    count = 0
    for record in records(case):
        stored = conversations(case)[record["conversation"]]
        template = resolve({"name": record["version"], "preset": ()})
        if template.style == "PLAIN" or stored["conversations"][0]["from"] == "gpt":
            continue
        tokenizer = load(case / record["tokenizer"])
        segments = template.render(messages(stored))
        groups = groupby(segments, key=lambda segment: segment.train)
        wanted = ["".join(s.text for s in group) for trained, group in groups if trained]
        if not wanted:
            with pytest.raises(RetinueError, match="no token to learn from"):
                tokenize(segments, tokenizer, where="x")
            continue
        answers = [m["value"] for m in stored["conversations"] if m["from"] == "gpt"]
        assert [text.partition(template.stop[0])[0].strip() for text in wanted] == [
            answer.strip() for answer in answers
        ]
        done = tokenize(segments, tokenizer)
        assert runs(done, tokenizer) == [text.lstrip(" ") for text in wanted], record
        ends = [tokenizer.encode(template.stop[0], specials=True)[-1]] * len(wanted)
        assert [run[-1] for run in target_runs(done)] == ends
        count += 1
    assert count


def target_runs(done: Tokenized) -> list[list[int]]:
    groups = groupby(done.labels, key=lambda label: label != IGNORE)
    return [list(group) for trained, group in groups if trained]


def runs(done: Tokenized, tokenizer: Tokenizer) -> list[str]:
    """The supervised runs as text; SentencePiece's dummy prefix hides one leading blank."""
    found = (tokenizer.decode(run, skip_special=False) for run in target_runs(done))
    return [text.lstrip(" ") for text in found]


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_default_tokens_are_the_trainers(case: Path) -> None:
    """Without special-token names in its text, a sample has the same ids under both policies."""
    same = 0
    for record in records(case):
        stored = conversations(case)[record["conversation"]]
        written = "".join(m["value"] for m in stored["conversations"])
        tokenizer = load(case / record["tokenizer"])
        special = any(tokenizer.token_of(id) in written for id in tokenizer.special_ids)
        if "error" in record or special:
            continue
        template = resolve(record["version"])
        kept = training_messages(messages(stored), template)
        done = encode(training_template(template).render(kept), tokenizer)
        whole = as_recorded(done.tokens, tokenizer)
        # Only the trainer cuts text-only samples.
        limit = None if stored["has_image"] else record["model_max_length"]
        assert whole[:limit] == record["input_ids"], record["conversation"]
        same += 1
    assert same


@pytest.mark.parametrize("case", MISC_CASES, ids=lambda path: path.name)
def test_image_placement(case: Path) -> None:
    for row in json.loads((case / "misc.json").read_text("utf-8"))["preprocess_multimodal"]:
        template = training_template(resolve(row["version"]))
        if row["mm_use_im_start_end"]:
            template = with_image_marks(template)
        shown = template.text([Message(role="user", parts=parts(row["value"]))])
        bare = template.text([Message(role="user", parts=(Text(text="\0"),))])
        before, after = bare.split("\0")
        assert shown == before + row["out"] + after, row
        compared(case)


@pytest.mark.parametrize("case", MISC_CASES, ids=lambda path: path.name)
def test_image_tokens(case: Path) -> None:
    for row in json.loads((case / "misc.json").read_text("utf-8"))["tokenizer_image_token"]:
        tokenizer = load(case / row["tokenizer"])
        segments = [
            Segment(media=0) if isinstance(part, Media) else Segment(text=part.text)
            for part in parts(row["prompt"])
        ]
        ours = tokenize(segments, tokenizer, policy="prompt").tokens
        assert as_recorded(ours, tokenizer) == row["ids"], row
        theirs = LlavaV1().whole([*segments, Segment()], tokenizer)[1].tokens
        assert as_recorded(theirs, tokenizer) == row["ids"], row


@pytest.mark.parametrize("case", MISC_CASES, ids=lambda path: path.name)
def test_collator_cuts_before_expansion(case: Path) -> None:
    table = json.loads((case / "misc.json").read_text("utf-8"))["collator"]
    limit = table["model_max_length"]
    samples = [
        trainer(case, record)
        for record in records(case)
        if "error" not in record and record["input_ids"][:2] == table["input_ids"][0][:2]
    ]
    for i, length in enumerate(table["in_lengths"]):
        found = []
        for done, tokenizer in samples:
            cut = done.cut(limit)
            pad = limit - len(cut.tokens)
            ids = as_recorded(cut.tokens, tokenizer) + [tokenizer.pad_id] * pad
            if len(done.tokens) == length and ids == table["input_ids"][i]:
                found.append(cut.labels + [IGNORE] * pad)
                mask = [int(id != tokenizer.pad_id) for id in ids]
                assert mask == table["attention_mask"][i]
                assert all(at < limit for at, _ in cut.places)
        assert table["labels"][i] in found, (i, length)
