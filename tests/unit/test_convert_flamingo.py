"""OpenFlamingo's names: what wrappers add, second paths, several files, and the way back."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from retinue.cli.main import run
from retinue.convert.flamingo import (
    CHILD,
    flamingo_keys,
    is_flamingo,
    plain_name,
    read_flamingo,
)
from retinue.convert.tuning import trainable_rules
from retinue.core.errors import CheckpointError, ConfigError
from retinue.hub.flamingo import names_flamingo, rows_to
from retinue.hub.flamingo_export import export_flamingo, flamingo_state, trainer_state
from retinue.model.adapters import LoraTarget, add_lora
from retinue.model.freeze import Rule, apply_rules
from tiny_cross import bare, make

LAYERS = "model.layers"


@pytest.mark.parametrize(
    ("theirs", "plain"),
    [
        ("module.perceiver.latents", "perceiver.latents"),
        (f"lang_encoder.{LAYERS}.3.decoder_layer.mlp.w", f"lang_encoder.{LAYERS}.3.mlp.w"),
        ("lang_encoder.old_decoder_blocks.3.mlp.w", f"lang_encoder.{LAYERS}.3.mlp.w"),
        (
            "module.lang_encoder.base_model.model.gated_cross_attn_layers.7.ff_gate",
            f"lang_encoder.{LAYERS}.7.{CHILD}.ff_gate",
        ),
        (
            f"lang_encoder.base_model.model.{LAYERS}.0.decoder_layer.q.base_layer.weight",
            f"lang_encoder.{LAYERS}.0.q.weight",
        ),
        (
            "lang_encoder.transformer.blocks.0.ln_1.weight",
            "lang_encoder.transformer.blocks.0.norm_1.weight",
        ),
    ],
)
def test_plain_names(theirs, plain):
    assert plain_name(theirs, layers=LAYERS) == plain


def test_later_files_win_and_trainers_states_are_unwrapped(tmp_path):
    first = {
        "perceiver.latents": torch.zeros(2, 3),
        f"lang_encoder.{LAYERS}.1.{CHILD}.ff_gate": torch.zeros(1),
    }
    second = {"epoch": 4, "model_state_dict": {"module.perceiver.latents": torch.ones(2, 3)}}
    for name, state in (("a.pt", first), ("b.pt", second)):
        torch.save(state, tmp_path / name)
    found = read_flamingo([tmp_path / "a.pt", tmp_path / "b.pt"], model_type="llama")
    assert found.tensors["perceiver.latents"][1].eq(1).all()
    assert found.every == 2
    assert not found.first_version
    assert names_flamingo(f"{tmp_path}/a.pt,{tmp_path}/b.pt")


def test_other_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    assert not names_flamingo(tmp_path / "other.pt")
    assert not names_flamingo(tmp_path)
    with pytest.raises(CheckpointError, match="no Flamingo weights"):
        read_flamingo([tmp_path / "other.pt"], model_type="llama")
    with pytest.raises(CheckpointError, match="a Flamingo on a t5"):
        read_flamingo([], model_type="t5")


def test_tables_are_cut_or_filled():
    table = torch.ones(3, 2)
    assert len(rows_to(2)(table)) == 2
    assert rows_to(5)(table)[3:].eq(0).all()


def test_released_state_holds_what_releases_hold(tmp_path):
    model = make("gpt_neox")
    state = flamingo_state(model)
    assert is_flamingo(state)
    keys = flamingo_keys("gpt_neox")
    assert {keys.to_retinue(name) for name in state} <= set(model.state_dict())
    assert "lang_encoder.gpt_neox.embed_in.weight" in state
    assert not any("attention.dense" in name for name in state)
    export_flamingo(model, tmp_path / "out")
    found = read_flamingo([tmp_path / "out" / "checkpoint.pt"], model_type="gpt_neox")
    assert {name: len(t) for name, (_, t) in found.tensors.items()} == {
        name: len(t) for name, t in state.items()
    }


def test_trainer_state_comes_back(tmp_path):
    model = make("llama")
    model.requires_grad_(False)
    add_lora(model, {"lm.model.layers.0.self_attn.q_proj": LoraTarget(r=2, alpha=4)})
    model.connector.norm.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.ones_(parameter)
    torch.save(trainer_state(model), tmp_path / "state.pt")
    found = read_flamingo([tmp_path / "state.pt"], model_type="llama")
    assert set(found.tensors) == {
        "perceiver.norm.weight",
        "perceiver.norm.bias",
        "lang_encoder.model.embed_tokens.weight",
    }
    pair = found.lora["lang_encoder.model.layers.0.self_attn.q_proj"]
    assert pair["A"].shape == (2, 32)
    assert pair["B"].eq(1).all()


def test_a_splice_model_has_no_such_checkpoint():
    with pytest.raises(CheckpointError, match="splice"):
        flamingo_state(bare("llama", make("llama")))


def test_tuning_config_must_reach_something():
    names = ["lm.model.layers.0.self_attn.q_proj.weight", "connector.latents"]
    tuning = {"lora": True, "lora_target_modules": ["q_proj", "Wqkv"], "lora_r": 4, "lora_alpha": 2}
    rules = trainable_rules({**tuning, "unfrozen": ["perceiver"]}, names)
    assert rules == {
        "lm.**q_proj.weight": {"lora": {"r": 4, "alpha": 2.0, "dropout": 0.0}},
        "**connector**": "full",
    }
    with pytest.raises(ConfigError, match="reaches no parameter"):
        trainable_rules({**tuning, "lora": False}, names)
    with pytest.raises(ConfigError, match="unknown fields"):
        trainable_rules({"lore": True}, names)


BOTH = {"lora": True, "lora_r": 4, "lora_alpha": 2, "lora_dropout": 0.1, "from_pretrained": False}
LAYER = "lm.model.layers.1"


@pytest.mark.parametrize(
    ("tuning", "adapted", "full"),
    [
        (
            {**BOTH, "lora_target_modules": ["q_proj", "down_proj"], "unfrozen": []},
            {f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp.down_proj"},
            set(),
        ),
        (
            {**BOTH, "lora_target_modules": ["to_q", "ff.1"], "unfrozen": ["attn_gate"]},
            {f"{LAYER}.{CHILD}.attn.to_q", f"{LAYER}.{CHILD}.ff.1"},
            {f"{LAYER}.{CHILD}.attn_gate"},
        ),
        (
            {**BOTH, "lora_target_modules": ["v_proj", "to_kv"], "unfrozen": ["perceiver.norm"]},
            {f"{LAYER}.self_attn.v_proj", f"{LAYER}.{CHILD}.attn.to_kv"},
            {"connector.norm.weight", "connector.norm.bias"},
        ),
        (
            {**BOTH, "lora": False, "lora_target_modules": ["q_proj"], "unfrozen": ["ff_gate"]},
            set(),
            {f"{LAYER}.{CHILD}.ff_gate"},
        ),
        (
            {"lora": False, "unfrozen": ["embed_tokens", "perceiver.latents"]},
            set(),
            {"lm.model.embed_tokens.weight", "connector.latents"},
        ),
    ],
    ids=["language model", "cross-attention", "both", "no lora", "embeddings"],
)
def test_every_kind_of_tuning_config_trains_what_it_names(tuning, adapted, full):
    """Names of layer 1 and outside of layers; the config has the same for all layers."""
    model = make("llama")
    rules = trainable_rules(tuning, [name for name, _ in model.named_parameters()])
    table = apply_rules(model, TypeAdapter(dict[str, Rule]).validate_python(rules), lr=1e-3)
    own = {n for n in table.names if n.startswith(LAYER) or ".layers." not in n}
    halves = {f"{name}.lora_{half}.default.weight" for name in adapted for half in "AB"}
    assert own == halves | full
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(table.names)


def test_an_adapter_below_trains_on_as_new_factors():
    names = [f"{LAYER}.self_attn.q_proj.weight", "connector.latents"]
    adapter = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["q_proj"]}
    tuning = {"lora": True, "from_pretrained": "guanaco", "unfrozen": []}
    wanted = {"lm.**q_proj.weight": {"lora": {"r": 8, "alpha": 16.0, "dropout": 0.05}}}
    assert trainable_rules(tuning, names, adapter=adapter) == wanted
    asked = {**tuning, "lora": False, "unfrozen": ["lora"]}
    assert trainable_rules(asked, names, adapter=adapter) == wanted
    frozen = {**tuning, "lora": False, "unfrozen": ["perceiver"]}
    assert trainable_rules(frozen, names, adapter=adapter) == {"**connector**": "full"}
    with pytest.raises(ConfigError, match="not at hand"):
        trainable_rules(tuning, names)


def test_the_list_of_pairs_names_it_as_a_source(capsys):
    assert run(["convert", "--list"]) == 0
    assert "flamingo" in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
