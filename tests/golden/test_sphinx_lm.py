"""LLaMA2-Accessory's language models: scores, cached decoding, losses, routers, answers, streams.

Tolerance of the cases: 1e-4; ours is 2e-5, what fp32 sums of another order differ by.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from sphinx_cases import batch_of, check_scores, loaded, read, with_checkpoint
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from retinue.model.lm.router import imbalance, routers, watched
from retinue.model.ropes.rounded import RoundedRope
from retinue.types import IGNORE

pytestmark = pytest.mark.golden

CLOSE = 2e-5
LMS = with_checkpoint(sees=False, key="generate")
PEFT = cases("sphinx", "*peft*", having="checkpoint")
MIXTURES = [case for case in LMS if "lb_loss" in read(case)[1]]


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", paths, ids=lambda path: path.name)


@named(LMS + PEFT)
@torch.no_grad()
def test_scores(case: Path) -> None:
    model, tensors = loaded(case), read(case)[1]
    check_scores("logits", model.forward_text(tensors["input_ids"].long()), tensors, atol=CLOSE)
    compared(case)


@named(LMS)
@torch.no_grad()
def test_cached_scores(case: Path) -> None:
    """The shortest row's last ids one by one, after one pass over the others."""
    model, tensors = loaded(case), read(case)[1]
    ids = tensors["input_ids"].long()
    shortest = int((ids != 0).sum(1).min())
    ids = ids[:, :shortest]
    steps = tensors["infer_logits_argmax"].shape[0]
    start = shortest - (steps - 1)
    cache, found = model.model.new_cache(), []
    for begin, end in [(0, start), *((at, at + 1) for at in range(start, shortest))]:
        batch = batch_of(ids[:, begin:end], start=begin)
        found.append(model.model.run(batch, cache=cache, keep="last").logits)
    check_scores("infer_logits", torch.stack(found), tensors, atol=CLOSE)
    compared(case)


@named(LMS)
@torch.no_grad()
def test_loss(case: Path) -> None:
    """The original's targets: id 0 is none, the mean is over all others."""
    model, tensors = loaded(case), read(case)[1]
    ids, labels = tensors["input_ids"].long(), tensors["labels"].long()
    scores = model.forward_text(ids)[:, :-1]
    targets = labels[:, 1:].masked_fill(labels[:, 1:] == 0, IGNORE)
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss[None], tensors["loss"], atol=CLOSE, rtol=0)
    compared(case)


@named(MIXTURES)
@torch.no_grad()
def test_router_losses(case: Path) -> None:
    """Per layer, as a mean, and the weight; the base layout reports all weighed once already."""
    model, tensors = loaded(case), read(case)[1]
    with watched(model.model.lm) as seen:
        model.forward_text(tensors["input_ids"].long())
    assert len(seen) == len(routers(model.model.lm))
    weight = torch.tensor([model.model.lm.config.router_aux_loss_coef])
    torch.testing.assert_close(weight, tensors["lb_weight"].float())
    base = model.model.config.foreign["llama_type"] == "mixtral"
    layers = imbalance(seen) * (weight if base else 1.0)
    torch.testing.assert_close(layers, tensors["lb_losses_per_layer"], atol=CLOSE, rtol=0)
    torch.testing.assert_close(layers.mean()[None], tensors["lb_loss"], atol=CLOSE, rtol=0)
    compared(case)


@named([case for case in LMS if "freqs_cis_real" in read(case)[1]])
def test_angles(case: Path) -> None:
    """cos and sin of the first positions, and of scaled ones as fp32 and bf16 make them."""
    model, tensors = loaded(case), read(case)[1]
    rotary = model.model.lm.base.rotary_emb
    places = torch.arange(len(tensors["freqs_cis_real"]))[None]
    half = tensors["freqs_cis_real"].shape[1]
    found = rotary(torch.zeros(1), places)
    for got, key in zip(found, ("freqs_cis_real", "freqs_cis_imag"), strict=True):
        torch.testing.assert_close(got[0, :, :half], tensors[key], atol=CLOSE, rtol=0)
    compared(case)


