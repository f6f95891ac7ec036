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


def trainable_rules(
    tuning: Mapping[str, Any],
    names: Collection[str],
    *,
    adapter: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`trainable:` of a stage for a model with these parameter names.

    LoRA targets are ends of a layer's name below the language model, `unfrozen` holds parts of
    parameter names; those that reach nothing in this model are left out, as in the original. With
    `lora: false` its other fields mean nothing. A weight that is both trains in full, without an
    adapter. from_pretrained names an adapter that lies under the checkpoints, folded in; it trains
    on, as new factors of its shape (adapter: its adapter_config.json) or of the config's own, where
    `lora` or `unfrozen` asks for it. (The original means to train it and leaves it frozen.) Raises
    ConfigError for unknown fields, or if nothing is reached.
    """
    odd = set(tuning) - FIELDS
    if odd:
        raise ConfigError(
            f"unknown fields {', '.join(sorted(odd))}",
            where="tuning config",
            rule=f"known: {', '.join(sorted(FIELDS))}",
        )
    rules: dict[str, Any] = {}
    tuning = dict(tuning)
    unfrozen = list(tuning.get("unfrozen") or ())
    if tuning.get("from_pretrained"):
        tuning["lora"] = tuning.get("lora") or any("lora" in part for part in unfrozen)
        unfrozen = [part for part in unfrozen if "lora" not in part]
        if adapter is not None:
            tuning["lora_target_modules"] = adapter["target_modules"]
            for own in ("r", "lora_alpha", "lora_dropout"):
                tuning[f"lora_{own.removeprefix('lora_')}"] = adapter.get(own, 0.0)
        elif tuning["lora"] and "lora_r" not in tuning:
            raise ConfigError(
                f"the adapter {tuning['from_pretrained']!r} is not at hand",
                where="tuning config",
                rule="its adapter_config.json says which layers have factors, and of what rank",
                fix="name its folder in from_pretrained, or give lora_r and lora_target_modules",
            )
    if tuning.get("lora"):
        spec = {
            "r": int(tuning["lora_r"]),
            "alpha": float(tuning["lora_alpha"]),
            "dropout": float(tuning.get("lora_dropout", 0.0)),
        }
        for target in tuning["lora_target_modules"]:
            pattern = f"lm.**{target}.weight"
            if any(matches(pattern, name) for name in names):
                rules[pattern] = {"lora": spec}
    for part in unfrozen:
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
