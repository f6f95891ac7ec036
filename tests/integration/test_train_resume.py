"""A run that was killed goes on as if nothing had happened, bit by bit; SIGTERM saves and ends."""

from __future__ import annotations

import errno
import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_run
from retinue.core.errors import CheckpointError, ConfigError, EnvError
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.train.sinks.jsonl import read_rows
from retinue.train.state import FACTS, Checkpoints
from tiny_run import KILL, TERM, run, run_and_die, write_data

UPDATES = 9
BATCHES = 17  # two an update, and one in the last of an epoch (14 samples)
SAME = ("stage", "step", "loss", "lr", "grad_norm", "tokens", "supervised", "views")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def straight(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    run(root, folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Any:
    """Processes that start with everything imported, each in a fresh state."""
    context = multiprocessing.get_context("forkserver")
    # the server does not search the tests' folder, so tiny_run itself comes later
    context.set_forkserver_preload(["retinue.train.run", "retinue.hub.save", "peft"])
    return context


def curve(folder: Path) -> list[list[Any]]:
    return [[row[key] for key in SAME] for row in read_rows(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load(folder / "model")
    return dict(model.named_parameters())


def code_of(server: Any, *args: Any) -> int:
    process = server.Process(target=run_and_die, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


@pytest.mark.parametrize("while_saving", [False, True, None])
def test_killed_and_resumed_is_straight(
    server: Any, root: Path, straight: Path, tmp_path: Path, while_saving: bool | None
) -> None:
    folder = tmp_path / "run"
    at = random.SystemRandom().randint(1 if while_saving is None else 2, BATCHES)
    assert code_of(server, root, folder, at, bool(while_saving), KILL) == -KILL, f"at {at}"
    assert not (folder / "model").exists()
    result = run(root, folder)
    assert result.exit_code == 0
    assert curve(folder) == curve(straight), f"killed at micro-batch {at}"
    expected, found = weights(straight), weights(folder)
    for name, value in expected.items():
        assert torch.equal(found[name], value), (name, at)
    assert not list((folder / "checkpoints").glob(".*"))


def test_sigterm_saves_and_ends_with_143(
    server: Any, root: Path, straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert code_of(server, root, folder, 9, False, TERM) == 143
    stored = json.loads((folder / "run.json").read_text())
    assert stored["status"] == "stopped by SIGTERM"
    assert stored["counts"]["updates"] == 5
    assert Checkpoints(folder / "checkpoints").latest == folder / "checkpoints" / "step-00000005"
    assert run(root, folder).exit_code == 0
    assert curve(folder) == curve(straight)


def test_a_run_leaves_what_it_promises(straight: Path) -> None:
    stored = json.loads((straight / "run.json").read_text())
    assert stored["status"] == "done"
    assert stored["metrics"]["accuracy"] == 0.5
    assert stored["counts"] == {"updates": UPDATES, "skipped": 0}
    assert {"python", "torch", "retinue"} <= set(stored["versions"])
    tables = json.loads((straight / "trainable.json").read_text())
    assert list(tables) == ["align", "tune"]
    assert tables["align"]["names"] == [
        f"connector.net.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")
    ]
    page = (straight / "report.html").read_text()
    for part in ("<svg", "lora r=2", "what &lt;b&gt;?", "data:image/png;base64", "seed: 3"):
        assert part in page, part
    kept = Checkpoints(straight / "checkpoints").all()
    assert [path.name for path in kept] == ["step-00000007", "step-00000009"]


def test_checkpoints_are_complete_models(straight: Path) -> None:
    last = Checkpoints(straight / "checkpoints").latest
    assert last is not None
    model, processor = load(last)
    final, _ = load(straight / "model")
    for (name, value), other in zip(model.named_parameters(), final.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert processor.tokenizer.vocab_size


def test_losses_fall_and_validation_is_logged(root: Path, tmp_path: Path) -> None:
    result = run(root, tmp_path / "run", data={"validation": 0.3}, report={"sinks": ["jsonl"]})
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    held = [row for row in rows if row["kind"] == "validation"]
    assert [row["step"] for row in held] == [3, 9]
    assert held[1]["loss"] < held[0]["loss"]
    assert result.metrics["validation_loss"] == held[1]["loss"]


def test_workers_and_packing_change_no_position(root: Path, tmp_path: Path) -> None:
    """A resumed packed run with worker processes equals one without workers."""
    data = {"packing": "step", "max_tokens": 128}
    run(root, tmp_path / "straight", data=data)
    half: dict[str, Any] = {"data": {**data, "workers": 1}}
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "run", save_model=interrupt_at(2), **half)
    run(root, tmp_path / "run", **half)
    assert curve(tmp_path / "run") == curve(tmp_path / "straight")


def interrupt_at(step: int) -> Any:
    """A save_model that ends the run, as a crash would, at the checkpoint of a step."""
    saved: list[int] = []

    def save_model(model: Any, processor: Any, place: Path) -> None:
        if len(saved) == step:
            raise KeyboardInterrupt
        saved.append(1)
        save(model, processor, place)

    return save_model


def test_stages_after_lora_resume_on_merged_weights(root: Path, tmp_path: Path) -> None:
    """bf16 base, LoRA, then full weights of which some were LoRA's: still bit-equal."""
    first, second = tiny_run.recipe(root)["train"]["stages"][::-1]
    first |= {"steps": 2}
    second |= {"trainable": {"lm.model.norm.**": "full", "encoders.**": "full"}, "epochs": 1.5}
    del second["steps"]
    options: dict[str, Any] = {
        "train": {"stages": [first, second], "precision": "bf16"},
        "dtype": torch.bfloat16,
    }
    straight, folder = tmp_path / "straight", tmp_path / "run"
    run(root, straight, **options)
    with pytest.raises(KeyboardInterrupt):
        run(root, folder, save_model=interrupt_at(2), **options)
    kept = Checkpoints(folder / "checkpoints").latest
    assert kept is not None
    assert json.loads((kept / FACTS).read_text())["stage"] == 1
    run(root, folder, **options)
    assert curve(folder) == curve(straight)
    assert len(curve(folder)) == 2 + 6  # one and a half epochs of 14 samples by 4
    for name, value in weights(straight).items():
        assert torch.equal(weights(folder)[name], value), name
    base, _ = tiny_run.tiny_model()
    before = dict(base.named_parameters())["lm.model.layers.0.mlp.up_proj.weight"]
    after = weights(folder)["lm.model.layers.0.mlp.up_proj.weight"]
    assert after.dtype == torch.bfloat16
    assert not torch.equal(after, before.bfloat16())


def test_a_full_disk_leaves_the_last_checkpoint(root: Path, tmp_path: Path) -> None:
    count = 0

    def full(model: Any, processor: Any, place: Path) -> None:
        nonlocal count
        count += 1
        if count == 2:
            (Path(place) / "model.safetensors").write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, processor, place)

    with pytest.raises(EnvError, match=r"step-00000002 is intact; free space, then resume"):
        run(root, tmp_path, save_model=full)
    (only,) = Checkpoints(tmp_path / "checkpoints").all()
    load(only)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [only.name]
    assert run(root, tmp_path).exit_code == 0


def test_a_full_disk_in_the_state_writer(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retinue.train import state

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(EnvError, match="No space left"):
        run(root, tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_full_disk_in_a_sink(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retinue.core.log import JsonLines

    write = JsonLines.write

    def full(self: JsonLines, row: Any) -> None:
        if row["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        write(self, row)

    monkeypatch.setattr(JsonLines, "write", full)
    with pytest.raises(EnvError, match=r"metrics\.jsonl: cannot be written \(No space left"):
        run(root, tmp_path)
    assert len(Checkpoints(tmp_path / "checkpoints").all()) == 1


def test_resume_refusals(root: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"already holds checkpoints.*resume to auto"):
        run(root, straight, checkpoint={"resume": "never"})
    with pytest.raises(ConfigError, match="recipe with another seed"):
        run(root, straight, seed=4)
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        run(root, tmp_path / "new", checkpoint={"resume": str(tmp_path)})
    last = Checkpoints(straight / "checkpoints").latest
    assert last is not None
    broken = tmp_path / "checkpoints" / last.name
    broken.mkdir(parents=True)
    (broken / FACTS).write_text((last / FACTS).read_text())
    (broken / "trainer_state.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{cut")
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        run(root, tmp_path)


def test_resume_from_a_named_checkpoint(root: Path, straight: Path, tmp_path: Path) -> None:
    first = Checkpoints(straight / "checkpoints").all()[0]
    tiny_run.run(root, tmp_path, checkpoint={"resume": str(first)})
    assert curve(tmp_path) == curve(straight)[7:]
