"""Two sources in one batch, their losses averaged apart, against two loaders and two backwards."""

from dataclasses import replace

import pytest
import torch

from retinue.core.errors import ConfigError
from retinue.model.freeze import apply_rules
from retinue.parallel.ranks import Ranks
from retinue.parallel.spec import ParallelSpec
from retinue.train.prepare import prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer
from retinue.train.weigh import weighed
from retinue.types import IGNORE
from tiny_train import TinyLoader, joined, tiny_batch, tiny_model

WEIGHTS = {"laion": 0.2, "mmc4": 1.0}


def trainer(**changes):
    spec = StageSpec.parse(
        {
            "name": "tiny",
            "trainable": {"lm.**": "full", "connector.**": "full"},
            "steps": 4,
            "global_batch": 4,
            "optim": {"lr": 1e-2, "clip": None},
            "loss_weights": WEIGHTS,
            **changes,
        }
    )
    model = tiny_model()
    table = apply_rules(model, spec.trainable, lr=1e-2)
    prepare(model, compute=ParallelSpec())
    return Trainer(model, stage=spec, table=table, data=TinyLoader(), total=4)


def kinds(batch, *names):
    return replace(batch, kinds=list(names))


def batches():
    """Three rows of captions, two of documents, with different numbers of targets."""
    return [tiny_batch(seed) for seed in range(3)], [tiny_batch(seed, length=16) for seed in (7, 8)]


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_are_those_of_two_backwards(mixed):
    laion, mmc4 = batches()
    one = trainer()
    if mixed:  # documents of both types in one micro-batch
        wide = [tiny_batch(seed) for seed in (7, 8)]
        mmc4 = wide
        rows = joined([laion[0], wide[0]])
        given = [
            kinds(rows, "laion", "mmc4"),
            kinds(joined([*laion[1:], wide[1]]), "laion", "laion", "mmc4"),
        ]
    else:
        given = [kinds(b, "laion") for b in laion] + [kinds(b, "mmc4") for b in mmc4]
    update = one.update(given)
    other = trainer().model
    loss = torch.zeros(())
    for group, weight in ((laion, 0.2), (mmc4, 1.0)):
        outputs = [other.run(batch) for batch in group]
        count = sum(len(batch.supervised) for batch in group)
        loss = loss + weight * sum(output.loss_sum for output in outputs) / count
    loss.backward()
    assert update.loss == pytest.approx(float(loss.detach()), abs=1e-6)
    grads = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    ours = dict(one.model.named_parameters())
    for name, gradient in grads.items():
        if ours[name].grad is not None:
            torch.testing.assert_close(ours[name].grad, gradient, atol=1e-6, rtol=1e-5)
    assert any(ours[name].grad is not None for name in grads)


def test_packed_documents_have_weights_of_their_own():
    first = kinds(tiny_batch(0, images=False, rows=1, length=8), "laion")
    second = kinds(tiny_batch(1, images=False, rows=1, length=12), "mmc4")
    row = {
        name: torch.cat([getattr(first, name), getattr(second, name)], dim=1)
        for name in ("tokens", "positions", "labels")
    }
    segments = torch.cat([torch.ones(1, 8), torch.full((1, 12), 2)], dim=1).long()
    supervised = (row["labels"].flatten() != IGNORE).nonzero().flatten()
    packed = replace(
        first, **row, segments=segments, supervised=supervised, ids=["a", "b"],
        kinds=["laion", "mmc4"],
    )  # fmt: skip
    (made,) = weighed([packed], WEIGHTS, ranks=Ranks())
    flat = made.weights.flatten()
    assert flat[supervised[supervised < 8]].sum() == pytest.approx(0.2)
    assert flat[supervised[supervised >= 8]].sum() == pytest.approx(1.0)
    assert flat.sum() == pytest.approx(1.2)


def test_a_type_that_is_missing_counts_for_nothing_and_an_unknown_one_is_named():
    laion, _ = batches()
    update = trainer().update([kinds(batch, "laion") for batch in laion])
    assert update.loss > 0
    for kind in ("other", None):
        with pytest.raises(ConfigError, match="loss_weights"):
            trainer().update([kinds(laion[0], kind)])
    with pytest.raises(ConfigError, match="objective sft"):
        trainer(objective={"kind": "elastic", "scales": [1]})
