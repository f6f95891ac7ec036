"""Loading in fewer bits: what changes, how much is lost, what cannot be done with it."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retinue.core.errors import ConfigError, EnvError
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.hub import stream
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.adapters import LoraTarget, add_lora, merge_adapters, save_adapter
from retinue.model.lm.fused import Twin, inference_twin
from retinue.model.quant import QUANTS, bnb, canonical
from retinue.model.quant.base import QuantLinear, join
from retinue.model.quant.swap import Quantizer, dequantize, quantize, quantized
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.types import Batch
from tiny import ask, picture, tiny_model

HAVE_BNB = importlib.util.find_spec("bitsandbytes") is not None
KINDS = ["int8", "int4", *(["bnb8", "bnb4"] if HAVE_BNB else [])]
KL = {"int8": 0.01, "bnb8": 0.02, "int4": 0.3, "bnb4": 0.4}
"""Bounds of KL(full || quantized), in nats a position: a tiny random model with weights of size
0.2, which loses more than a trained one."""


@pytest.fixture(scope="module")
def full() -> tuple[Retinue, Processor]:
    return tiny_model(width=64)


@pytest.fixture(scope="module")
def folder(full: tuple[Retinue, Processor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(*full, tmp_path_factory.mktemp("quant") / "model")


@pytest.fixture
def batch(full: tuple[Retinue, Processor]) -> Batch:
    return full[1]([ask("a", "what colour?", picture()), ask("b", "how many?")])


def logits(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.run(batch).logits[batch.segments > 0]
    return found.float().log_softmax(-1)


def divergence(full: torch.Tensor, other: torch.Tensor) -> float:
    return float((full.exp() * (full - other)).sum(-1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_load_changes_the_language_model_alone(
    kind: str, folder: Path, full: tuple[Retinue, Processor], batch: Batch
) -> None:
    model, _ = load(folder, quant=kind)
    changed = dict(quantized(model))
    assert len(changed) == 2 * 7
    assert all(name.startswith("lm.model.layers.") for name in changed)
    assert type(model.lm.head) is nn.Linear
    assert not list(quantized(model.connector)) + list(quantized(model.encoders))
    loss = divergence(logits(full[0], batch), logits(model, batch))
    assert 0 < loss < KL[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_quantized_is_quantizing_the_loaded(
    kind: str, dtype: torch.dtype, folder: Path, batch: Batch
) -> None:
    streamed, _ = load(folder, quant=kind, dtype=dtype)
    whole, _ = load(folder, dtype=dtype)
    assert quantize(whole, kind=kind) == sorted(f"{n}.weight" for n, _ in quantized(streamed))
    assert torch.equal(logits(streamed, batch), logits(whole, batch))


def test_encoders_and_head_on_request(folder: Path) -> None:
    model, _ = load(folder, quant="int8", quant_encoders=True, quant_head=True)
    names = [name for name, _ in quantized(model)]
    assert any(name.startswith("encoders.") for name in names)
    assert isinstance(model.lm.head, QuantLinear)
    assert not list(quantized(model.connector))


def test_a_head_tied_to_the_embeddings_stays() -> None:
    model, _ = tiny_model(tie_word_embeddings=True)
    quantize(model, kind="int8", head=True)
    assert model.lm.head.weight is model.lm.embedding.weight


def test_one_weight_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the next weight is read, those before it are held as codes only."""
    read, model_of = [], stream.skeleton
    made: list[Retinue] = []

    def skeleton(config: Any) -> Retinue:
        made.append(model_of(config))
        return made[-1]

    put = Quantizer.put

    def counted(self: Quantizer, model: nn.Module, name: str, weight: torch.Tensor) -> None:
        put(self, model, name, weight)
        layers = [m for n, m in model.named_modules() if n.startswith("lm.model.layers.")]
        read.append(any(type(m) is nn.Linear and not m.weight.is_meta for m in layers))

    monkeypatch.setattr(Quantizer, "put", counted)
    load(folder, quant="int4")
    assert len(read) == 14
    assert not any(read)


