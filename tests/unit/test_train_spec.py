"""The recipe's training branches, and the arithmetic of a global batch."""

from __future__ import annotations

from typing import Any

import pytest

from retinue.core.errors import ConfigError
from retinue.train.norm import LOSS_NORMS
from retinue.train.spec import RunSpec, StageSpec, accumulation
from tiny_run import recipe


def stage(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "a",
        "trainable": {"lm.**": "full"},
        "steps": 1,
        "global_batch": 4,
        "optim": {"lr": 1e-3},
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def test_accumulation() -> None:
    assert accumulation(global_batch=128, micro_batch=4, ranks=8) == 4
    with pytest.raises(ConfigError, match=r"130 / \(4 x 8\) = 4\.06 .* 128 or 160"):
        accumulation(global_batch=130, micro_batch=4, ranks=8)
    with pytest.raises(ConfigError, match=r"global_batch of 4, or"):
        accumulation(global_batch=3, micro_batch=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "either steps or epochs"),
        ({"epochs": 1.0}, "either steps or epochs"),
        ({"loss_norm": "token"}, "known: tokens, micro_batch"),
        ({"idle_visual": "stil"}, "known: still, momentum"),
        ({"trainable": {"lm.**": "ful"}}, "trainable"),
        ({"trainable": {"lm.**": {"lora": {"rank": 8}}}}, "rank"),
        ({"objective": {"kind": "stf"}}, "did you mean 'sft'"),
        ({"optim": {"lr": 1e-3, "clp": 1}}, "did you mean 'clip'"),
        ({"name": "two words"}, "name"),
    ],
)
def test_bad_stages(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StageSpec.parse(stage(**changes))


def test_run_spec_round_trip(tmp_path: Any) -> None:
    spec = RunSpec.parse(recipe(tmp_path))
    assert RunSpec.parse(spec.model_dump(mode="json")) == spec
    assert spec.train.stages[1].trainable["lm.**"].lora.alpha is None  # type: ignore[union-attr]


def test_a_stage_changes_the_data() -> None:
    spec = RunSpec.parse(recipe(None))  # type: ignore[arg-type]
    changed = spec.train.stages[0].model_copy(update={"data": {"workers": 2}})
    assert spec.data_of(changed).workers == 2
    assert spec.data_of(changed).sources == spec.data.sources
    wrong = spec.train.stages[0].model_copy(update={"data": {"workrs": 2}})
    with pytest.raises(ConfigError, match=r"stages\.align\.data.*did you mean 'workers'"):
        spec.data_of(wrong)


def test_stage_names_are_distinct_and_sinks_known() -> None:
    data = recipe(None)  # type: ignore[arg-type]
    data["train"]["stages"][1]["name"] = "align"
    with pytest.raises(ConfigError, match="same name"):
        RunSpec.parse(data)
    with pytest.raises(ConfigError, match="did you mean 'jsonl'"):
        RunSpec.parse(recipe(None, report={"sinks": ["json"]}))  # type: ignore[arg-type]


def test_loss_norms() -> None:
    counts = [2.0, 0.0, 6.0]
    assert LOSS_NORMS["tokens"](counts, total=16.0, micro_batches=6) == [16.0] * 3
    assert LOSS_NORMS["micro_batch"](counts, total=16.0, micro_batches=6) == [12.0, 6.0, 36.0]
