"""Write docs/cli.md from the verbs' help, docs/reference.md from the registries, and the pictures.

The pages go to the folder named, docs/ by default.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "80"  # help pages wrap at the terminal's width

import typer

from retinue.cli.ls import EVERY, listing
from retinue.cli.main import VERBS, run
from retinue.core.paths import tasks
from retinue.eval.measures import MEASURES
from retinue.eval.scorers import SCORERS
from retinue.eval.submissions import SUBMISSIONS
from retinue.eval.task import load_task
from retinue.hub.released import released
from retinue.world.contact import contact_sheet
from retinue.world.make import make_picture
from retinue.world.options import WorldOptions

HERE = Path(__file__).parent
NOTE = "<!-- written by docs/generate.py; do not edit -->\n\n"


def help_of(command: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run([*command, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def cli() -> str:
    """One section per verb and sub-verb, with its help."""
    parts = [NOTE + "# Command line\n", f"```\n{help_of([])}\n```\n"]
    for verb, module in VERBS.items():
        __import__(module)
        found = typer.main.get_command(sys.modules[module].app)
        subs = list(getattr(found, "commands", {}))
        parts.append(f"## {verb}\n\n```\n{help_of([verb])}\n```\n")
        parts += [f"### {verb} {sub}\n\n```\n{help_of([verb, sub])}\n```\n" for sub in subs]
    return "\n".join(parts)


def reference() -> str:
    """One table per family of names."""
    parts = [NOTE + "# Names\n\nWhat `retinue ls FAMILY` prints: the words that recipes use.\n"]
    for family in EVERY:
        rows = "".join(f"| `{name}` | {line} |\n" for name, line in listing(family).items())
        parts.append(f"## {family}\n\n| name | what |\n|---|---|\n{rows}")
    return "\n".join(parts)


def benchmarks() -> str:
    """The packaged benchmarks, what scores them, and the published figures that come with them."""
    parts = [
        NOTE
        + "# Benchmarks\n\nWhat `retinue eval PATH NAME --tasks-root FOLDER` knows; how to use "
        "them and add your own: [evaluation](evaluation.md).\n\n"
        "| name | what | files in | scorer, measure | source |\n|---|---|---|---|---|\n"
    ]
    found = {name: load_task(path) for name, path in tasks().items()}
    for name, task in found.items():
        how = task.scorer if task.measure == "mean" else f"{task.scorer}, {task.measure}"
        about = " ".join(task.about.split())
        parts.append(f"| `{name}` | {about} | `{task.folder or name}/` | {how} | {task.source} |\n")
    parts.append(
        "\n## Scorers\n\nWhat each follows and where its rule comes from; literal cases of every one "
        "stand in `tests/unit/test_scorers_official.py`, those recorded from the originals' own "
        "scripts in `tests/golden`.\n\n| scorer | rule and source | benchmarks |\n|---|---|---|\n"
    )
    for name in SCORERS:
        users = ", ".join(key for key, task in found.items() if task.scorer == name)
        parts.append(f"| `{name}` | {said(SCORERS.get(name))} | {users} |\n")
    for title, family in (("Measures", MEASURES), ("Files to hand in", SUBMISSIONS)):
        rows = "".join(f"| `{name}` | {said(family.get(name))} |\n" for name in family)
        parts.append(f"\n## {title}\n\n| name | what |\n|---|---|\n{rows}")
    for name, task in found.items():
        if not task.references:
            continue
        head = "| model | score | source |\n|---|---|---|\n"
        parts.append(f"\n## {name}: published figures\n\n{head}")
        for one in task.references:
            note = f" ({one.note})" if one.note else ""
            parts.append(f"| {one.model} | {one.score:g} | {one.source}{note} |\n")
    return "".join(parts)


def checkpoints() -> str:
    """Every released checkpoint of the five systems, with what loads it and what it scored."""
    parts = [
        NOTE
        + "# Released checkpoints\n\nWhat the five systems have released, the command that opens it "
        "here, and the test that covers its format with a small checkpoint of the same layout (the "
        "released files themselves are too large for tests). Licences are those that the checkpoints' "
        "pages or their bases' name; look there before you use one. Scores are published ones, not "
        "ours; all of them, with sources: [benchmarks](benchmarks.md). `SPHINX-2k` was not released.\n"
    ]
    tasks_by_name = {name: load_task(path) for name, path in tasks().items()}
    head = "| checkpoint | parts | licence | opened by | test of its format | published scores |\n"
    every = released()
    for system in dict.fromkeys(one.system for one in every):
        parts.append(f"\n## {system}\n\n{head}|---|---|---|---|---|---|\n")
        for one in (found for found in every if found.system == system):
            scores = [
                f"{name} {next(r.score for r in task.references if one.owns(r.model)):g}"
                for name, task in tasks_by_name.items()
                if any(one.owns(reference.model) for reference in task.references)
            ]
            note = f" ({one.note})" if one.note else ""
            parts.append(
                f"| `{one.id}`{note} | {one.parts} | {one.licence} | `{one.load}` | `{one.test}` "
                f"| {', '.join(scores)} |\n"
            )
    return "".join(parts)


def said(thing: object) -> str:
    """A documentation string on one line."""
    return " ".join((thing.__doc__ or "").split())


def tiny_world(file: Path) -> None:
    """Pictures as the quickstart draws them, then some with words and with stick figures."""
    rows = [({}, "rec", 16), ({"words": 1, "max_objects": 2}, "ocr", 4)]
    rows += [({"figures": 1, "max_objects": 2}, "pose", 4)]
    scenes = [
        make_picture(
            number, name="docs", seed=0, options=WorldOptions(**fields), tasks=(task,), turns=1
        )[0]
        for fields, task, count in rows
        for number in range(count)
    ]
    contact_sheet(scenes, gap=4).save(file, optimize=True)


PAGES = {
    "cli.md": cli,
    "reference.md": reference,
    "benchmarks.md": benchmarks,
    "checkpoints.md": checkpoints,
}
PICTURES = {"img/tinyworld.png": tiny_world}

if __name__ == "__main__":
    place = Path(sys.argv[1]) if sys.argv[1:] else HERE
    (place / "img").mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (place / name).write_text(make(), "utf-8")
    for name, draw in PICTURES.items():
        draw(place / name)
    print(*(place / name for name in (*PAGES, *PICTURES)), sep="\n")
