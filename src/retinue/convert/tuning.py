"""Instruct-Flamingo's tuning configs as rules of our trainable table.

Source: the `tuning_config` files of instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from retinue.core.errors import ConfigError
from retinue.model.freeze import matches

FIELDS = {
    "lora",
    "from_pretrained",
    "lora_target_modules",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "unfrozen",
}


def trainable_rules(tuning: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`trainable:` of a stage for a model with these parameter names.

    LoRA targets are ends of a layer's name below the language model, `unfrozen` holds parts of
    parameter names; those that reach nothing in this model are left out, as in the original. With
    `lora: false` its other fields mean nothing. A weight that is both trains in full, without an
    adapter. from_pretrained names an adapter to load onto the language model, which stays frozen
    unless `unfrozen` says "lora". Raises ConfigError for unknown fields, or if nothing is reached.
    """
    odd = set(tuning) - FIELDS
    if odd:
        raise ConfigError(
            f"unknown fields {', '.join(sorted(odd))}",
            where="tuning config",
            rule=f"known: {', '.join(sorted(FIELDS))}",
        )
    rules: dict[str, Any] = {}
    if tuning.get("lora") and not tuning.get("from_pretrained"):
        spec = {
            "r": int(tuning["lora_r"]),
            "alpha": float(tuning["lora_alpha"]),
            "dropout": float(tuning.get("lora_dropout", 0.0)),
        }
        for target in tuning["lora_target_modules"]:
            pattern = f"lm.**{target}.weight"
            if any(matches(pattern, name) for name in names):
                rules[pattern] = {"lora": spec}
    for part in tuning.get("unfrozen") or ():
        pattern = f"**{part.replace('perceiver', 'connector').replace('lang_encoder.', 'lm.')}**"
        if any(matches(pattern, name) for name in names):
            rules[pattern] = "full"
    if not rules:
        raise ConfigError(
            "a tuning config that reaches no parameter of this model",
            where="tuning config",
            rule=f"targets {tuning.get('lora_target_modules')}, unfrozen {tuning.get('unfrozen')}",
        )
    return rules
