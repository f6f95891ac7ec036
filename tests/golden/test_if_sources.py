"""Published data sets converted to the instruction format, row by row as the original's scripts."""

import json
import random
import re

import pytest
from cases import cases, compared
from flamingo import SYSTEM

from retinue.data.published import PUBLISHED, Raw

FOUND = [
    (case, script)
    for case in cases(SYSTEM, "*", having="index.json")
    for script in json.loads((case / "index.json").read_text("utf-8"))
    if script["ran"]
]
IMAGES = {"svit": "src/raw", "mscoco": "src", "textcaps": "src", "hme100k": "src"}
"""Where the recorded scripts looked for pictures, if not where they do by default."""

ORDER = {"gqa": ("val", "train"), "vsr": ("train", "dev", "test")}
"""Parts in the order of the script, where it is not train before all others."""


def name_of(script):
    """The converter of a recorded script: its case is named after it."""
    return max((n for n in PUBLISHED.names() if script["case"].startswith(n)), key=len)


def parts(script, name):
    """Recorded outputs with the word that tells the part, in the order in which they were made."""
    order = ORDER.get(name, ("train", "val", "test"))

    def rank(output):
        last = output.rpartition("/")[2]
        return next((i for i, word in enumerate(order) if word in last), len(order))

    return sorted(script["outputs"], key=rank)


def sources(folder, name, output):
    """The source file of an output: that of its name or of its part."""
    files = sorted(p for p in (folder / "src").rglob("*") if p.is_file() and p.stem != ".keep")
    last = output.rpartition("/")[2]
    same = [file for file in files if file.name == last]
    if same:
        return same
    word = next((w for w in ("train", "val", "dev", "test") if re.search(w, last)), "")
    wanted = {"vqav2": "questions", "svit": "svit.json"}.get(name, "")
    kept = [f for f in files if wanted in f.name and f.name != "image_data.json"]
    return [file for file in kept if word in file.name] or kept


@pytest.mark.parametrize(("case", "script"), FOUND, ids=[s["case"] for _, s in FOUND])
def test_rows(case, script):
    folder, name = case / script["case"], name_of(script)
    rng = random.Random(script["python_random_seed"])
    read = PUBLISHED.get(name)
    images = IMAGES.get(name)
    if name == "alpaca_cot":
        check_alpaca(folder, script, read)
    elif name == "ultrachat":
        (output,) = script["outputs"]
        files = sorted((folder / "src").iterdir(), key=release)
        rows = [row for file in files for row in read(Raw(path=file, rng=rng))]
        assert rows == json.loads((folder / output).read_text("utf-8"))
    elif name == "levir_cc":
        (source,) = (folder / "src").glob("*.json")
        for output in script["outputs"]:
            rng = random.Random(script["python_random_seed"])
            split = output.rpartition("_")[2].removesuffix(".json")
            rows = list(read(Raw(path=source, rng=rng, split=split)))
            assert rows == json.loads((folder / output).read_text("utf-8"))
    else:
        for output in parts(script, name):
            (source,) = sources(folder, name, output)
            rows = list(read(Raw(path=source, images=images, rng=rng)))
            assert rows == json.loads((folder / output).read_text("utf-8")), output
    compared(case)


def release(file):
    """UltraChat's files in the order of the script."""
    return "existent" not in file.name, "Questions" in file.name, file.name


def check_alpaca(folder, script, read):
    """Each file's rows, and all of them merged and shuffled."""
    for output in script["outputs"]:
        file, last = folder / output, output.rpartition("/")[2]
        wanted = json.loads(file.read_text("utf-8")) if file.exists() else []  # empty ones are gone
        if "merged" in last:
            rng = random.Random(script["python_random_seed"])
            assert list(read(Raw(path=folder / "src", rng=rng))) == wanted
        else:
            found = (folder / "src").rglob(last)
            assert [row for source in found for row in read(Raw(path=source))] == wanted
