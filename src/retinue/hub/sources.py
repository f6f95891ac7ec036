"""A folder opened: what it is in our terms, and every file its weights will be streamed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.convert.detect import BASE, NON_LORA, PROJECTOR, Found, detect, json_if_there
from retinue.convert.hf import import_hf
from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.llava import ENCODER, import_llava, llava_keys, non_lora_keys, projector_keys
from retinue.convert.nested import projector_place
from retinue.convert.towers import tower_keys
from retinue.convert.translation import Translation
from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.paths import HubId
from retinue.hub.grow import EMBED, added_rows, marker_rows
from retinue.hub.lora import Lora, read_lora
from retinue.hub.resolve import resolve
from retinue.hub.stream import Source
from retinue.hub.towers import find_tower
from retinue.model.encoders import ENCODERS
from retinue.model.spec import RetinueConfig

OWN_KEYS = KeyMap([Rule("{rest}", "{rest}")])
ADAPTER = "adapter"
"""Folder inside a retinue folder that holds its adapter in PEFT's layout."""


@dataclass(slots=True, kw_only=True)
class Opened:
    """What loading or converting a folder needs.

    processor: settings as in processor.json; tokenizer: folder of the tokenizer files;
    default: which template the folder's architecture has, where it names none itself;
    adapters: folders in PEFT's layout to be put on top, in order.
    """

    format: str
    folder: Path
    config: RetinueConfig
    processor: dict[str, Any]
    tokenizer: Path
    sources: list[Source]
    notes: list[str] = field(default_factory=list)
    default: str | None = None
    adapters: list[Path] = field(default_factory=list)


Encoders = Mapping[str, str | Path] | None


def open_folder(
    path: str | Path,
    *,
    base: str | Path | None = None,
    encoders: Encoders = None,
    keep_adapter: bool = False,
) -> Opened:
    """Open any known folder or hub id; arguments as in `load`. Raises CheckpointError."""
    found = detect(resolve(path))
    if found.format == "retinue":
        return _own(found, base=base)
    if found.format in ("hf-llava", "hf-llava-next"):
        return _hf(found)
    if found.format == "peft-adapter":
        opened = open_folder(_base(found, base), encoders=encoders)
        opened.adapters.append(found.folder)
        return opened
    if found.format.startswith("llava"):
        return _llava(found, base=base, encoders=encoders, keep_adapter=keep_adapter)
    raise CheckpointError(
        f"is a {found.format} ({found.config.get('model_type')}), no multimodal model",
        where=str(found.folder),
        rule="a model needs a language model, an encoder and a connector",
        fix="assemble one with `retinue build`",
    )


def _own(found: Found, *, base: str | Path | None) -> Opened:
    sources = [Source(weights=found.weights, keys=OWN_KEYS, label=str(found.folder))]
    if (found.folder / BASE).exists():
        under = open_folder(base or read_json(found.folder / BASE)["base"])
        sources += under.sources
    settings = read_json(found.folder / "processor.json")
    for encoder in (found.config.get("spec") or {}).get("encoders", {}).values():
        ENCODERS.get(str(encoder.get("kind")))  # registers the kind's own config
    if not found.config.get("text_config"):
        raise CheckpointError(
            "no text_config", where=f"{found.folder}/config.json", fix="copy the folder again"
        )
    try:
        config = RetinueConfig.from_dict(found.config)
    except ConfigError as error:
        raise CheckpointError(
            error.what, where=f"{found.folder}/config.json", rule=error.rule, fix=error.fix
        ) from error
    return Opened(
        format="retinue",
        folder=found.folder,
        config=config,
        processor=settings,
        tokenizer=found.folder,
        sources=sources,
        adapters=_adapters(found.folder),
    )


