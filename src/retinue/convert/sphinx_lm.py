"""Language models of LLaMA2-Accessory on transformers' Llama and Mixtral: config and parameters.

Theirs rotates neighbouring channels (Meta's form), transformers' rotates halves of a head, so the
rows of queries and keys are put in another order. Experts come as one Linear each (`base`) or as
tall matrices with all experts of a layer, the third transposed (`sparse`).

Legend: H heads, K head width, E experts, F hidden rows of one expert, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from retinue.convert.groups import Group, Tensors, renamed
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError

Experts = Literal["base", "sparse"] | None

KNOWN = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"),
    *("ffn_dim_multiplier", "norm_eps", "rope_theta", "rope_scaling", "max_batch_size"),
    *("max_seq_len", "hidden_dim", "head_dim", "moe", "load_balancing_weight"),
    *("load_pretrained_visual_encoder", "trainable_mode"),
    *("lora_rank", "bias_tuning", "norm_tuning", "prefix_layers", "prefix_len"),
)
"""Fields of the original's model arguments; it refuses any other."""

LAYER, OURS = "layers.{}.", "lm.model.layers.{}."
ATTENTION = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
DENSE = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def experts_layout(names: Weights) -> Experts:
    """How a checkpoint holds its experts; None if it has none."""
    if "layers.0.feed_forward.gate.weight" not in names:
        return None
    return "sparse" if "layers.0.feed_forward.w1" in names else "base"


