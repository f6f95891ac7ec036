"""What every benchmark promises, and that the pair of models under bench_train is one model."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("bench_*.py"))


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_knows_quick_checks_work_and_ends_with_its_line(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert {"common.parser", "common.finish", "common.alternate"} <= names
    finish = next(call for call in calls if ast.unparse(call.func) == "common.finish")
    assert ast.literal_eval(finish.args[0]) == path.stem
    assert {"ratio", "target", "against", "quick"} <= {word.arg for word in finish.keywords}
    text = path.read_text("utf-8")
    assert "common.require(" in text or "agree(" in text, "nothing compares the two sides"


def small() -> Any:
    import peer

    return peer.Dims(
        width=32,
        layers=2,
        heads=4,
        inner=48,
        vocab=200,
        eye_width=24,
        eye_layers=3,
        eye_heads=2,
        side=28,
        patch=14,
    )


def test_peer_and_ours_have_one_loss_and_one_gradient() -> None:
    """fp32: padded rows through transformers, one packed row through ours."""
    import peer

    dims = small()
    theirs = peer.make_peer(dims)
    ours = peer.twin_of(theirs, dims)
    batch = [
        peer.sample(str(n), 9 + 4 * n, dims, torch.Generator().manual_seed(n), with_image=n != 1)
        for n in range(3)
    ]
    wanted = theirs(**peer.padded(batch, ours, dtype=torch.float32)).loss
    packed = peer.packed(batch)
    found = ours.run(packed).loss_sum / len(packed.supervised)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    wanted.backward()
    found.backward()
    for parts in (("lm_head", "lm.lm_head"), ("multi_modal_projector.linear_1", "connector.net.0")):
        name, ours_name = parts if parts[0] == "lm_head" else (f"model.{parts[0]}", parts[1])
        gradients = [m.get_submodule(n).weight.grad for m, n in ((theirs, name), (ours, ours_name))]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_shared_twin_takes_the_tensors_themselves() -> None:
    import peer

    dims = small()
    theirs = peer.make_peer(dims)
    ours = peer.twin_of(theirs, dims, share=True)
    assert ours.lm.head.weight.data_ptr() == theirs.lm_head.weight.data_ptr()
    batch = [peer.sample("0", 12, dims, torch.Generator().manual_seed(0), with_image=True)]
    packed = peer.packed(batch)
    wanted = theirs(**peer.padded(batch, ours, dtype=torch.float32)).loss
    found = ours.run(packed).loss_sum / len(packed.supervised)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_lengths_follow_the_stated_distribution() -> None:
    import peer

    drawn = peer.samples(400, small(), seed=0)
    with_picture = sum(bool(example.items) for example in drawn) / len(drawn)
    text = [len(e.tokens) - small().image_tokens for e in drawn if e.items]
    assert 0.9 < with_picture < 0.98
    assert 160 < sum(text) / len(text) < 240
    supervised = sum(e.num_supervised for e in drawn) / sum(
        len(e.tokens) - small().image_tokens * bool(e.items) for e in drawn
    )
    assert 0.4 < supervised < 0.46


def test_memory_of_the_loss_is_that_of_supervised_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import loss_memory

    monkeypatch.setattr(loss_memory, "WIDTH", 16)
    monkeypatch.setattr(loss_memory, "SUPERVISED", 20)
    device = torch.device("cpu")
    peaks = {
        (form.__name__, T): loss_memory.peak_of(form, T=T, V=500, device=device)[0]
        for form in (loss_memory.ours, loss_memory.theirs)
        for T in (50, 400)
    }
    assert peaks["theirs", 400] > 5 * peaks["theirs", 50]
    assert peaks["ours", 400] < 1.5 * peaks["ours", 50]
