"""The first snippet of SPHINX's README as it stands there, its import line changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny_sphinx import tiny

SNIPPET = """
from retinue.compat.sphinx import SPHINXModel
from PIL import Image
import torch

model = SPHINXModel.from_pretrained(pretrained_path="path/to/checkpoint", with_visual=True)

image = Image.open("examples/1.jpg")
qas = [["What's in the image?", None]]

with torch.cuda.amp.autocast(dtype=torch.float16):
    response = model.generate_response(qas, image, max_gen_len=1024, temperature=0.9, top_p=0.5, seed=0)

print(response)

# if you wanna continue
qas[-1][-1] = response
qas.append(["Then how does it look like?", None])
with torch.cuda.amp.autocast(dtype=torch.float16):
    response2 = model.generate_response(qas, image, max_gen_len=1024, temperature=0.9, top_p=0.5, seed=0)

print(response2)
"""  # noqa: E501
STEPS = 12
"""In place of 1024: a model of random weights never ends by itself."""


# what the snippet says of autocast warns on a machine without an accelerator, and when it is old
@pytest.mark.filterwarnings("ignore:.*autocast.*")
@pytest.mark.parametrize("name", ["llama_ens", "llama_ens5"])
def test_first_snippet_with_its_picture(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: Any, draw: Any
) -> None:
    """It runs, twice the same; the picture is seen; text and pictures of another make another."""
    _, folder = tiny(name, tmp_path)
    (tmp_path / "path/to").mkdir(parents=True)
    folder.rename(tmp_path / "path/to/checkpoint")
    (tmp_path / "examples").mkdir()
    draw(40, 30).save(tmp_path / "examples/1.jpg")
    monkeypatch.chdir(tmp_path)
    text = SNIPPET.replace("max_gen_len=1024", f"max_gen_len={STEPS}")
    runs: list[dict[str, Any]] = []
    for _ in range(2):
        names: dict[str, Any] = {}
        exec(compile(text, "README", "exec"), names)
        runs.append(names)
    first = runs[0]
    assert first["response"] == runs[1]["response"]
    assert first["response2"] == runs[1]["response2"]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{first['response']}\n{first['response2']}\n")
    model = first["model"]
    seen = [
        model.compute_logits(["What's in the image?"], [picture])[0]
        for picture in (first["image"], draw(40, 30).rotate(90))
    ]
    assert not seen[0].equal(seen[1])
