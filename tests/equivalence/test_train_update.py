"""An update depends on its samples alone, and text leaves the visual side as it is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import torch

from retinue.core.errors import RetinueError
from retinue.model.freeze import apply_rules
from retinue.model.retinue import Retinue
from retinue.parallel.ranks import Ranks
from retinue.parallel.spec import ParallelSpec
from retinue.train.prepare import VISUAL, prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer, Update
from tiny_train import TinyLoader, joined, tiny_batch, tiny_model


def stage(**changes: Any) -> StageSpec:
    base: dict[str, Any] = {
        "name": "tiny",
        "trainable": {"lm.**": "full", "connector.**": "full", "encoders.**": "full"},
        "steps": 4,
        "global_batch": 4,
        "optim": {"lr": 1e-2, "weight_decay": 0.1},
    }
    return StageSpec.parse(base | changes)


def trainer(model: Retinue, spec: StageSpec, *, data: Any = None, **options: Any) -> Trainer:
    table = apply_rules(model, spec.trainable, lr=spec.optim.lr)
    prepare(model, compute=ParallelSpec(**options.pop("compute", {})))
    loader = data or TinyLoader()
    return Trainer(model, stage=spec, table=table, data=loader, total=spec.steps or 0, **options)


def weights(model: Retinue) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_accumulation_equals_a_large_batch() -> None:
    """Gradients, not weights, are compared: AdamW's first step is a sign and hides their size."""
    batches = [tiny_batch(seed) for seed in range(4)]
    found = []
    for micro in (batches, [joined(batches)], [joined(batches[:3]), batches[3]]):
        one = trainer(tiny_model(), stage(optim={"lr": 1e-2, "clip": None}))
        update = one.update(micro)
        found.append((update, {n: p.grad for n, p in one.model.named_parameters()}))
    first, gradients = found[0]
    for update, others in found[1:]:
        assert update.loss == pytest.approx(first.loss, abs=1e-6)
        assert (update.supervised, update.tokens) == (first.supervised, first.tokens)
        assert update.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
        for name, gradient in gradients.items():
            if gradient is None:
                assert others[name] is None
            else:
                torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-5)


def test_micro_batch_norm_is_the_mean_of_means() -> None:
    batches = [tiny_batch(seed) for seed in range(3)]
    one = trainer(tiny_model(), stage(loss_norm="micro_batch"))
    means = []
    for batch in batches:
        output = tiny_model().run(batch)
        assert output.loss_sum is not None
        assert batch.supervised is not None
        means.append(output.loss_sum.item() / len(batch.supervised))
    assert one.update(batches).loss == pytest.approx(sum(means) / len(means), abs=1e-6)


def test_a_step_of_text_leaves_the_visual_side_unchanged() -> None:
    loader = TinyLoader(images=lambda step: step % 2 == 0)
    model = tiny_model()
    one = trainer(model, stage(), data=loader)
    visual = [name for name, _ in model.named_parameters() if name.startswith(VISUAL)]
    assert visual
    before, moments = weights(model), {}
    for update in one.fit():
        after = weights(model)
        state = {n: dict(one.optimizer.state[p]) for n, p in model.named_parameters()}
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        if update.step % 2:
            assert update.views > 0
            assert any(name.startswith("connector.") for name in changed)
            assert any(name.startswith("encoders.") for name in changed)
            moments = {
                name: {key: value.clone() for key, value in state[name].items()} for name in visual
            }
        else:
            assert update.views == 0
            assert changed
            assert not changed & set(visual)
            for name in visual:
                for key, value in state[name].items():
                    assert torch.equal(value, moments[name][key]), (name, key)
        before = after


def test_the_originals_move_visual_weights_by_momentum() -> None:
    model = tiny_model()
    loader = TinyLoader(images=lambda step: step == 0)
    one = trainer(model, stage(idle_visual="momentum"), data=loader)
    updates = one.fit()
    next(updates)
    before = weights(model)
    assert next(updates).views == 0
    assert not torch.equal(
        weights(model)["connector.net.0.weight"], before["connector.net.0.weight"]
    )


