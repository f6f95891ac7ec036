"""What a model section says of backbones and words, read from their folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.convert.detect import BASE, Found, detect, is_causal_lm
from retinue.convert.internlm import language_rules, language_weights
from retinue.convert.keymap import KeyMap
from retinue.convert.llava import text_fields
from retinue.convert.towers import norm_fields, open_tower, tower_keys
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.paths import HubId
from retinue.hub.resolve import resolve
from retinue.hub.section import EncoderPart, LMPart, ModelSection
from retinue.hub.sources import ADAPTER, OWN_KEYS
from retinue.hub.stream import Source
from retinue.model.encoders import ENCODERS
from retinue.text.tokenizer import Tokenizer

MODEL_TYPES = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "dinov2": "dinov2",
    "patches": "retinue_patches",
}
"""model_type of an encoder kind's config, where a recipe gives sizes without naming it."""


@dataclass(slots=True)
class Parts:
    """What is known of the parts before the model exists."""

    configs: dict[str, Any] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    kind: str | None = None


def read_language(part: LMPart, parts: Parts, *, where: str) -> None:
    """Config and weights of the language model. Raises ConfigError, CheckpointError."""
    if part.source is None:
        parts.text = dict(part.config or {})
        if not is_causal_lm(str(parts.text.get("model_type", ""))):
            raise ConfigError(
                f"model_type {parts.text.get('model_type')!r} is no causal language model",
                where=where,
                fix="name one that transformers has: llama, mistral, qwen2, gemma2, …",
            )
        return
    found = detect(resolve(part.source))
    if found.format == "retinue":
        return own_language(found, parts, source=part.source)
    if found.format != "causal-lm":
        raise CheckpointError(
            f"is {found.format}, not a language model", where=part.source, fix="use model.from"
        )
    parts.text = text_fields(found.config)
    parts.folder, parts.kind = found.folder, str(found.config["model_type"])
    parts.origin["lm"] = part.source
    keys = KeyMap(language_rules(found.config))
    weights = language_weights(found.weights, found.config)
    parts.sources.append(Source(weights=weights, keys=keys, label=part.source))


def own_language(found: Found, parts: Parts, *, source: str) -> None:
    """The language model of a model of ours, as it was trained. Raises CheckpointError."""
    if (found.folder / BASE).exists() or (found.folder / ADAPTER).exists():
        raise CheckpointError(
            "holds only what was trained on another model",
            where=source,
            fix="make it whole first: `retinue convert FOLDER NEW --to retinue`",
        )
    parts.text = dict(found.config.get("text_config") or {})
    parts.folder, parts.kind = found.folder, str(parts.text.get("model_type"))
    parts.origin["lm"] = source
    parts.sources.append(
        Source(
            weights=found.weights,
            keys=OWN_KEYS,
            label=source,
            keep=lambda name: name.startswith("lm."),
        )
    )


def read_encoder(name: str, part: EncoderPart, parts: Parts, *, where: str) -> None:
    """Config, spec and weights of an encoder. Raises ConfigError, CheckpointError."""
    if part.source is None:
        assert part.kind is not None
        ENCODERS.get(part.kind)  # registers the kind's own config
        parts.configs[name] = {"model_type": MODEL_TYPES.get(part.kind), **(part.config or {})}
        parts.specs[name] = {"kind": part.kind, **part.fields}
        return
    folder = resolve(part.source)
    found = detect(folder) if (folder / "config.json").is_file() else None
    if found is not None and found.format == "retinue":
        return own_encoder(name, part, found, parts)
    tower = open_tower(folder, source=part.source)
    if part.kind not in (None, tower.kind):
        raise ConfigError(
            f"{part.source} is a {tower.kind}, the recipe says {part.kind}", where=where
        )
    parts.configs[name] = tower.config
    parts.specs[name] = {"kind": tower.kind, **norm_fields(tower.preprocessor), **part.fields}
    parts.origin[f"encoders.{name}"] = part.source
    keys = tower_keys(name)
    parts.sources.append(Source(weights=tower.weights, keys=keys, label=part.source))


def own_encoder(name: str, part: EncoderPart, found: Found, parts: Parts) -> None:
    """The encoder of that name of a model of ours, as it was trained.

    Raises CheckpointError where it has none, ConfigError where it is of another kind.
    """
    assert part.source is not None
    configs, specs = found.config["encoders"], found.config["spec"]["encoders"]
    if name not in configs:
        raise CheckpointError(
            f"has no encoder {name!r}",
            where=part.source,
            rule=f"its encoders: {', '.join(configs) or 'none'}",
            fix="give the recipe's encoder the same name",
        )
    if part.kind not in (None, specs[name]["kind"]):
        raise ConfigError(
            f"{part.source} has a {specs[name]['kind']}, the recipe says {part.kind}",
            where=f"encoders.{name}",
        )
    parts.configs[name], parts.specs[name] = dict(configs[name]), {**specs[name], **part.fields}
    parts.origin[f"encoders.{name}"] = part.source
    start = f"encoders.{name}."
    parts.sources.append(
        Source(
            weights=found.weights,
            keys=OWN_KEYS,
            label=part.source,
            keep=lambda key: key.startswith(start),
        )
    )


def tokenizer_of(section: ModelSection, parts: Parts, *, where: str) -> Tokenizer:
    """The section's tokenizer, else that of the language model. Raises ConfigError without."""
    if section.tokenizer is not None and section.tokenizer.source is not None:
        source = section.tokenizer.source
        if not Path(source).expanduser().exists() and HubId.parse(source) is None:
            world = "make the data as the recipe's header says (`retinue data world`)"
            raise ConfigError(
                "there is no tokenizer yet",
                where=f"{where}.tokenizer.from: {source}",
                rule="TinyWorld's recipes read the one that is made together with their data",
                fix="run `retinue quickstart` first"
                if source.startswith("quickstart/")
                else f"{world}, or run `retinue quickstart` first and name its tokenizer",
            )
        folder = resolve(source, weights=False)
    elif parts.folder is not None:
        folder = parts.folder
    else:
        raise ConfigError(
            "a language model from a config has no tokenizer",
            where=where,
            fix="add tokenizer: {from: PATH}",
        )
    return Tokenizer.load(folder, slow=parts.text.get("model_type") == "llama")


def fit_vocabulary(parts: Parts, words: Tokenizer, *, loaded: bool, where: str) -> int:
    """Rows of the embedding table; a new model may leave vocabulary and special ids open."""
    if not loaded:
        parts.text.setdefault("vocab_size", words.vocab_size)
        for role in ("bos", "eos", "pad"):
            parts.text.setdefault(f"{role}_token_id", getattr(words, f"{role}_id"))
    rows = int(parts.text["vocab_size"])
    if rows >= words.vocab_size:
        return rows
    if not loaded:
        raise ConfigError(
            f"{words.vocab_size} tokens in the tokenizer, {rows} rows in the language model",
            where=f"{where}.lm.config.vocab_size",
            fix="leave vocab_size out, or raise it",
        )
    parts.text["vocab_size"] = words.vocab_size
    return words.vocab_size
