"""DeepSpeed's JSON files as settings of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retinue.cli.run_spec import compose_run
from retinue.core.errors import ConfigError
from retinue.train.deepspeed import flat, read_deepspeed
from retinue.train.prepare import unused_sharding

RECIPE = "moss2-2b/two-stage"
FP16 = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "min_loss_scale": 1}
AUTO = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
}
ZERO2 = {
    "fp16": FP16,
    "bf16": {"enabled": "auto"},
    **AUTO,
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
    },
}
OFFLOAD = {
    **ZERO2,
    "bf16": {"enabled": True},
    "gradient_clipping": 1.0,
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "stage3_max_live_parameters": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "steps_per_print": 10,
}


def read(data: Any, tmp_path: Path) -> Any:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(data))
    return read_deepspeed(file, compose_run(RECIPE)[1])


def test_zero2(tmp_path: Path) -> None:
    mapped = read(ZERO2, tmp_path)
    assert mapped.overrides == ['parallel.shard="keep"']
    assert mapped.unmapped == [
        "zero_optimization.overlap_comm",
        "zero_optimization.sub_group_size",
    ]


def test_zero3_with_offload(tmp_path: Path) -> None:
    mapped = read(OFFLOAD, tmp_path)
    _, spec = compose_run(RECIPE, mapped.overrides)
    assert (spec.parallel.shard, spec.parallel.offload) == ("reshard", True)
    assert [stage.optim.clip for stage in spec.train.stages] == [1.0, 1.0]
    assert spec.train.precision == "bf16"
    assert mapped.unmapped == ["zero_optimization.stage3_max_live_parameters", "steps_per_print"]


@pytest.mark.parametrize("data", [ZERO2, OFFLOAD])
def test_every_key_is_named(data: Any, tmp_path: Path) -> None:
    text = str(read(data, tmp_path))
    for key, _ in flat(data):
        assert any(line.startswith(key) for line in text.splitlines()), key


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"zero_optimization": {"stage": 4}}, "known: 0, 1, 2, 3"),
        ({"train_micro_batch_size_per_gpu": 3}, "micro_batch 16 in stage 'align'"),
        ([], "no JSON object"),
    ],
)
def test_what_contradicts_is_refused(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read(data, tmp_path)


def test_one_process_says_what_has_no_effect() -> None:
    _, spec = compose_run(RECIPE, ["parallel.shard=fsdp", "parallel.offload=true"])
    lines = unused_sharding(spec.parallel, ranks=1)
    assert [line.split()[0] for line in lines] == [
        "parallel.shard=reshard",
        "parallel.offload=true",
    ]
    assert all("one process" in line for line in lines)
    assert unused_sharding(spec.parallel, ranks=2) == []
    (line,) = unused_sharding(spec.parallel.model_copy(update={"shard": "none"}), ranks=2)
    assert "parallel.offload=true" in line
    assert "replicas" in line
    assert unused_sharding(compose_run(RECIPE)[1].parallel, ranks=1) == []


def test_stages_have_processors_of_their_own() -> None:
    _, spec = compose_run(RECIPE)
    assert spec.model["template"] == "plain"
    align, sft = spec.train.stages
    assert (align.processor, sft.processor) == ({}, {"template": "llava_llama_2"})
    wrong = "train.stages.sft.processor={templat: plain}"
    with pytest.raises(ConfigError, match="did you mean 'template'"):
        compose_run(RECIPE, [wrong])


def test_values_are_the_original_s() -> None:
    """The two recipes and the one of both stages say the same."""
    both = compose_run(RECIPE)[1].train.stages
    single = [compose_run(f"moss2-2b/{name}")[1] for name in ("align", "sft")]
    for stage, spec in zip(both, single, strict=True):
        (own,) = spec.train.stages
        same = {"processor", "data"}
        assert stage.model_dump(exclude=same) == own.model_dump(exclude=same)
    assert [(s.optim.lr, s.steps, s.global_batch, s.micro_batch) for s in both] == [
        (2e-3, 5000, 256, 16),
        (2e-5, 10000, 64, 4),
    ]
    assert all((s.schedule.kind, s.schedule.warmup) == ("cosine", 0.03) for s in both)


def test_an_optimizer_s_numbers_are_taken_its_schedule_is_not(tmp_path: Path) -> None:
    """AdamW is what the recipe has; another one is named."""
    numbers = {"lr": 3e-5, "betas": [0.9, 0.95], "eps": "auto", "weight_decay": 0.1}
    data = {
        "optimizer": {"type": "AdamW", "params": numbers},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
    }
    mapped = read(data, tmp_path)
    for stage in compose_run(RECIPE, mapped.overrides)[1].train.stages:
        optim = stage.optim
        assert (optim.lr, optim.betas, optim.weight_decay) == (3e-5, (0.9, 0.95), 0.1)
        assert optim.eps == 1e-8
    assert mapped.unmapped == ["scheduler.type", "scheduler.params.warmup_num_steps"]
    other = read({"optimizer": {"type": "Lion", "params": {"lr": 1e-4}}}, tmp_path)
    assert other.unmapped == ["optimizer.type"]
