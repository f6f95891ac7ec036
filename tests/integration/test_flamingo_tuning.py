"""A tuned cross-attention model: what moves, what is saved, and the same logits every way back."""

import pytest
import torch
from pydantic import TypeAdapter

import retinue
import tiny
import tiny_recipe
from retinue.cli.main import run
from retinue.convert.tuning import trainable_rules
from retinue.hub.build import build
from retinue.hub.convert import convert
from retinue.model.freeze import Rule, apply_rules
from retinue.text.train import train_bpe
from retinue.types import Media, Message, Sample, Text

TUNING = {
    "lora": True,
    "from_pretrained": False,
    "lora_target_modules": ["Wqkv", "to_q", "ff.1"],
    "lora_r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "unfrozen": ["perceiver", "attn_gate"],
}


@pytest.fixture
def base(tmp_path):
    train_bpe(tiny.LINES, vocab_size=320, specials=["<image>"]).save(tmp_path / "tokenizer")
    section = tiny_recipe.small_model(tiny_recipe.FLAMINGO, tmp_path / "tokenizer")
    build(section, tmp_path / "base")
    return tmp_path / "base"


def conversation(number, pictures):
    media = [Media(source=tiny.picture(number + n)) for n in range(pictures)]
    asked = Message(role="user", parts=(*media, Text(text="what colour is the circle?")))
    told = Message(role="assistant", parts=(Text(text="red"),))
    return Sample(id=str(number), messages=(asked, told))


def test_only_named_parameters_move_and_come_back(base, tmp_path):
    model, processor = retinue.load(base)
    rules = TypeAdapter(dict[str, Rule]).validate_python(
        trainable_rules(TUNING, [name for name, _ in model.named_parameters()])
    )
    table = apply_rules(model, rules, lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = processor.batch([conversation(0, 2), conversation(5, 0)], train=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # closed gates let no gradient through in the first step
        model.run(batch).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved <= set(table.names)
    assert any("attn_gate" in name for name in moved)
    assert any(name.startswith("connector.") for name in moved)
    assert any(".to_q.lora_B." in name for name in moved)
    model.eval()
    with torch.no_grad():
        wanted = model.run(processor.batch([conversation(0, 2)])).logits
    retinue.save(model, processor, tmp_path / "tuned", base=str(base))
    from safetensors.torch import load_file

    held = set(load_file(tmp_path / "tuned/model.safetensors"))
    assert held == {name for name in table.names if ".lora_" not in name}
    check(tmp_path / "tuned", wanted)
    convert(tmp_path / "tuned", tmp_path / "merged", to="retinue")
    check(tmp_path / "merged", wanted)
    convert(tmp_path / "tuned", tmp_path / "flamingo", to="flamingo")
    state = torch.load(tmp_path / "flamingo/checkpoint.pt", weights_only=True)
    assert any("gated_cross_attn_layer.attn.to_q.weight" in name for name in state)
    assert not any("lora" in name for name in state)


@torch.no_grad()
def check(folder, wanted):
    model, processor = retinue.load(folder)
    logits = model.run(processor.batch([conversation(0, 2)])).logits
    torch.testing.assert_close(logits, wanted, atol=2e-5, rtol=0)


def test_a_run_writes_what_it_trained_and_names_the_rest(tmp_path):
    """The recipe's checkpoints and model: trained weights and adapter only, on model.from."""
    from safetensors.torch import load_file

    recipe = tiny_recipe.shrink("flamingo-9b/lora", tmp_path)
    out = tmp_path / "run"
    fresh, words = retinue.load(tmp_path / "base")
    for name, parameter in fresh.named_parameters():
        if name.endswith("_gate"):  # as in a released model: through closed ones nothing is learned
            parameter.data.fill_(0.5)
    retinue.save(fresh, words, tmp_path / "base")
    fast = ["model.dtype=fp32", "stages.0.optim.lr=1e-2", "stages.0.schedule.warmup=0"]
    assert run(["train", str(recipe), *fast, "--out", str(out), "--device", "cpu"]) == 0
    (saved,) = (out / "checkpoints").iterdir()
    before, _ = retinue.load(tmp_path / "base")
    old = dict(before.named_parameters())
    for folder in (out / "model", saved):
        held = load_file(folder / "model.safetensors")
        assert held
        assert all(name.startswith("connector.") for name in held)
        adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert adapter
        model, processor = retinue.load(folder)
        for name, parameter in model.named_parameters():
            plain = name.replace(".base_layer.", ".")
            if ".lora_" not in name and plain not in held:
                assert torch.equal(parameter, old[plain]), name
    moved = [n for n, value in held.items() if not torch.equal(value, old[n])]
    assert moved
    sample = conversation(0, 2)
    with torch.no_grad():
        wanted = model.run(processor.batch([sample])).logits
    convert(out / "model", tmp_path / "whole", to="retinue")
    check(tmp_path / "whole", wanted)


def test_what_is_not_written_must_be_somewhere(tmp_path, capsys):
    recipe = tiny_recipe.shrink("llava15-7b/align", tmp_path)
    words = ["train", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert run([*words, "checkpoint.holds=trained"]) == 2
    assert "no model.from" in capsys.readouterr().err
