"""LLaMA2-Accessory's ways to tune few parameters as rules of our trainable table.

Which ones train is decided by words in their names there: norm, bias, lora, prefix. Reference:
Alpha-VLLM/LLaMA2-Accessory, the models llama_peft, llama_ens_peft, llama_qformerv2_peft,
mixtral_peft and llama_adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from retinue.core.errors import ConfigError
from retinue.model.freeze import matches

FIELDS = ("lora_rank", "bias_tuning", "norm_tuning", "prefix_len", "prefix_layers")
"""Model arguments that say how a model is tuned."""

WORDS = {
    "norm": ("lm.**norm.weight",),
    "bias": (
        *("lm.**.bias", "connector.net.bias", "connector.norm.bias"),
        *("connector.parts.*.net.bias", "connector.parts.*.norm.bias"),
    ),
    "prefix": ("lm.**.prefix", "lm.**.prefix_gate"),
}
"""Word in the original's names -> our patterns. Encoders and Q-Former never train."""

PLURALS = {"norm": "norms", "bias": "biases", "prefix": "prefixes"}
LORA = "lm.model.layers.**_proj.weight"


def accessory_rules(
    args: Mapping[str, Any], names: Collection[str], *, prefixed: bool = False
) -> dict[str, Any]:
    """`trainable:` of a stage for a model with these parameter names, from its model arguments.

    norm_tuning (default: yes) and bias_tuning train norms and biases, lora_rank (-1: none) adds
    adapters without scaling, alpha = rank; prefixed: a llama_adapter, whose norms and prefixes
    train. Raises ConfigError where an argument asks for what the model does not have.
    """
    wanted = ["norm"] if args.get("norm_tuning", True) else []
    wanted += ["bias"] if args.get("bias_tuning", False) else []
    wanted += ["prefix"] if prefixed or args.get("prefix_len") else []
    rules: dict[str, Any] = {}
    rank = int(args.get("lora_rank") or -1)
    if rank > 0:
        rules[LORA] = {"lora": {"r": rank, "alpha": float(rank)}}
    for word in wanted:
        found = [p for p in WORDS[word] if any(matches(p, name) for name in names)]
        if not found:
            raise ConfigError(
                f"{PLURALS[word]} are to be tuned, and the model has none",
                where="model arguments",
                rule=f"looked for {', '.join(WORDS[word])}",
                fix="load a checkpoint that was tuned so, or build the model with them",
            )
        rules |= dict.fromkeys(found, "full")
    if not rules:
        raise ConfigError(
            "model arguments that tune nothing",
            where="model arguments",
            rule=f"read: {', '.join(FIELDS)}",
        )
    return rules