def _hf(found: Found) -> Opened:
    where = str(found.folder)
    settings = json_if_there(found.folder / "processor_config.json")
    pictures = settings.get("image_processor") or json_if_there(
        found.folder / "preprocessor_config.json"
    )
    made = import_hf(found.config, pictures, processor=settings, where=where)
    source = Source(weights=found.weights, keys=made.keys, label=where)
    return _opened(found, made, [source], tokenizer=found.folder)


def _llava(
    found: Found, *, base: str | Path | None, encoders: Encoders, keep_adapter: bool
) -> Opened:
    where = str(found.folder)
    under = None
    lora: Lora | None = None
    place = projector_place(found.config, where=where)
    full_keys = llava_keys(projector=place)
    if found.format == "llava":
        main = [Source(weights=found.weights, keys=full_keys, label=where)]
    else:
        under = detect(resolve(_base(found, base)))
        if under.format not in ("causal-lm", "llava"):
            raise CheckpointError(
                f"its base {under.folder} is {under.format}",
                where=where,
                rule="a base is the language model or a full LLaVA checkpoint",
            )
        name, keys = PROJECTOR, projector_keys(projector=place)
        if found.format == "llava-lora":
            name, keys = NON_LORA, non_lora_keys(projector=place)
            lora = None if keep_adapter else read_lora(found.folder, found.adapter)
        files = [found.folder / name] if (found.folder / name).exists() else []
        own = Weights(files)
        rows = marker_rows(own, int(found.config["vocab_size"]))
        keep = (lambda name: name != EMBED) if rows is not None else None
        main = [Source(weights=own, keys=keys, label=str(found.folder / name), keep=keep)]
        changes = lora.changes(full_keys.to_retinue) if lora else {}
        if rows is not None:
            changes |= added_rows(rows, vocab=int(found.config["vocab_size"]))
        main.append(
            Source(weights=under.weights, keys=full_keys, label=str(under.folder), changes=changes)
        )
    carried = any(
        (source.keys.to_retinue(key) or "").startswith("encoders.")
        for source in main
        for key in source.weights
    )
    beside = [found.folder, *([under.folder] if under else [])]
    tower = find_tower(found.config, beside=beside, encoders=encoders, carried=carried)
    if tower.weights.files:
        keys = tower_keys(ENCODER)
        main.append(Source(weights=tower.weights, keys=keys, label=f"tower {tower.source}"))
    made = import_llava(found.config, tower, where=where)
    made.config.foreign["tower_carried"] = carried
    folder = found.folder if _has_tokenizer(found.folder) or under is None else under.folder
    opened = _opened(found, made, main, tokenizer=folder)
    if found.format == "llava-lora" and keep_adapter:
        opened.adapters.append(found.folder)
    return opened


def _opened(found: Found, made: Translation, sources: list[Source], *, tokenizer: Path) -> Opened:
    return Opened(
        format=found.format,
        folder=found.folder,
        config=made.config,
        processor=made.processor,
        tokenizer=tokenizer,
        sources=sources,
        notes=made.notes,
        default=made.processor["template"].get("name"),
    )


def _base(found: Found, base: str | Path | None) -> str | Path:
    """What an incomplete checkpoint stands on: `base`, else the folder or id its files name."""
    if base is not None:
        return base
    named = found.adapter.get("base_model_name_or_path") or found.config.get("_name_or_path")
    if named:
        for place in (found.folder / named, found.folder.parent / named, Path(named)):
            if (place / "config.json").exists():
                return place
        if found.adapter and HubId.parse(str(named)):
            return str(named)
    raise CheckpointError(
        f"is a {found.format}, which needs the model it stands on"
        + (f" ({named!r} is not here)" if named else ""),
        where=str(found.folder),
        fix="name it: base=PATH, or --base PATH",
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _adapters(folder: Path) -> list[Path]:
    """Adapters inside a retinue folder: `adapter/`, or one folder each below it."""
    root, name = folder / ADAPTER, "adapter_config.json"
    if (root / name).exists():
        return [root]
    return sorted(path.parent for path in root.glob(f"*/{name}"))
