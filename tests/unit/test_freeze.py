"""Rules choose what trains; LoRA goes in, out, onto disk and back without changing the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from retinue.core.errors import CheckpointError, ConfigError
from retinue.model.adapters import (
    LoraTarget,
    adapter_names,
    add_lora,
    base_state,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from retinue.model.freeze import FullRule, LoraRule, apply_rules, matches, own_lr
from retinue.types import Batch
from tiny_train import tiny_batch, tiny_model

UNLABELLED = {"labels": None, "supervised": None}


def logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    from dataclasses import replace

    with torch.no_grad():
        found: torch.Tensor = model.run(replace(batch, **UNLABELLED)).logits  # type: ignore[operator, arg-type]
    return found


def lora(**fields: object) -> LoraRule:
    return LoraRule.parse({"lora": fields})


def shake(model: torch.nn.Module) -> None:
    """Give the adapters' B matrices values, so that they matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("lm.**", "lm.model.norm.weight", True),
        ("lm.*", "lm.model.norm.weight", False),
        ("lm.*.norm.weight", "lm.model.norm.weight", True),
        ("**.bias", "connector.net.0.bias", True),
        ("connector.**", "lm.connector.x", False),
        ("encoders.clip.net.layers.?.x", "encoders.clip.net.layers.3.x", True),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) == expected


def test_last_match_wins_and_the_rest_is_frozen() -> None:
    model = tiny_model()
    rules = {"lm.**": "full", "lm.model.embed_tokens.**": "frozen", "connector.**": "full"}
    table = apply_rules(model, rules, lr=1e-3)  # type: ignore[arg-type]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(table.names)
    assert not any(name.startswith(("encoders.", "lm.model.embed_tokens")) for name in trained)
    assert any(name.startswith("lm.model.layers") for name in trained)
    assert table.total == sum(p.numel() for p in model.parameters())
    assert table.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [row.mode for row in table.rows] == ["full", "frozen", "full", "frozen"]


def test_learning_rates() -> None:
    rules = {"lm.**": "full", "connector.**": FullRule.parse({"full": {"lr": "x0.1"}})}
    table = apply_rules(tiny_model(), rules, lr=2e-4)  # type: ignore[arg-type]
    assert [row.lr for row in table.rows[:2]] == [2e-4, pytest.approx(2e-5)]
    assert own_lr(3e-5, 1.0) == 3e-5
    with pytest.raises(ConfigError, match="factor"):
        FullRule.parse({"full": {"lr": "tenth"}})


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'connector\.\*\*'"):
        apply_rules(tiny_model(), {"conector.**": "full"}, lr=1e-3)


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing is trainable"):
        apply_rules(tiny_model(), {"lm.**": "frozen"}, lr=1e-3)


def test_lora_goes_on_every_linear_but_the_head() -> None:
    model = tiny_model()
    batch = tiny_batch(1)
    before = logits(model, batch)
    table = apply_rules(model, {"lm.**": lora(r=2), "connector.**": "full"}, lr=1e-3)
    leaves = {name.split(".lora_")[0].rpartition(".")[2] for name in table.names if "lora" in name}
    assert leaves == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert torch.equal(before, logits(model, batch))
    assert {name for name in table.names if "lora" not in name} == {
        name for name, _ in model.named_parameters() if name.startswith("connector.")
    }
    assert adapter_names(model) == ["default"]


def test_merge_keeps_the_logits_and_the_key_names() -> None:
    model, batch = tiny_model(), tiny_batch(2)
    keys = set(model.state_dict())
    apply_rules(model, {"lm.**": lora(r=2, targets=["q_proj"])}, lr=1e-3)  # type: ignore[arg-type]
    shake(model)
    adapted = logits(model, batch)
    assert set(base_state(model)) == keys
    changed = merge_adapters(model)
    assert set(model.state_dict()) == keys
    assert all(name.endswith("q_proj.weight") for name in changed)
    torch.testing.assert_close(logits(model, batch), adapted, atol=1e-6, rtol=1e-5)
    assert adapter_names(model) == []


def test_save_and_load_in_pefts_layout(tmp_path: Path) -> None:
    from peft import PeftModel

    model, batch = tiny_model(), tiny_batch(3)
    rules = {
        "lm.**": lora(r=2, alpha=4, targets=["q_proj", "v_proj"]),
        "lm.model.layers.1.**": lora(r=3, alpha=5),
    }
    apply_rules(model, rules, lr=1e-3)  # type: ignore[arg-type]
    shake(model)
    expected = logits(model, batch)
    save_adapter(model, tmp_path, base="some/base")
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "some/base"
    again = tiny_model()
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again, batch), expected)
    assert not any(p.requires_grad for n, p in again.named_parameters() if "lora" in n)
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path).base_model.model
    assert torch.equal(logits(theirs, batch), expected)


def test_an_adapter_that_does_not_fit(tmp_path: Path) -> None:
    model = tiny_model()
    add_lora(model, {"connector.net.0": LoraTarget(r=2, alpha=2)})
    save_adapter(model, tmp_path, base="the/base")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adapter(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="no readable adapter"):
        load_adapter(tiny_model(), tmp_path)
