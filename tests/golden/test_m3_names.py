"""Model names from paths, and stopping at keywords, as the originals' tables have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import cases, compared

from retinue.text.names import model_name
from retinue.text.stopping import KeywordsStopping
from retinue.text.tokenizer import Tokenizer

CASES = cases("m3-llava", "*names*", having="outputs.json")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_model_names(case: Path) -> None:
    table = json.loads((case / "outputs.json").read_text("utf-8"))["model_names"]
    assert {path: model_name(path) for path in table} == table
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_keywords_stop(case: Path) -> None:
    tokenizer = Tokenizer.load(case / "tokenizer")
    for row in json.loads((case / "outputs.json").read_text("utf-8"))["stopping"]:
        prompt = len(row["prompt_ids"][0])
        stopping = KeywordsStopping(row["keywords"], tokenizer=tokenizer, prompt_length=prompt)
        assert stopping(row["ids"]) is row["stop"], (row["keywords"], row["text"])
        compared(case)