class TwoRanks(Ranks):
    """Two threads that stand for two processes."""

    size = 2

    def __init__(self, rank: int, barrier: Barrier, table: dict[int, Any]) -> None:
        self.rank, self.barrier, self.table = rank, barrier, table

    def exchange(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier.wait(60)
        both = [self.table[0], self.table[1]]
        self.barrier.wait(60)
        return both

    def total(self, values: Sequence[float]) -> list[float]:
        mine, other = self.exchange(list(values))
        return [a + b for a, b in zip(mine, other, strict=True)]

    def add_gradients(self, model: torch.nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        copies = [None if p.grad is None else p.grad.clone() for p in parameters]
        for parameter, *grads in zip(parameters, *self.exchange(copies), strict=True):
            known = [grad for grad in grads if grad is not None]
            parameter.grad = torch.stack(known).sum(0) if known else None


def test_two_ranks_equal_one() -> None:
    """One rank gets pictures, the other only text."""
    batches = [tiny_batch(n, images=n < 2) for n in range(4)]
    alone = trainer(tiny_model(), stage())
    expected = [alone.update(batches) for _ in range(2)][-1]
    barrier: Barrier = Barrier(2)
    table: dict[int, Any] = {}
    pair = [trainer(tiny_model(), stage(), ranks=TwoRanks(n, barrier, table)) for n in (0, 1)]

    def share(rank: int) -> tuple[Update, dict[str, torch.Tensor]]:
        mine = batches[2 * rank : 2 * rank + 2]
        return [pair[rank].update(mine) for _ in range(2)][-1], weights(pair[rank].model)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(share, (0, 1)))
    for update, after in found:
        assert update.loss == pytest.approx(expected.loss, abs=1e-6)
        assert (update.tokens, update.views) == (expected.tokens, expected.views)
        for name, value in weights(alone.model).items():
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-4)
            assert torch.equal(after[name], found[0][1][name])


def test_mixed_batches_train_both_sides() -> None:
    model = tiny_model()
    before = weights(model)
    update = trainer(model, stage()).update([tiny_batch(1, images=False), tiny_batch(2)])
    assert update.views == 1
    changed = {
        name for name, value in weights(model).items() if not torch.equal(before[name], value)
    }
    assert any(name.startswith("connector.") for name in changed)
    assert any(name.startswith("lm.") for name in changed)


@pytest.mark.parametrize("pattern", ["lm.**", "connector.**"])
def test_recomputation_changes_no_gradient(pattern: str) -> None:
    found = []
    for activation in ("none", "full"):
        spec = stage(trainable={pattern: "full"})
        one = trainer(tiny_model(), spec, compute={"activation": activation})
        one.update([tiny_batch(1)])
        found.append(weights(one.model))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_bf16_is_near_fp32_and_keeps_fp32_weights() -> None:
    found = []
    for precision in ("fp32", "bf16"):
        one = trainer(tiny_model(), stage(), precision=precision)
        found.append(one.update([tiny_batch(1)]).loss)
        assert {value.dtype for value in weights(one.model).values()} == {torch.float32}
    # bf16 has 8 bits of mantissa; a loss of about 3.7 moves in its third digit.
    assert found[0] == pytest.approx(found[1], rel=5e-3)
    assert found[0] != found[1]


def test_nothing_supervised_changes_nothing() -> None:
    model = tiny_model()
    one = trainer(model, stage())
    one.update([tiny_batch(1)])
    before = weights(model)
    batch = tiny_batch(2)
    assert batch.labels is not None
    empty = replace(
        batch,
        labels=torch.full_like(batch.labels, -100),
        supervised=torch.zeros(0, dtype=torch.int64),
    )
    assert one.update([empty]).loss == 0.0
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = tiny_model()
    one = trainer(model, stage())
    with torch.no_grad():
        model.lm.get_parameter("lm_head.weight")[0, 0] = float("inf")
    before = weights(model)
    with pytest.raises(RetinueError, match=r"the loss is nan|the loss is inf"):
        one.update([tiny_batch(1)])
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_evaluation_is_the_token_mean_and_leaves_modes_alone() -> None:
    model = tiny_model()
    one = trainer(model, stage(trainable={"lm.**": "full"}))
    modes = [module.training for module in model.modules()]
    batches = [tiny_batch(seed) for seed in range(3)]
    mean, count = one.evaluate(iter(batches))
    assert [module.training for module in model.modules()] == modes
    assert mean == pytest.approx(one.update(batches).loss, abs=1e-6)
    assert count == sum(len(b.supervised) for b in batches if b.supervised is not None)
