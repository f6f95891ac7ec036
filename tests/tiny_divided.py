"""What two processes that share a language model's layers compute, beside what one computes.

`work` runs in each process (see `tiny_tensor.on_ranks`), with a whole model beside the divided one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from retinue.hub.load import load
from retinue.model.build import build_model
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.freeze import LoraRule, LoraSpec, apply_rules
from retinue.model.spec import RetinueConfig
from retinue.parallel.tensors import scale_down, total_norm
from retinue.train.optim import OptimSpec, make_optimizer
from retinue.types import Batch, Grid, Visual

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
MPT = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "llama-biases": ("Llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": 4}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 8}),
    "mixtral": ("Mixtral", {**GROUPED, "num_local_experts": 4}),
    "phi3": ("Phi3", GROUPED),
    "gemma2": ("Gemma2", {**GROUPED, "head_dim": 8}),
    "gpt_neox": ("GPTNeoX", {**COMMON, "intermediate_size": 48}),
    "opt": ("OPT", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "mpt": ("Mpt", MPT),
    "mpt-1b": ("Mpt", {**MPT, "attn_config": {"qk_ln": True, "alibi": True}}),
}


def config(name: str, *, fusion: dict[str, Any] | None = None) -> RetinueConfig:
    kind, fields = MODELS[name]
    return RetinueConfig(
        getattr(transformers, f"{kind}Config")(**fields),
        {"eye": PatchesConfig(hidden_size=32, image_size=32)},
        {
            "encoders": {"eye": {"kind": "patches"}},
            "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
            "image_token_id": 63,
            **({} if fusion is None else {"fusion": fusion}),
        },
    )


def batch(seed: int = 1) -> Batch:
    """Two rows of nine words, one of them two documents."""
    chance = torch.Generator().manual_seed(seed)
    segments = torch.ones(2, 9, dtype=torch.long)
    positions = torch.arange(9).repeat(2, 1)
    segments[0, 5:], positions[0, 5:] = 2, torch.arange(4)
    return Batch(
        ids=["a", "b"],
        tokens=torch.randint(3, 60, (2, 9), generator=chance),
        positions=positions,
        segments=segments,
        labels=torch.randint(3, 60, (2, 9), generator=chance),
        supervised=torch.tensor([1, 2, 4, 7, 10, 14]),
    )


def seen(*, placeholders: int) -> Batch:
    """One row that begins with a picture of sixteen tokens, shown in so many places."""
    chance = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 60, (1, 24), generator=chance)
    tokens[:, :placeholders] = 63
    return Batch(
        ids=["a"],
        tokens=tokens,
        positions=torch.arange(24)[None],
        segments=torch.ones_like(tokens),
        labels=torch.randint(3, 60, (1, 24), generator=chance),
        supervised=torch.tensor([17, 19, 22]),
        visual=Visual(
            pixels={
                "rgb": torch.randint(0, 256, (1, 3, 32, 32), generator=chance, dtype=torch.uint8)
            },
            grids=[Grid(size=(32, 32))],
            budgets=[None],
            spans=torch.tensor([[0, 0, placeholders]]),
            index=torch.arange(placeholders),
        ),
    )


def far(one: torch.Tensor, two: torch.Tensor) -> float:
    """Largest difference, measured by the largest value."""
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-3))


def compared(one: Any, two: Any, shown: Batch | None = None) -> dict[str, Any]:
    """A forward and backward of both, and what the divided one has on this rank."""
    from retinue.parallel.tensor_split import cuts, full_state, whole

    with torch.no_grad():
        asked = replace(shown or batch(), labels=None, supervised=None)
        logits = far(*(model.run(asked).logits for model in (one, two)))
    losses = [model.run(shown or batch()).loss_sum for model in (one, two)]
    for loss in losses:
        loss.backward()
    known, own = cuts(two), dict(two.named_parameters())
    gradients = {}
    for name, parameter in one.named_parameters():
        if parameter.grad is None:
            assert own[name].grad is None, name
            continue
        assert own[name].grad is not None, name
        gradients[name] = far(parameter.grad, whole(own[name].grad, known.get(name)))
    state = full_state(two)
    return {
        "logits": logits,
        "loss": abs(float(losses[0] - losses[1])) / float(losses[0]),
        "gradients": gradients,
        "same": all(torch.equal(value, state[name]) for name, value in one.state_dict().items()),
        "names": list(state) == list(one.state_dict()),
        "whole": [n for n, p in own.items() if ".layers." in n and n not in known and p.dim() > 1],
        "parts": {n: own[n].to_local().numel() / own[n].numel() for n in known},
    }


def decoded(model: Any, *, steps: int = 5) -> list[list[int]]:
    """Greedy ids of two prompts, with a cache."""
    first = batch()
    cache, tokens, found = model.new_cache(), first.tokens, []
    positions, segments = torch.arange(9).repeat(2, 1), torch.ones(2, 9, dtype=torch.long)
    with torch.inference_mode():
        for step in range(steps):
            now = Batch(ids=["a", "b"], tokens=tokens, positions=positions, segments=segments)
            logits = model.run(now, cache=cache, keep="last").logits
            tokens = logits.argmax(-1, keepdim=True)
            positions, segments = torch.full((2, 1), 9 + step), torch.ones_like(tokens)
            found.append(tokens[:, 0].tolist())
    return found


def opened(mesh: Any, folder: Path) -> dict[str, Any]:
    """A model folder read whole and in parts, with an adapter on top."""
    whole, _ = load(folder / "model", adapters=[folder / "adapter"])
    parts, _ = load(folder / "model", adapters=[folder / "adapter"], mesh=mesh)
    bare, _ = load(folder / "model", mesh=mesh, follows=True)
    words = replace(batch(), labels=None, supervised=None)
    with torch.no_grad():
        logits = [model.run(words).logits for model in (whole, parts)]
    return {
        "logits": far(*logits),
        "parts": {
            name: parameter.to_local().numel() / parameter.numel()
            for name, parameter in parts.named_parameters()
            if name.endswith(("_proj.base_layer.weight", "_proj.weight"))
        },
        "adapters": [
            n for n, p in parts.named_parameters() if "lora" in n and hasattr(p, "placements")
        ],
        "bare": [n for n, _ in bare.named_parameters() if not n.startswith("lm.model.")],
    }


def work(rank: int, mesh: Any, folder: Path) -> dict[str, Any]:
    """Everything that the tests look at. folder: see `opened`."""
    from retinue.parallel.tensor import parallelize, undivide

    found: dict[str, Any] = {}
    for name in MODELS:
        one, two = build_model(config(name), seed=0), build_model(config(name), seed=0)
        parallelize(two, mesh)
        found[name] = compared(one, two)
        found[name]["decoded"] = decoded(one.eval()) == decoded(two.eval())
        if name in ("phi3", "mpt-1b", "qwen3"):
            undivide(two)
            plain = [type(m) for m in two.modules()] == [type(m) for m in one.modules()]
            equal = all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
            found[name]["undone"] = plain and equal and decoded(one) == decoded(two)
    for fusion in ("expert", "cross"):
        fields = {"heads": 2, "head_width": 8} if fusion == "cross" else {}
        asked = config("llama", fusion={"kind": fusion, **fields})
        both = [build_model(asked, seed=0) for _ in range(2)]
        for name, parameter in [p for model in both for p in model.named_parameters()]:
            if name.endswith("_gate"):
                parameter.data.fill_(0.7)  # open
        parallelize(both[1], mesh)
        found[fusion] = compared(*both, seen(placeholders=1 if fusion == "cross" else 16))
    found["opened"] = opened(mesh, folder)
    found["training"] = trained(mesh, lora=False)
    found["adapters"] = trained(mesh, lora=True)
    return found


def trained(mesh: Any, *, lora: bool) -> dict[str, Any]:
    """Five updates of our optimizer, whole and divided: losses, norms and weights."""
    from retinue.parallel.tensor import parallelize
    from retinue.parallel.tensor_split import full_state

    runs, states = [], []
    for divided in (False, True):
        model = build_model(config("llama"), seed=0)
        torch.manual_seed(1)
        rule: Any = LoraRule(lora=LoraSpec(r=4)) if lora else "full"
        table = apply_rules(model, {"lm.**": rule}, lr=1e-2)
        if divided:
            parallelize(model, mesh)
        optimizer, _ = make_optimizer(model, table, spec=OptimSpec(lr=1e-2, clip=0.5))
        runs.append([update(model, optimizer, batch(step)) for step in range(5)])
        states.append(full_state(model))
    weights = max(far(states[0][name], states[1][name]) for name in states[0])
    return {"runs": runs, "weights": weights, "names": list(states[0]) == list(states[1])}


def update(model: Any, optimizer: Any, batch: Batch) -> tuple[float, float]:
    """(loss, norm of all gradients) of a step that is clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss = model.run(batch).loss_sum / 6
    loss.backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = total_norm([p.grad for p in parameters], device=loss.device)
    scale_down(parameters, norm=norm, limit=0.5)
    optimizer.step()
    return float(loss), float(norm)
