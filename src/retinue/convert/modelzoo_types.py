"""What kind of value each field of a ModelZoo config has: checked once, before it is mapped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from retinue.core.errors import ConfigError

Check = Callable[[Any], bool]


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def positive(value: Any) -> bool:
    return whole(value) and value > 0


def number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def word(value: Any) -> bool:
    return isinstance(value, str)


def words(value: Any) -> bool:
    return isinstance(value, list) and all(one is None or isinstance(one, str) for one in value)


def sizes(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(positive(one) for one in value)


def size_or_sizes(value: Any) -> bool:
    return positive(value) or (sizes(value) and len(value) == 2)


def three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(number(one) for one in value)


def pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(number(one) for one in value)


def mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


def some_mappings(value: Any) -> bool:
    return mappings(value) and bool(value)


def patterns(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return False
    try:
        return all(re.compile(one) is not None for one in value)
    except re.error:
        return False


KINDS: dict[str, tuple[Check, tuple[str, ...]]] = {
    "a positive whole number": (
        positive,
        (
            *("hidden_size", "filter_size", "num_hidden_layers", "num_heads", "vocab_size"),
            *("max_position_embeddings", "rotary_dim", "num_kv_groups", "max_num_img"),
            *("num_patches", "n", "log_steps", "max_steps", "num_steps", "batch_size"),
            *("input_unit", "total_iters", "decay_steps", "grad_accum_steps", "num_channels"),
        ),
    ),
    "a whole number": (whole, ("image_layer_idx", "seed", "shuffle_seed")),
    "a number": (
        number,
        (
            *("initial_learning_rate", "end_learning_rate", "weight_decay", "eps", "power"),
            *("layer_norm_epsilon", "rope_theta", "num_epochs", "max_gradient_norm"),
        ),
    ),
    "a word": (
        word,
        (
            *("nonlinearity", "norm_type", "position_embedding_type", "attention_type"),
            *("attention_module", "image_feature_select_mode", "fp16_type", "interpolation"),
        ),
    ),
    "a list of words and nulls": (words, ("layers_activation",)),
    "a list of regular expressions": (patterns, ("freeze",)),
    "a list of positive whole numbers": (sizes, ("layers_units",)),
    "[channels, height, width]": (
        lambda value: sizes(value) and len(value) == 3,
        ("image_data_size",),
    ),
    "a side in pixels, or [height, width]": (size_or_sizes, ("image_size", "patch_size", "size")),
    "two numbers": (pair, ("betas",)),
    "three numbers": (three, ("mean", "std", "background_color")),
    "a section with fields": (
        mapping,
        (
            *("init", "fit", "train_dataloader", "loop", "checkpoint", "logging", "precision"),
            *("model", "text_model", "image_model_list", "image_encoder", "projection_layer"),
            *("global_image_projection", "runconfig", "optimizer", "KeepNCheckpoints"),
            *("train_input", "SequentialLR", "LinearLR", "CosineDecayLR", "ConstantLR"),
            *("PolynomialLR",),
        ),
    ),
    "a list of sections": (mappings, ("transforms",)),
    "a list of encoders": (some_mappings, ("image_models", "image_model")),
}
CHECKS = {name: (check, kind) for kind, (check, names) in KINDS.items() for name in names}
LISTED = ("callbacks",)
"""Fields whose value is a list of names and sections."""


def check_types(value: Any, *, where: str) -> None:
    """Raise ConfigError naming the first field whose value is of another kind; null is absent."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            check, kind = CHECKS.get(name, (None, ""))
            if one is not None and check is not None and not check(one):
                raise ConfigError(f"{name}: {one!r:.60}", where=where, rule=f"it is {kind}")
            if name in LISTED and one is not None and not isinstance(one, list):
                raise ConfigError(f"{name}: {one!r:.60}", where=where, rule="it is a list")
            check_types(one, where=f"{where}.{name}")
    elif isinstance(value, list):
        for place, one in enumerate(value):
            check_types(one, where=f"{where}.{place}")
