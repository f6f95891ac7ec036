"""MOSS2 language models as Llama: logits, hidden states, caches, greedy ids, renamed weights.

Tolerance 5e-6 on logits, as the cases state; on what the original calls relative, 1e-4 at most.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from torch import Tensor

from retinue.convert.detect import detect
from retinue.convert.internlm import joined, language_fields, language_rules, language_weights
from retinue.convert.keymap import KeyMap
from retinue.model.lm.causal import CausalLM
from retinue.model.spec import as_config
from retinue.types import IGNORE, Cache, LMInputs

pytestmark = pytest.mark.golden

CASES = cases("llava-moss2", "lm-*", having="checkpoint")
CLOSE = {"atol": 5e-6, "rtol": 0.0}


def renamed(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Llama's config fields and weights of a case."""
    found = detect(case / "checkpoint")
    assert found.format == "causal-lm"
    keys = KeyMap(language_rules(found.config))
    weights = language_weights(found.weights, found.config)
    state = {}
    for name in weights:
        ours = keys.to_retinue(name)
        assert ours is not None, name
        state[ours.removeprefix("lm.")] = weights.read(name)
        assert weights.shape(name) == state[ours.removeprefix("lm.")].shape
        assert keys.from_retinue(ours) == name
    return language_fields(found.config, where=str(case)), state


def opened(case: Path, *, rope: str = "sequence") -> CausalLM:
    fields, state = renamed(case)
    lm = CausalLM(as_config(fields), rope=rope).eval()
    lm.load_state_dict(state)
    return lm


def run(
    lm: CausalLM,
    ids: Tensor,
    *,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    cache: Cache | None = None,
    past: int = 0,
) -> Tensor:
    ids = ids if ids.dim() == 2 else ids[None]
    if positions is None:
        positions = torch.arange(past, past + ids.shape[1]).expand_as(ids)
    segments = torch.ones_like(ids) if mask is None else mask.long()
    inputs = LMInputs(embeds_BTD=lm.embed(ids), positions_BT=positions, segments_BT=segments)
    return lm.logits(lm(inputs, cache=cache))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_renaming_and_back(case: Path) -> None:
    _, state = renamed(case)
    expected = json.loads((case / "llama_renamed_summary.json").read_text())
    assert set(state) == set(expected)
    for name, row in expected.items():
        flat = state[name].double().flatten()
        assert list(state[name].shape) == row["shape"]
        assert flat.sum().item() == pytest.approx(row["sum"], abs=1e-6)
        assert flat.abs().sum().item() == pytest.approx(row["abs_sum"], abs=1e-6)
        assert flat[:4].tolist() == pytest.approx(row["first4"], abs=1e-7)
        assert flat[-4:].tolist() == pytest.approx(row["last4"], abs=1e-7)
    found = detect(case / "checkpoint")
    keys = KeyMap(language_rules(found.config))
    heads = found.config["num_attention_heads"]
    named = [(str(keys.from_retinue(f"lm.{name}")), tensor) for name, tensor in state.items()]
    back = dict(joined(named, heads=heads, groups=found.config["num_key_value_heads"] or heads))
    shapes = json.loads((case / "state_dict_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in back.items()} == shapes
    for name, tensor in back.items():
        assert torch.equal(tensor, found.weights.read(name)), name
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_short(case: Path) -> None:
    lm, want = opened(case), load_file(case / "outputs.safetensors")
    seen: list[Tensor] = []
    for layer in lm.layers:
        layer.register_forward_hook(
            lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    ids = want["ids_short"]
    logits = run(lm, ids)
    torch.testing.assert_close(logits, want["logits_short"], **CLOSE)
    hidden = [lm.embed(ids), *seen[:-1], lm.base.norm(seen[-1])]
    torch.testing.assert_close(torch.stack(hidden), want["hidden_short_all"], **CLOSE)
    targets = want["labels_short"][:, 1:].flatten()
    kept = targets != IGNORE
    total = lm.loss_sum(hidden[-1][:, :-1].flatten(0, 1)[kept], targets[kept], None)
    assert (total / kept.sum()).item() == pytest.approx(want["loss_short"].item(), abs=5e-6)
    for key, positions in (
        ("leftpad", want["position_ids_leftpad"]),
        ("rightpad_no_position_ids", None),
    ):
        mask = want[f"attn_mask_{key.partition('_')[0]}"].bool()
        logits = run(lm, ids, positions=positions, mask=mask)
        torch.testing.assert_close(logits[mask], want[f"logits_{key}"][mask], **CLOSE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_long(case: Path) -> None:
    """Beyond the limit; what came before changes nothing here, and all in the sticky rope."""
    want = load_file(case / "outputs.safetensors")
    ids, short = want["ids_long"], want["ids_short"]
    mid = ids.reshape(-1)[: int(want["mid_len"])]
    lm, sticky = opened(case), opened(case, rope="sticky")
    for model, then, after in (
        (lm, "logits_short", "logits_mid_fresh"),
        (sticky, "logits_short_after_long", "logits_mid_after_long"),
    ):
        torch.testing.assert_close(
            run(model, ids).reshape(-1), want["logits_long_fresh"].reshape(-1), **CLOSE
        )
        torch.testing.assert_close(run(model, short), want[then], **CLOSE)
        torch.testing.assert_close(run(model, mid).reshape(-1), want[after].reshape(-1), **CLOSE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_cached(case: Path) -> None:
    lm, want = opened(case), load_file(case / "outputs.safetensors")
    steps = want["logits_cached_steps"]
    start, count = int(want["prefill_len"]), steps.reshape(-1, steps.shape[-1]).shape[0]
    total = want["kv_cache_key_layer0"].shape[-2]
    ids = want["ids_long"].reshape(-1)[:total]
    cache = lm.new_cache()
    found = [run(lm, ids[:start], cache=cache)[0]]
    found += [run(lm, ids[i : i + 1], cache=cache, past=i)[0] for i in range(start, total)]
    together = torch.cat(found)
    wanted = steps.reshape(count, -1)
    torch.testing.assert_close(together[-count:], wanted, **CLOSE)
    full = run(lm, ids)
    torch.testing.assert_close(full.reshape(-1), want["logits_full_same_ids"].reshape(-1), **CLOSE)
    layer = cache.lm.layers[0]
    torch.testing.assert_close(layer.keys, want["kv_cache_key_layer0"], **CLOSE)
    torch.testing.assert_close(layer.values, want["kv_cache_value_layer0"], **CLOSE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_greedy(case: Path) -> None:
    want = load_file(case / "outputs.safetensors")
    sticky, lm = opened(case, rope="sticky"), opened(case)
    first, second = "gen_greedy", "gen_greedy_second_call_same_model"
    for model, key in ((sticky, first), (sticky, second), (lm, first), (lm, first)):
        ids = want["gen_prompt"].reshape(1, -1)
        cache, past = model.new_cache(), 0
        new = ids
        while ids.shape[1] < want[key].numel():
            logits = run(model, new, cache=cache, past=past)
            past = ids.shape[1]
            new = logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, new], dim=1)
        assert ids.reshape(-1).tolist() == want[key].reshape(-1).tolist(), key