def text_config(args: Mapping[str, Any], weights: Weights, *, where: str) -> dict[str, Any]:
    """A Llama or Mixtral config; widths are read off the weights, which cannot be wrong.

    args: config.json, or params.json in Meta's folders. Raises CheckpointError for unknown fields
    and for sizes that do not fit the weights.
    """
    odd = sorted(set(args) - set(KNOWN))
    if odd:
        raise CheckpointError(
            f"unknown fields {', '.join(odd)}", where=where, rule=f"known: {', '.join(KNOWN)}"
        )
    for name in ("tok_embeddings.weight", "output.weight", "layers.0.attention.wq.weight"):
        if name not in weights:
            raise CheckpointError(
                f"no {name}", where=where, rule="every model of the format has it"
            )
    layout = experts_layout(weights)
    rows, dim = weights.shape("tok_embeddings.weight")
    layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("layers."))
    heads = int(args.get("n_heads") or (40 if dim == 5120 else 32))
    width = max(dim // heads, 1)
    fields: dict[str, Any] = {
        "model_type": "mixtral" if layout else "llama",
        "vocab_size": rows,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": weights.shape("layers.0.attention.wk.weight")[0] // width,
        "max_position_embeddings": int(args.get("max_seq_len") or 2048),
        "rms_norm_eps": float(args.get("norm_eps") or 1e-5),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": rope(args, default=1e6 if layout else 1e4),
    }
    said = {"dim": dim, "n_layers": layers}
    wrong = [k for k, v in said.items() if args.get(k) not in (None, v)]
    if wrong or dim % heads or fields["num_key_value_heads"] < 1:
        raise CheckpointError(
            f"{', '.join(wrong) or 'n_heads'} of the config does not fit the weights",
            where=where,
            rule=f"the weights have width {dim} and {layers} layers, {heads} heads are assumed",
            fix="copy config.json into the folder, or name it: llama_config=[PATH]",
        )
    if layout is None:
        return fields | {
            "intermediate_size": weights.shape("layers.0.feed_forward.w1.weight")[0],
            "attention_bias": "layers.0.attention.wq.bias" in weights,
            "mlp_bias": "layers.0.feed_forward.w1.bias" in weights,
        }
    return fields | _mixture(args, weights, layout, where=where)


def _mixture(
    args: Mapping[str, Any], weights: Weights, layout: Experts, *, where: str
) -> dict[str, Any]:
    number = weights.shape("layers.0.feed_forward.gate.weight")[0]
    if any(name.endswith(".bias") and name.startswith("layers.") for name in weights):
        raise CheckpointError(
            "a mixture with biases", where=where, rule="transformers' Mixtral has none"
        )
    if layout == "sparse":
        inner = weights.shape("layers.0.feed_forward.w1")[0] // number
    else:
        inner = weights.shape("layers.0.feed_forward.experts.0.w1.weight")[0]
    return {
        "intermediate_size": inner,
        "num_local_experts": number,
        "num_experts_per_tok": int((args.get("moe") or {}).get("num_experts_per_tok", 2)),
        "router_aux_loss_coef": float(args.get("load_balancing_weight", 0.1)),
        "sliding_window": None,
    }


def rope(args: Mapping[str, Any], *, default: float) -> dict[str, Any]:
    """Rotary settings: their factor multiplies positions, ours divides them."""
    base = {"rope_theta": float(args.get("rope_theta") or default)}
    scale = args.get("rope_scaling")
    if scale in (None, 1, 1.0):
        return {"rope_type": "default", **base}
    return {"rope_type": "linear", "factor": 1.0 / float(scale), **base}


def lm_groups(text: Any, *, experts: Experts, names: Weights | None = None) -> list[Group]:
    """Groups of a whole language model; text: its config; names: of a checkpoint, to find LoRA."""
    heads = {"wq": text.num_attention_heads, "wk": text.num_key_value_heads}
    found = [
        renamed("tok_embeddings.weight", "lm.model.embed_tokens.weight"),
        renamed("norm.weight", "lm.model.norm.weight"),
        renamed("output.weight", "lm.lm_head.weight"),
    ]
    for number in range(text.num_hidden_layers):
        theirs, ours = LAYER.format(number), OURS.format(number)
        found.append(renamed(f"{theirs}attention_norm.weight", f"{ours}input_layernorm.weight"))
        found.append(renamed(f"{theirs}ffn_norm.weight", f"{ours}post_attention_layernorm.weight"))
        linears = {f"attention.{a}": f"self_attn.{b}" for a, b in ATTENTION.items()}
        if experts is None:
            linears |= {f"feed_forward.{a}": f"mlp.{b}" for a, b in DENSE.items()}
        for their, our in linears.items():
            turned = heads.get(their.rpartition(".")[2])
            found += _linear(theirs + their, ours + our, heads=turned, text=text, names=names)
        if experts is not None:
            found += _experts(theirs + "feed_forward.", ours + "mlp.", text, experts)
    return found


def prefix_groups(text: Any, *, layers: int | None) -> list[Group]:
    """LLaMA-Adapter's prefixes and gates: one table each, of the last layers, in their order."""
    number = text.num_hidden_layers if layers is None else layers
    first = text.num_hidden_layers - number
    places = [f"{OURS.format(first + row)}self_attn." for row in range(number)]
    return [
        Group(
            ("prefix",),
            tuple(f"{place}prefix" for place in places),
            read=lambda t: list(t[0][:, 0]),
            write=lambda t: [torch.stack(list(t))[:, None]],
        ),
        Group(
            ("prefix_gate",),
            tuple(f"{place}prefix_gate" for place in places),
            read=lambda t: list(t[0]),
            write=lambda t: [torch.stack(list(t))],
        ),
    ]


def _linear(
    theirs: str, ours: str, *, heads: int | None, text: Any, names: Weights | None
) -> list[Group]:
    read, write = (_identity, _identity) if heads is None else (_halves(heads), _pairs(heads))
    kind = "attention_bias" if ".attention." in theirs else "mlp_bias"
    biased = bool(getattr(text, kind, False))
    leaves = ["weight", *(["bias"] if biased else [])]
    found = []
    for leaf in leaves:
        raw: tuple[str, ...] = (f"{theirs}.{leaf}",)
        first: Callable[[Tensors], Tensor] = _only
        if leaf == "weight" and names is not None and f"{theirs}.lora_a.weight" in names:
            raw += (f"{theirs}.lora_a.weight", f"{theirs}.lora_b.weight")
            first = _folded
        found.append(
            Group(
                raw,
                (f"{ours}.{leaf}",),
                read=lambda t, first=first: [read(first(t))],  # type: ignore[misc]
                write=lambda t: [write(t[0])],
            )
        )
    return found


def _experts(theirs: str, ours: str, text: Any, layout: Experts) -> list[Group]:
    number = text.num_local_experts
    router = renamed(f"{theirs}gate.weight", f"{ours}gate.weight")
    up, down = (f"{ours}experts.gate_up_proj",), (f"{ours}experts.down_proj",)
    if layout == "sparse":
        tall = lambda t: t.unflatten(0, (number, -1))  # noqa: E731
        return [
            router,
            Group(
                (f"{theirs}w1", f"{theirs}w3"),
                up,
                read=lambda t: [torch.cat([tall(t[0]), tall(t[1])], dim=1)],
                write=lambda t: [part.flatten(0, 1) for part in t[0].chunk(2, dim=1)],
            ),
            Group(
                (f"{theirs}w2",),
                down,
                read=lambda t: [tall(t[0]).transpose(1, 2)],
                write=lambda t: [t[0].transpose(1, 2).flatten(0, 1)],
            ),
        ]
    each = [f"{theirs}experts.{e}." for e in range(number)]
    return [
        router,
        Group(
            (*(f"{e}w1.weight" for e in each), *(f"{e}w3.weight" for e in each)),
            up,
            read=lambda t: [torch.cat([_stack(t[:number]), _stack(t[number:])], dim=1)],
            write=lambda t: [part for half in t[0].chunk(2, dim=1) for part in half.unbind()],
        ),
        Group(
            tuple(f"{e}w2.weight" for e in each),
            down,
            read=lambda t: [_stack(t)],
            write=lambda t: list(t[0].unbind()),
        ),
    ]


def _stack(tensors: Tensors) -> Tensor:
    return torch.stack(list(tensors))


def _only(tensors: Tensors) -> Tensor:
    return tensors[0]


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _folded(tensors: Tensors) -> Tensor:
    """W + B A, unscaled as in the original; in fp32, because the sum has more digits than W."""
    weight, a, b = (tensor.float() for tensor in tensors)
    return weight + b @ a


def _halves(heads: int) -> Callable[[Tensor], Tensor]:
    """Rows (H, K/2, 2) -> (H, 2, K/2): neighbouring channels become halves of a head."""
    return lambda t: t.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _pairs(heads: int) -> Callable[[Tensor], Tensor]:
    """The way back."""
    return lambda t: t.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
