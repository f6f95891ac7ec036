"""The table of released checkpoints: tests that it names exist, commands are verbs of ours, and
every published figure of the benchmarks belongs to a checkpoint or to a named stranger."""

import re
import shlex
from pathlib import Path

import pytest

from retinue.cli.main import VERBS
from retinue.core.paths import tasks
from retinue.eval.task import load_task
from retinue.hub.released import released

ROOT = Path(__file__).parents[2]
STRANGERS = {"LLaVA-NeXT-7B, 2880 tokens"}
"""Models of published figures that no system released under that name."""


@pytest.mark.parametrize("one", released(), ids=lambda one: one.id)
def test_what_a_checkpoint_says_is_there(one):
    file, _, name = one.test.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), one.test
    program, verb, *_ = shlex.split(one.load)
    assert program == "retinue"
    assert verb in VERBS
    page = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")
    assert f"`{one.id}`" in page


def test_each_system_and_no_id_twice():
    rows = released()
    assert len({one.id for one in rows}) == len(rows)
    systems = {one.system for one in rows}
    assert systems >= {"LLaVA", "M3", "SPHINX", "OpenFlamingo", "LLaVA-MOSS2", "Cerebras ModelZoo"}


def test_published_figures_belong_to_a_checkpoint():
    rows = released()
    for name, path in tasks().items():
        for reference in load_task(path).references:
            owners = [one.id for one in rows if one.owns(reference.model)]
            assert len(owners) == 1 or reference.model in STRANGERS, (name, reference.model)