def test_names_aliases_and_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (canonical("8bit"), canonical("4bit")) == ("bnb8", "bnb4")
    with pytest.raises(ConfigError, match="did you mean 'int4'"):
        load(folder, quant="int44")
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(EnvError, match="retinue\\[quant\\]"):
        load(folder, quant="4bit")
    assert bnb.bitsandbytes.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_states_move_with_the_model(kind: str, folder: Path, batch: Batch) -> None:
    """A cast changes what is computed in, never the codes; a copy is a copy."""
    model, _ = load(folder, quant=kind)
    before = logits(model, batch)
    name, layer = next(quantized(model))
    weight = layer.weight
    model.to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    model.to(torch.float32)
    assert torch.equal(model.get_submodule(name).weight, weight)
    again = logits(copy.deepcopy(model), batch)
    assert (again - before).abs().max() < 0.2  # all else went through bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_model_gives_the_same(
    kind: str, folder: Path, batch: Batch, full: tuple[Retinue, Processor], tmp_path: Path
) -> None:
    """Ordinary layers on decoded weights compute the same; only these can be written."""
    model, processor = load(folder, quant=kind)
    before = logits(model, batch)
    with pytest.raises(ConfigError, match="full values"):
        save(model, processor, tmp_path / "quantized")
    with pytest.raises(ConfigError, match="full values"):
        model.save_pretrained(tmp_path / "quantized")
    assert not (tmp_path / "quantized").exists()
    dequantize(model)
    assert not list(quantized(model))
    # LLM.int8 rounds its inputs too, which ordinary layers do not
    assert (logits(model, batch) - before).abs().max() < (0.4 if kind == "bnb8" else 0.05)
    save(model, processor, tmp_path / "rounded")
    again, _ = load(tmp_path / "rounded")
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_decodes_on_codes(kind: str, folder: Path, full: Any, batch: Batch) -> None:
    model, processor = load(folder, quant=kind)
    twin = inference_twin(model)
    assert isinstance(twin, Twin)
    # a kernel that rounds in bf16 and, with bnb8, scales over other rows
    assert (logits(twin, batch) - logits(model, batch)).abs().max() < 0.2
    params = SamplingParams(max_new_tokens=6, temperature=0.0)
    made = [
        [
            done.tokens
            for done in complete(runner, batch, params=params, decoder=processor, eos_ids=[])
        ]
        for runner in (model, twin)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 100])
def test_joined_layers_are_the_layers(kind: str, rows: int) -> None:
    """With biases, one of three without; few rows and many."""
    torch.manual_seed(0)
    made = QUANTS.get(kind)
    parts = [nn.Linear(96, width, bias=width != 32) for width in (64, 32, 48)]
    layers = [made(part.weight, bias=part.bias) for part in parts]
    x = torch.randn(rows, 96)
    with torch.no_grad():
        wanted = torch.cat([layer(x) for layer in layers], -1)
        found = join(layers)(x)
        mixed = join([layers[0], parts[1]])(x)
        assert (mixed - torch.cat([layers[0](x), parts[1](x)], -1)).abs().max() < 1e-6
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_decoded_layer(kind: str) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 32)
    layer = QUANTS.get(kind)(plain.weight, bias=copy.deepcopy(plain.bias))
    other = layer.plain()
    x = torch.randn(5, 64)
    grads = []
    for module in (layer, other):
        mine = x.clone().requires_grad_()
        module.bias.grad = None
        module(mine).square().sum().backward()
        grads.append((mine.grad, module.bias.grad.clone()))
        assert not module.weight.requires_grad
    for found, wanted in zip(*grads, strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == layer(x.requires_grad_()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_codes_merge_into_decoded_weights(
    kind: str, folder: Path, batch: Batch, tmp_path: Path
) -> None:
    """Merged logits = unmerged logits of the decoded model: 1e-4, sums in another order."""
    model, processor = load(folder, quant=kind)
    names = [n for n, _ in quantized(model) if n.endswith(("q_proj", "down_proj"))]
    torch.manual_seed(1)
    add_lora(model, {name: LoraTarget(r=4, alpha=8) for name in names})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    save_adapter(model, tmp_path / "lora", base=str(folder))
    unmerged = logits(model, batch)
    again, _ = load(folder, quant=kind, adapters=[tmp_path / "lora"])
    assert torch.equal(logits(again, batch), unmerged)
    decoded, _ = load(folder, quant=kind)
    dequantize(decoded)
    save(decoded, processor, tmp_path / "decoded")
    decoded, _ = load(tmp_path / "decoded", adapters=[tmp_path / "lora"])
    changed = merge_adapters(model)
    assert changed == [f"{name}.weight" for name in names]
    dequantize(model)
    assert (logits(model, batch) - logits(decoded, batch)).abs().max() < 1e-4
    save(model, processor, tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")[0], batch), logits(model, batch))
