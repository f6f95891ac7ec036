"""An adapter under a list of checkpoints, as Polite and Clever Flamingo v1 are published."""

import json

import pytest
import torch
from cases import compared
from flamingo import ids_of, load, tower
from safetensors.torch import load_file, save_file
from test_if_models import FORWARD

import retinue
from retinue.cli.main import run
from retinue.convert.flamingo import CHILD, LAYERS, flamingo_keys, read_flamingo, state_of
from retinue.core.errors import CheckpointError

LINEAR = {"llama": "self_attn.q_proj", "mpt": "attn.Wqkv", "gpt_neox": "attention.dense"}
ALPHA, RANK = 6, 3
MODELS = {case: (name, facts) for case, name, facts in FORWARD}
RUNS = [(case, *told) for case, told in MODELS.items()]


def factors(shape, seed):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, shape[1], generator=stream), torch.randn(
        shape[0], RANK, generator=stream
    )


def adapter(folder, modules):
    """A PEFT folder with factors for the modules of a language model."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.1,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    state = {}
    for seed, (module, shape) in enumerate(modules.items()):
        down, up = factors(shape, seed)
        state[f"base_model.model.{module}.lora_A.weight"] = down
        state[f"base_model.model.{module}.lora_B.weight"] = up
    save_file(state, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("case", "name", "facts"), RUNS, ids=ids_of(RUNS))
def test_language_model_adapter_and_checkpoints(case, name, facts, tmp_path):
    plain, _ = load(case)
    kind = plain.config.text_config.model_type
    names = [f"{LAYERS[kind]}.{number}.{LINEAR[kind]}" for number in (0, 1)]
    before = dict(plain.named_parameters())
    shapes = {module: before[f"lm.{module}.weight"].shape for module in names}
    folder = adapter(tmp_path / "guanaco", shapes)
    down, up = factors(shapes[names[1]], 9)
    layer, _, rest = names[1].removeprefix(f"{LAYERS[kind]}.").partition(".")
    wrapped = f"module.lang_encoder.{LAYERS[kind]}.{layer}.decoder_layer.{rest}"
    latents = torch.randn(before["connector.latents"].shape)
    trained = {
        f"{wrapped}.lora_A.default.weight": down,
        f"{wrapped}.lora_B.default.weight": up,
        "module.perceiver.latents": latents,
    }
    torch.save({"epoch": 1, "model_state_dict": trained}, tmp_path / "clever.pt")
    model, _ = load(case, folder, tmp_path / "clever.pt")
    after = dict(model.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved == {*(f"lm.{module}.weight" for module in names), "connector.latents"}
    assert torch.equal(after["connector.latents"], latents)
    pairs = [factors(shapes[names[0]], 0), (down, up)]  # the checkpoint's take the adapter's place
    for module, (one, two) in zip(names, pairs, strict=True):
        wanted = before[f"lm.{module}.weight"] + (two @ one) * (ALPHA / RANK)
        torch.testing.assert_close(after[f"lm.{module}.weight"], wanted, atol=1e-5, rtol=1e-5)
    by_name = tmp_path / "qlora.json"
    said = {"lora": True, "from_pretrained": str(folder), "unfrozen": []}
    by_name.write_text(json.dumps(said), "utf-8")
    again, _ = load(case, tmp_path / "clever.pt", by_name)
    for key, value in again.named_parameters():
        assert torch.equal(value, after[key]), key
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), RUNS[:1], ids=ids_of(RUNS[:1]))
def test_an_adapter_of_another_model_is_named(case, name, facts, tmp_path):
    plain, _ = load(case)
    kind = plain.config.text_config.model_type
    module = f"{LAYERS[kind]}.0.{LINEAR[kind]}"
    folder = adapter(tmp_path / "other", {module: (5, 7)})
    with pytest.raises(CheckpointError, match="adapter's factors make"):
        load(case, folder)
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), RUNS[:1], ids=ids_of(RUNS[:1]))
def test_a_tuning_config_prints_as_rules(case, name, facts, tmp_path, capsys):
    plain, _ = load(case)
    kind = plain.config.text_config.model_type
    module = f"{LAYERS[kind]}.0.{LINEAR[kind]}"
    shape = plain.get_parameter(f"lm.{module}.weight").shape
    folder = adapter(tmp_path / "guanaco", {module: shape})
    config = tmp_path / "tuning.json"
    said = {"lora": True, "from_pretrained": str(folder), "unfrozen": ["attn_gate"]}
    config.write_text(json.dumps(said), "utf-8")
    words = ["config", "tuning", str(config), "--json", "--model", str(case / "flamingo.pt")]
    words += ["--base", str(case / "lm"), "--encoder", f"clip={tower(case)}"]
    assert run(words) == 0
    rules = json.loads(capsys.readouterr().out)["trainable"]
    target = LINEAR[kind].rpartition(".")[2]
    assert rules[f"lm.**{target}.weight"] == {
        "lora": {"r": RANK, "alpha": float(ALPHA), "dropout": 0.1}
    }
    assert rules["**attn_gate**"] == "full"
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), RUNS, ids=ids_of(RUNS))
def test_several_paths_of_one_tensor(case, name, facts, tmp_path):
    """Every way in which wrappers and second paths spell a name gives the same model."""
    plain, _ = load(case)
    kind = plain.config.text_config.model_type
    layers = LAYERS[kind]
    state = state_of(case / "flamingo.pt")
    block = next(key for key in state if f".{CHILD}." in key and key.endswith("ff.1.weight"))
    number, _, rest = block.partition(f"lang_encoder.{layers}.")[2].partition(".")
    value = torch.randn(state[block].shape)
    ours = flamingo_keys(kind).to_retinue(block)
    for spelling in (
        f"module.{block}",
        f"lang_encoder.base_model.model.{layers}.{number}.{rest}",
        f"lang_encoder.gated_cross_attn_layers.{number}.{rest.removeprefix(CHILD + '.')}",
        f"lang_encoder.base_model.model.gated_cross_attn_layers.{number}."
        + rest.removeprefix(f"{CHILD}."),
        f"module.lang_encoder._checkpoint_wrapped_module.{layers}.{number}.{rest}",
    ):
        torch.save({spelling: value}, tmp_path / "more.pt")
        found = read_flamingo([case / "flamingo.pt", tmp_path / "more.pt"], model_type=kind)
        assert torch.equal(found.tensors[block][1], value), spelling
        assert not [name for name in found.tensors if "wrapped" in name or "module." in name]
    model, processor = load(case, tmp_path / "more.pt")
    assert torch.equal(model.get_parameter(ours), value)
    retinue.save(model, processor, tmp_path / "saved")
    assert run(["convert", str(tmp_path / "saved"), str(tmp_path / "out"), "--to", "flamingo"]) == 0
    back = state_of(tmp_path / "out" / "checkpoint.pt")
    assert torch.equal(back[block], value)
    assert {key: t.shape for key, t in back.items()} == {
        key: t.shape for key, t in state.items() if key in back
    }
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), RUNS, ids=ids_of(RUNS))
def test_what_was_trained_loads_onto_a_released_checkpoint(case, name, facts, tmp_path):
    model, processor = load(case)
    with torch.no_grad():
        model.connector.latents += 1
    beside = {"on": str(case / "lm"), "encoders": {"clip": str(tower(case))}}
    base = str(case / "flamingo.pt")
    folder = retinue.save(
        model, processor, tmp_path / "tuned", base=base, changed={"connector.latents"},
        beside=beside,
    )  # fmt: skip
    assert set(load_file(folder / "model.safetensors")) == {"connector.latents"}
    again, _ = retinue.load(folder, dtype=torch.float32)
    for key, value in model.named_parameters():
        assert torch.equal(again.get_parameter(key), value), key
    compared(case)
