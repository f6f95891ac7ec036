"""Data sets of words alone.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.data.published.raw import Raw, Row, prompts, records, text_of

COT = ("aqua", "creak", "ecqa", "esnli", "gsm8k", "qasc", "qed", "sensemaking", "strategyqa")
CAMEL = ("ai_society", "ai_society_zh", "biology", "chemistry", "code", "math", "physics")
ALPACA_COT = (
    *(f"{name}_train" for name in COT),
    *("flan", "gpt4all_without_p3", *CAMEL, "medical", "quora", "stackoverflow"),
    *("GuanacoDataset", "harmless-base_chosen", "helpful-online_chosen", "gpt4tools"),
    *("instinwild_en", "instinwild_ch", "alpaca_data_cleaned"),
    *("alpaca_gpt4_data", "alpaca_gpt4_data_zh", "grade_school_math_instructions"),
    *("plot_screenplay_books_dialog", "poetry_2_song"),
    *("formatted_toolformer-dedupe-only-dataset", "code_alpaca", "dolly"),
)
"""Files of the collection by name, in the order in which they are merged before the shuffle."""

BIG = 800_000
ASK, TELL = "\n### Human: ", "\n### Assistant: "


def refused(text: str) -> bool:
    """Whether a text speaks of pictures, or declines: one of the key words is in it."""
    low = text.lower()
    return any(word in low for word in prompts("refusals"))


def alpaca_cot(raw: Raw) -> Iterator[Row]:
    """Alpaca-CoT: short rows that neither decline nor need a picture; a folder is shuffled."""
    if raw.path.is_file():
        yield from _alpaca(raw.path)
        return
    rank = {name: number for number, name in enumerate(ALPACA_COT)}
    found = sorted(raw.path.rglob("*.json"))
    files = sorted(found, key=lambda file: rank.get(file.stem, len(rank)))
    if not files:
        raise DataError("no .json file", where=str(raw.path), rule="the folder of Alpaca-CoT")
    rows = [row for file in files for row in _alpaca(file)]
    raw.rng.shuffle(rows)
    yield from rows


def _alpaca(file: Path) -> Iterator[Row]:
    for row in records(file):
        parts = [text_of(row, name, default="") for name in ("input", "instruction")]
        parts.append(text_of(row, "output"))
        if any(refused(part) for part in parts):
            continue
        more, asked, told = (part.strip() for part in parts)
        if parts[0]:
            asked += f"\ninput: {more}"
        if len(asked) < 512 and len(told) < 1024:
            yield {"input": asked, "output": told}


def dynosaur(raw: Raw) -> Iterator[Row]:
    """Dynosaur: instruction and input of a line, a blank between them."""
    for row in records(raw.path):
        asked = f"{text_of(row, 'instruction')} {text_of(row, 'input', default='')}"
        yield {"input": asked, "output": text_of(row, "output")}


def lamini(raw: Raw) -> Iterator[Row]:
    """LaMini: instruction and response (JSON, JSONL, CSV or Parquet)."""
    return _pairs(raw, "instruction", "response")


def longform(raw: Raw) -> Iterator[Row]:
    """LongForm: input and output (JSON, JSONL, CSV or Parquet)."""
    return _pairs(raw, "input", "output")


def orca(raw: Raw) -> Iterator[Row]:
    """OpenOrca: question and response (JSON, JSONL, CSV or Parquet); system prompts stay out."""
    return _pairs(raw, "question", "response")


def _pairs(raw: Raw, asked: str, told: str) -> Iterator[Row]:
    for row in records(raw.path):
        yield {"input": text_of(row, asked), "output": text_of(row, told)}


def wizardlm(raw: Raw) -> Iterator[Row]:
    """WizardLM Evol-Instruct: the last question and answer of each conversation."""
    for row in records(raw.path):
        turns = row.get("conversations")
        if not isinstance(turns, list) or len(turns) < 2:
            raise DataError("conversations: fewer than two turns", where=str(raw.path))
        yield {"input": text_of(turns[-2], "value"), "output": text_of(turns[-1], "value")}


def pf_1m(raw: Raw) -> Iterator[Row]:
    """PF-1M: the first 800,000 rows whose answer was not cut off, in the file's order."""
    whole = (row for row in records(raw.path) if not text_of(row, "output").endswith("..."))
    for row in islice(whole, BIG):
        parts = (text_of(row, "instruction", default=""), text_of(row, "input", default=""))
        yield {"input": " ".join(part for part in parts if part), "output": row["output"]}


def ultrachat(raw: Raw) -> Iterator[Row]:
    """UltraChat's release files: openings of a dialog, its last question, its last answer.

    As the original has it, the last question follows every opening, and the answer is always the
    last one; whole rows of 2 to 1536 characters stay. A question that nobody answers is cut off.
    """
    for row in records(raw.path):
        turns = _strings(row.get("data"), where=raw.path)
        turns = turns[: len(turns) // 2 * 2]
        if not turns or refused(turns[-1]):
            continue
        tagged = [turn if not i else f"{(ASK, TELL)[i % 2]}{turn}" for i, turn in enumerate(turns)]
        for stop in range(2, len(tagged) + 1, 2):
            asked = "\n".join([*tagged[:stop], tagged[-2]])
            if 2 <= len(asked) <= 1536:
                yield {"input": f" {asked}", "output": turns[-1]}


def _strings(found: Any, *, where: Path) -> list[str]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DataError("data: no list of turns", where=str(where), rule="UltraChat's JSONL")
    return found
