"""Documentation tells the truth: commands exist, Python runs, links and named files are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import retinue
import tiny
from retinue.cli.main import VERBS, run

ROOT = Path(__file__).parents[2]
WRITTEN = {"cli.md", "reference.md"}
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name not in WRITTEN)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.S)


COMMANDS = [
    (page, line.partition(" > ")[0].partition("#")[0].strip())
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: str(value)[-60:])
def test_commands_exist_with_their_options(page, line, capsys):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return
    assert words[0].rpartition("/")[2] == "retinue", line
    verb = words[1:2]
    assert verb[0] in VERBS, line
    assert run([*verb, "--help"]) == 0
    shown = capsys.readouterr().out
    if "COMMAND" in shown:
        verb = words[1:3]
        assert run([*verb, "--help"]) == 0
        shown = capsys.readouterr().out
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in shown, f"{line}: {option}"


def test_the_readme_s_python_runs(tmp_path, monkeypatch, capsys):
    model, processor = tiny.tiny_model()
    retinue.save(model, processor, tmp_path / "path/to/model")
    tiny.picture().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    code = code.replace('images=["photo.jpg"]', 'images=["photo.jpg"], max_new_tokens=4')
    exec(compile(code, "README.md", "exec"), {})
    shape = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"torch\.Size\(\[1, \d+, \d+\]\)", shape)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]+)`", text)
    for name in named:
        if not any(word in name for word in ("NAME", "<")):
            assert (ROOT / name).exists(), name


def test_architecture_names_every_package():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    packages = {path.parent.name for path in (ROOT / "src/retinue").glob("*/__init__.py")}
    tree = text.partition("## Tree")[2].partition("## ")[0]
    assert [name for name in sorted(packages) if f"  {name}/" not in tree] == []


def test_generated_pages_are_fresh(tmp_path):
    """`make docs` writes them; a new verb, option, name or drawing makes them stale."""
    program = [sys.executable, str(ROOT / "docs/generate.py"), str(tmp_path)]
    subprocess.run(program, check=True, capture_output=True, timeout=120)
    for name in WRITTEN:
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), (
            "run `make docs`"
        )
    drawn = [Image.open(place / "img/tinyworld.png") for place in (tmp_path, ROOT / "docs")]
    assert drawn[0].tobytes() == drawn[1].tobytes(), "run `make docs`"


def test_the_api_page_s_python_runs(tmp_path, monkeypatch):
    model, processor = tiny.tiny_model()
    retinue.save(model, processor, tmp_path / "path/to/model")
    tiny.picture().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / "docs/api.md", "python")).replace("=64", "=4")
    names = {}
    exec(compile(code, "api.md", "exec"), names)
    assert names["logits"].ndim == 3
    assert names["loss"].item() > 0
    assert names["text"].startswith("USER:")
    assert (tmp_path / "converted/model.safetensors").exists()
