"""Published data sets converted to the instruction format, row by row as the original's scripts."""

import json

import pytest
from cases import cases, compared
from flamingo import SYSTEM

from retinue.data.sources import SOURCES

FOUND = [
    (case, folder)
    for case in cases(SYSTEM, "*", having="index.json")
    for folder in sorted(case.iterdir())
    if folder.name in SOURCES
]


@pytest.mark.parametrize(("case", "folder"), FOUND, ids=[folder.name for _, folder in FOUND])
def test_rows(case, folder):
    outputs = sorted((folder / "converted_datasets").rglob("*.json"))
    files = sorted((folder / "src").glob("*.json"))
    assert outputs
    for output in outputs:
        named = [file for file in files if file.name == output.name]
        (source,) = named or files
        rows = json.loads(output.read_text("utf-8"))
        assert list(SOURCES[folder.name](source)) == rows
    compared(case)
