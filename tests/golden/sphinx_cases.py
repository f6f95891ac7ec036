"""What the golden tests of SPHINX share: cases by kind, a folder to load, batches of ids."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from cases import cases
from safetensors.torch import load_file
from torch import Tensor

from retinue.compat.sphinx import SPHINXModel
from retinue.types import Batch

SYSTEM = "sphinx"


def with_checkpoint(*, sees: bool, key: str) -> list[Path]:
    """Cases with one checkpoint and `key` among their outputs, with or without encoders."""
    found = []
    for case in cases(SYSTEM, "*", having="checkpoint"):
        outputs = read(case)[0]
        if key in outputs and ("dims" in outputs) == sees:
            found.append(case)
    return found


@cache
def read(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """outputs.json and outputs.safetensors of a case."""
    tensors = case / "outputs.safetensors"
    outputs = json.loads((case / "outputs.json").read_text("utf-8"))
    return outputs, load_file(tensors) if tensors.exists() else {}


def heads_of(dims: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What encoders.json holds for the recorded sizes: heads, which no weight tells."""
    given = {"dinov2": {"num_attention_heads": dims["dinov2"]["heads"]}}
    if "clip" in dims:
        clip = dims["clip"]
        given["clip"] = {"num_attention_heads": clip["width"] // clip["head_width"]}
    if "q_former" in dims:
        query = dims["q_former"]
        given["eva"] = {"num_attention_heads": query["vit_heads"]}
        given["qformer"] = {"heads": query["heads"]}
    return given


def folder(case: Path) -> Path:
    """The case's checkpoint, with encoders.json beside it where the case states heads."""
    dims = read(case)[0].get("dims")
    if dims is None:
        return case / "checkpoint"
    made = Path(tempfile.mkdtemp(prefix="sphinx-"))
    for file in (case / "checkpoint").iterdir():
        os.symlink(file, made / file.name)
    (made / "encoders.json").write_text(json.dumps(heads_of(dims)), encoding="utf-8")
    return made


@cache
def loaded(case: Path) -> SPHINXModel:
    """The case's model in fp32 behind the original's interface."""
    length = int(read(case)[0].get("max_seq_len", 256))
    return SPHINXModel.from_pretrained(
        folder(case), dtype=torch.float32, device="cpu", max_seq_len=length
    )


def batch_of(ids_BT: Tensor, *, start: int = 0) -> Batch:
    """Rows of text ids without padding, from position `start` on."""
    positions = torch.arange(start, start + ids_BT.shape[1]).expand_as(ids_BT)
    return Batch(
        ids=[str(row) for row in range(len(ids_BT))],
        tokens=ids_BT,
        positions=positions.contiguous(),
        segments=torch.ones_like(ids_BT),
    )


def check_scores(name: str, scores: Tensor, tensors: dict[str, Tensor], *, atol: float) -> None:
    """Compare (..., V) scores with the recorded strides, log-sum-exps and best ids."""
    seen = 0
    for key, wanted in tensors.items():
        head, _, tail = key.rpartition("_")
        if head != name:
            continue
        seen += 1
        if tail.startswith("stride"):
            got = scores[..., :: int(tail.removeprefix("stride"))]
            torch.testing.assert_close(got, wanted, atol=atol, rtol=0)
        elif tail == "lse":
            torch.testing.assert_close(scores.logsumexp(-1), wanted, atol=atol, rtol=0)
        elif tail == "argmax":
            assert torch.equal(scores.argmax(-1), wanted.long())
        else:
            raise AssertionError(f"{key}: no rule for it")
    assert seen, f"nothing recorded under {name}"
