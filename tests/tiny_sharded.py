"""What processes that share weights compute, beside what one computes: cases for `tiny_ranks`.

Pictures are dealt unevenly: some steps have none, in some a single process has some.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import MixtralConfig

import tiny_cross
import tiny_train
from retinue.model.build import build_model
from retinue.model.freeze import apply_rules
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.ops.collate import collate
from retinue.parallel.grid import ranks_of_launch
from retinue.parallel.spec import ParallelSpec
from retinue.parallel.tensors import own
from retinue.train.objectives.sft import Sft, SftSpec
from retinue.train.prepare import prepare
from retinue.train.random import seed_all
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer
from retinue.types import Batch

STEPS, MICRO = 5, 4
EVERYTHING = {"lm.**": "full", "connector.**": "full", "encoders.**": "full"}
ROWS: dict[str, Any] = {
    "connector.**": "full",
    "lm.model.embed_tokens.weight": {"rows": {"of": [5, 12, 30]}},
}
LORA = {"lm.**": {"lora": {"r": 2}}, "connector.**": "full"}


def llama() -> Retinue:
    return tiny_train.tiny_model()


def mixtral() -> Retinue:
    base = tiny_train.tiny_config()
    fields = base.text_config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    text = MixtralConfig(**fields, num_local_experts=4, num_experts_per_tok=2)
    return build_model(RetinueConfig(text, base.encoders, base.spec), seed=0)


def cross() -> Retinue:
    return tiny_cross.make()


def elastic() -> Retinue:
    base = tiny_train.tiny_config()
    connector = {"kind": "elastic", "of": base.spec["connector"]}
    return build_model(
        RetinueConfig(base.text_config, base.encoders, {**base.spec, "connector": connector}),
        seed=0,
    )


def seen(step: int, micro: int) -> bool:
    """Which micro-batches have pictures: none in step 3, else those of one process or of both."""
    return step != 3 and micro in ((0, 3) if step % 2 else (0, 2))


def batches(step: int) -> list[Batch]:
    return [
        tiny_train.tiny_batch(100 * step + m, length=12 + m, images=seen(step, m))
        for m in range(MICRO)
    ]


def crossed(step: int) -> list[Batch]:
    found = []
    for m in range(MICRO):
        places = [1, 5] if seen(step, m) else []
        one = tiny_cross.example(f"{step}-{m}", 9 + m, places, seed=100 * step + m)
        found.append(collate([one], pad_id=0, train=True))
    return found


CASES: dict[str, dict[str, Any]] = {
    "full": {"parallel": {"shard": "reshard"}},
    "full, kept": {"parallel": {"shard": "keep"}},
    "full, recomputed": {"parallel": {"shard": "reshard", "activation": "full"}},
    "lora": {"parallel": {"shard": "fsdp"}, "trainable": LORA},
    "align": {"parallel": {"shard": "reshard"}, "trainable": {"connector.**": "full"}},
    "rows": {"parallel": {"shard": "reshard"}, "trainable": ROWS},
    "rows, replicas": {"parallel": {"shard": "none"}, "trainable": ROWS},
    "replicas": {"parallel": {"shard": "none"}},
    "mixtral": {"parallel": {"shard": "reshard"}, "model": mixtral, "objective": {"kind": "moe"}},
    "cross": {"parallel": {"shard": "reshard"}, "model": cross, "batches": crossed},
    "elastic": {
        "parallel": {"shard": "reshard"},
        "model": elastic,
        "objective": {"kind": "elastic", "tower": "still"},
    },
}

BF16: dict[str, Any] = {"parallel": {"shard": "keep", "gather": "bf16"}, "precision": "bf16"}
"""Layers' weights travel in fewer bits."""


def stage(case: dict[str, Any]) -> StageSpec:
    return StageSpec.parse(
        {
            "name": "tiny",
            "trainable": case.get("trainable", EVERYTHING),
            "steps": STEPS,
            "global_batch": MICRO,
            # a small eps makes steps of gradients that are rounding alone
            "optim": {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-5, **case.get("optim", {})},
            "objective": case.get("objective", {"kind": "sft"}),
        }
    )


def train(case: dict[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """Logits, five updates, a validation and one more update of a case."""
    spec, parts = ParallelSpec.parse({} if alone else case["parallel"]), stage(case)
    ranks = ranks_of_launch(spec, torch.device("cpu"))
    model, deal = case.get("model", llama)(), case.get("batches", batches)
    seed_all(0)
    table = apply_rules(model, parts.trainable, lr=parts.optim.lr)
    prepare(model, compute=spec)
    ranks.divide(model)
    shapes = {
        name: (tuple(parameter.shape), tuple(own(parameter).shape))
        for name, parameter in model.named_parameters()
    }
    trainer = Trainer(
        model,
        stage=parts,
        table=table,
        data=tiny_train.TinyLoader(),
        total=STEPS + 1,
        ranks=ranks,
        precision=case.get("precision", "fp32"),
    )

    def mine(step: int) -> list[Batch]:
        return deal(step)[ranks.data_rank :: ranks.data_size]

    asked = replace(deal(1)[0], labels=None, supervised=None)
    with torch.no_grad(), trainer.autocast():
        logits = ranks.output(Sft(SftSpec()), model, asked, pictures=True).logits
    ranks.release()
    updates, untouched = [], []
    for step in range(STEPS):
        updates.append(trainer.update(mine(step)))
        named = model.named_parameters()
        untouched.append(sorted(n for n, p in named if p.requires_grad and p.grad is None))
    validation = trainer.evaluate(iter(mine(STEPS)))
    updates.append(trainer.update(mine(STEPS + 1)))
    moments = ranks.whole(model, {n: trainer.optimizer.state[p] for n, p in picked(model)})
    ranks.join(model)
    return {
        "logits": logits,
        "updates": [(u.loss, u.grad_norm, u.views, u.supervised) for u in updates],
        "untouched": untouched,
        "validation": validation,
        "moments": moments,
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "kinds": {name: type(module).__name__ for name, module in model.named_modules()},
        "shapes": shapes,
    }


def picked(model: Retinue) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def all_cases(rank: int) -> dict[str, dict[str, Any]]:
    return {name: train(case) for name, case in {**CASES, "bf16": BF16}.items()}