@named(cases("sphinx", "*", having="rope_bf16_quirk.safetensors"))
def test_scaled_angles(case: Path) -> None:
    """Scaled positions as fp32 and as bf16 make them; base and scale are read off position 1."""
    tables = load_file(case / "rope_bf16_quirk.safetensors")
    places, half = tables["positions"].long()[None], tables["fp32_real"].shape[1]
    first = int((places[0] == 1).nonzero())
    angles = torch.atan2(tables["fp32_imag"][first], tables["fp32_real"][first]).double()
    rope = {
        "rope_type": "linear",
        "factor": round(1 / float(angles[0]), 3),
        "rope_theta": round(float(angles[0] / angles[1]) ** half),
    }
    config = LlamaConfig(hidden_size=2 * half, num_attention_heads=1, rope_parameters=rope)
    kinds = {"fp32": LlamaRotaryEmbedding(config), "bf16": RoundedRope(config)}
    for kind, module in kinds.items():
        cos, sin = (t[0, :, :half] for t in module(torch.zeros(1), places))
        # angles reach hundreds of radians, of which fp32 keeps 2**-15
        torch.testing.assert_close(cos, tables[f"{kind}_real"], atol=1e-4, rtol=0)
        torch.testing.assert_close(sin, tables[f"{kind}_imag"], atol=1e-4, rtol=0)
    compared(case)


@named(LMS)
def test_answers(case: Path) -> None:
    """Greedy and seeded draws, alone and in batches, with stop symbols; ids and text."""
    model = loaded(case)
    for record in read(case)[0]["generate"]:
        options = dict(record["args"])
        seed = options.pop("seed")
        if seed is not None:
            torch.manual_seed(seed)
        texts = model.generate(**options)
        assert texts == record["text"], record["args"]
        assert texts == [model.tokenizer.decode(ids) for ids in record["ids"]]
    compared(case)


@named(LMS)
def test_streams(case: Path) -> None:
    model = loaded(case)
    for record in read(case)[0]["stream_generate"]:
        options = dict(record["args"])
        seed = options.pop("seed")
        if seed is not None:
            torch.manual_seed(seed)
        assert list(model.stream_generate(record["prompt"], **options)) == record["chunks"]
    compared(case)


@named(LMS)
def test_scored_examples(case: Path) -> None:
    outputs = read(case)[0]
    found = loaded(case).evaluate_examples(outputs["texts"], outputs["contexts"])
    wanted = outputs["evaluate_examples"]
    for key in ("log_likelihood", "ppl"):
        assert found[key] == pytest.approx(wanted[key], abs=1e-4)
    assert found["max_equal"] == wanted["max_equal"]
    assert [len(rows) for rows in found["non_context_logits"]] == wanted["non_context_len"]
    compared(case)


@named(PEFT)
def test_tuned_parameters(case: Path) -> None:
    """Names and shapes on disk are those recorded; the trained ones are LoRA, biases, norms."""
    from retinue.convert.consolidated import Consolidated, shard_files

    outputs = read(case)[0]
    weights = Consolidated(shard_files(case / "checkpoint"))
    assert {f"llma.{n}": list(weights.shape(n)) for n in weights} == outputs["keys"]
    marks = ("lora_", "bias", "norm")
    trained = {name for name in outputs["keys"] if any(mark in name for mark in marks)}
    assert trained == set(outputs["trainable"])
    assert all(outputs["config"].get(k) in (None, v) for k, v in config_of(case).items())
    compared(case)


def config_of(case: Path) -> dict[str, object]:
    import json

    found: dict[str, object] = json.loads((case / "checkpoint" / "config.json").read_text())
    return {k: v for k, v in found.items() if k in read(case)[0]["config"]}
