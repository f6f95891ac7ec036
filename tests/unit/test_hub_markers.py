"""First-stage files that also hold the embeddings of image marks (`mm_use_im_start_end`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import cases

from retinue.convert.detect import detect
from retinue.convert.weights import Weights
from retinue.hub.load import load

CASES = cases("m3-llava", "train*", having="train.json")


@pytest.mark.parametrize("grown", [0, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_marker_rows_are_the_last_of_the_vocabulary(case: Path, tmp_path: Path, grown: int) -> None:
    folders = {detect(path.parent).format: path.parent for path in case.glob("*/config.json")}
    source, base = folders["llava-projector"], folders["causal-lm"]
    shutil.copytree(source, tmp_path / "stage1")
    config = json.loads((source / "config.json").read_text())
    config |= {"mm_use_im_start_end": True, "vocab_size": config["vocab_size"] + grown}
    (tmp_path / "stage1/config.json").write_text(json.dumps(config))
    state = torch.load(source / "mm_projector.bin", weights_only=True)
    state["model.embed_tokens.weight"] = torch.randn(2, config["hidden_size"])
    torch.save(state, tmp_path / "stage1/mm_projector.bin")
    tower = next(case.glob("*/*/preprocessor_config.json")).parent
    model, processor = load(
        tmp_path / "stage1", base=base, encoders={"clip": tower}, dtype=torch.float32
    )
    table, head = model.lm.embedding.weight, model.lm.head.weight
    old = Weights.of(base)
    kept = config["vocab_size"] - 2
    assert table.shape[0] == head.shape[0] == config["vocab_size"]
    torch.testing.assert_close(table[kept:], state["model.embed_tokens.weight"], atol=2e-3, rtol=0)
    assert torch.equal(table[:kept], old.read("model.embed_tokens.weight")[:kept].float())
    rows = config["vocab_size"] - grown
    assert torch.equal(head[:rows], old.read("lm_head.weight").float())
    assert processor.template.bounds == ("<im_start>", "<im_end>")
