"""Parameters that a tuned variant of LLaMA2-Accessory adds to a checkpoint which lacks them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retinue.convert.sphinx_lm import experts_layout
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.core.seed import stream_seed
from retinue.hub.held import Held

TUNED = ("_peft", "llama_adapter")
LINEAR = re.compile(r"layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123])\.weight")
PROBE = "layers.0.attention.wq.weight"
PREFIX_LEN = 30
"""The original's default."""


def grown(weights: Weights, args: Mapping[str, Any], *, llama_type: str | None) -> Held | None:
    """Zero biases, and prefixes behind closed gates, where the arguments ask for them.

    A variant that is tuned (llama_peft, llama_adapter and the like) may start from a plain
    checkpoint: it then answers as that does. None where nothing is to be added. Raises
    CheckpointError for a mixture, whose experts take no biases here.
    """
    if llama_type is None or not llama_type.endswith(TUNED) or PROBE not in weights:
        return None
    found: dict[str, Tensor] = {}
    kind = weights.dtype(PROBE)
    if args.get("bias_tuning") and PROBE.replace("weight", "bias") not in weights:
        if experts_layout(weights) is not None:
            raise CheckpointError(
                "bias_tuning of a mixture",
                where="model arguments",
                rule="transformers' Mixtral has no biases",
                fix="set bias_tuning to false; norms and LoRA can be tuned",
            )
        for name in weights:
            if LINEAR.fullmatch(name):
                bias = name.replace(".weight", ".bias")
                found[bias] = torch.zeros(weights.shape(name)[0], dtype=kind)
    if llama_type == "llama_adapter" and "prefix" not in weights:
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        number = int(args.get("prefix_layers") or layers)
        if not 1 <= number <= layers:
            raise CheckpointError(
                f"prefix_layers {number}", where="model arguments", rule=f"1 to {layers} layers"
            )
        heads = int(args.get("n_heads") or 32)
        width = weights.shape("tok_embeddings.weight")[1]
        length = int(args.get("prefix_len") or PREFIX_LEN)
        draw = torch.Generator().manual_seed(stream_seed(0, "prefix"))
        found["prefix"] = torch.randn(number, 1, length, width, generator=draw).to(kind)
        found["prefix_gate"] = torch.zeros(number, heads, dtype=kind)
    return Held(found) if found else None
