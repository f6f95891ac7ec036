"""Training some rows of the word table leaves all others bit by bit as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retinue.core.errors import ConfigError
from retinue.model.freeze import TrainableTable, apply_rules
from retinue.model.freeze_rules import Rule
from retinue.model.retinue import Retinue
from retinue.parallel.spec import ParallelSpec
from retinue.train.prepare import prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer
from tiny_train import VOCAB, TinyLoader, tiny_batch, tiny_model

TABLE = "lm.model.embed_tokens.weight"
IDS = {"<image>": 7, "<|endofchunk|>": 30}


def stage(rule: dict[str, Any], **optim: Any) -> StageSpec:
    return StageSpec.parse(
        {
            "name": "rows",
            "trainable": {TABLE: rule, "connector.**": "full"},
            "steps": 6,
            "global_batch": 4,
            "optim": {"lr": 1e-2, "weight_decay": 0.5, **optim},
        }
    )


def made(spec: StageSpec, model: Retinue) -> TrainableTable:
    rules: dict[str, Rule] = spec.trainable
    return apply_rules(model, rules, lr=spec.optim.lr, id_of=IDS.get)


def trained(spec: StageSpec) -> tuple[torch.Tensor, torch.Tensor, Trainer]:
    """The word table before and after six updates."""
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(TABLE)[3] = -0.0  # a sign that a sum with zero would take away
    old = model.get_parameter(TABLE).detach().clone()
    table = made(spec, model)
    prepare(model, compute=ParallelSpec())
    trainer = Trainer(model, stage=spec, table=table, data=TinyLoader(), total=6)
    for step in range(6):
        trainer.update([tiny_batch(2 * step, rows=4), tiny_batch(2 * step + 1, rows=4)])
    return old, model.get_parameter(TABLE).detach(), trainer


@pytest.mark.parametrize("kind", ["adamw", "muon", "adamw_plain_eps"])
@pytest.mark.parametrize("decay", ["matrices", "llava"])
def test_only_these_rows_move(kind: str, decay: str) -> None:
    wanted = {"rows": {"of": ["<image>", "<|endofchunk|>", 12]}}
    old, new, trainer = trained(stage(wanted, kind=kind, decay=decay))
    same = (old.view(torch.int32) == new.view(torch.int32)).all(dim=1)
    assert (~same).nonzero().flatten().tolist() == [7, 12, 30]
    decayed = {n for g in trainer.groups if g.weight_decay for n in g.names}
    assert TABLE not in decayed
    assert "connector.net.0.weight" in decayed


def test_the_rows_move_as_they_do_when_all_train() -> None:
    """Clipping apart, whose norm counts what trains."""
    _, some, _ = trained(stage({"rows": {"of": [30]}}, clip=None, lr=1e-3))
    _, whole, _ = trained(stage({"full": {}}, clip=None, lr=1e-3, weight_decay=0.0))
    first = tiny_model().get_parameter(TABLE)[30]
    # other rows move there, too, and change later gradients a little
    torch.testing.assert_close(some[30] - first, whole[30] - first, atol=3e-3, rtol=0)
    assert torch.sign(some[30] - first).eq(torch.sign(whole[30] - first)).float().mean() > 0.8


def test_the_norm_of_clipping_counts_these_rows_only() -> None:
    model, spec = tiny_model(), stage({"rows": {"of": [30]}})
    table = made(spec, model)
    prepare(model, compute=ParallelSpec())
    trainer = Trainer(model, stage=spec, table=table, data=TinyLoader(), total=6)
    found = trainer.update([tiny_batch(0)])
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients[TABLE].abs().sum(dim=1).nonzero().flatten().tolist() in ([30], [])
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    scale = min(1.0, 1.0 / found.grad_norm)
    assert norm.item() == pytest.approx(found.grad_norm * scale, rel=1e-4)


def test_the_table_says_how_much_trains_and_the_rate_is_its_own() -> None:
    model = tiny_model()
    spec = stage({"rows": {"of": ["<image>", 12], "lr": "x0.1"}})
    table = made(spec, model)
    row = next(row for row in table.rows if row.group == TABLE)
    assert (row.mode, row.trainable, row.total) == ("rows 2", 2 * 16, VOCAB * 16)
    assert row.lr == pytest.approx(1e-3)
    assert table.rows_of == {TABLE: (7, 12)}


@pytest.mark.parametrize(
    ("pattern", "of", "why"),
    [
        (TABLE, ["<page>"], "no token '<page>'"),
        (TABLE, [VOCAB], f"it has {VOCAB} rows"),
        (TABLE, [-1], "row -1"),
        ("connector.net.0.weight", [1], "belongs to a Dense"),
    ],
)
def test_rows_that_are_not_there(pattern: str, of: list[Any], why: str) -> None:
    spec = StageSpec.parse(
        {**stage({"full": {}}).model_dump(), "trainable": {pattern: {"rows": {"of": of}}}}
    )
    with pytest.raises(ConfigError, match=why):
        made(spec, tiny_model())
    with pytest.raises(ConfigError, match="of"):
        StageSpec.parse({**spec.model_dump(), "trainable": {TABLE: {"rows": {"of": []}}}})
