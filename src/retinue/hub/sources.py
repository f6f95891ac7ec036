"""A folder opened: what it is in our terms, and every file its weights will be streamed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retinue.convert.cogvlm import Unpacked, import_cogvlm
from retinue.convert.detect import (
    BASE,
    NON_LORA,
    PROJECTOR,
    Found,
    detect,
    is_original,
    json_if_there,
)
from retinue.convert.hf import import_hf
from retinue.convert.internlm import GROUPED, language_rules, language_weights
from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.llava import (
    ENCODER,
    import_llava,
    llava_keys,
    non_lora_keys,
    projector_keys,
    with_projector,
)
from retinue.convert.nested import projector_place
from retinue.convert.towers import tower_keys
from retinue.convert.translation import Translation
from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.paths import HubId
from retinue.hub.flamingo import names_flamingo, open_flamingo
from retinue.hub.grow import EMBED, added_rows, marker_rows
from retinue.hub.lora import Lora, read_lora
from retinue.hub.resolve import resolve
from retinue.hub.sphinx import open_sphinx
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
    added, pad: special tokens that its vocabulary is given, and which of them is for padding;
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
    added: list[str] = field(default_factory=list)
    pad: str | None = None


Encoders = Mapping[str, str | Path] | None


def open_folder(
    path: str | Path,
    *,
    base: str | Path | None = None,
    encoders: Encoders = None,
    keep_adapter: bool = False,
    own_tower: bool = False,
) -> Opened:
    """Open any known folder or hub id; arguments as in `load`. Raises CheckpointError.

    own_tower: of a LLaVA that carries its tower, take that copy also where the original would not.
    """
    if names_flamingo(path):
        return open_flamingo(path, base=base, encoders=encoders)
    found = detect(resolve(path))
    if found.format == "retinue":
        return _own(found, base=base)
    if found.format in ("hf-llava", "hf-llava-next"):
        return _hf(found)
    if found.format == "cogvlm":
        made = import_cogvlm(found.config, where=str(found.folder))
        source = Source(weights=Unpacked(found.weights), keys=made.keys, label=str(found.folder))
        return _opened(found, made, [source], tokenizer=found.folder)
    if found.format in ("mm_simple", "hf-pair"):
        from retinue.hub.modelzoo import open_modelzoo, open_pair

        zoo = found.format == "mm_simple"
        return open_modelzoo(found) if zoo else open_pair(found, encoders=encoders)
    if found.format == "sphinx":
        return open_sphinx(found.folder, base=base)
    if found.format == "peft-adapter":
        opened = open_folder(_base(found, base), encoders=encoders)
        opened.adapters.append(found.folder)
        return opened
    if found.format.startswith("llava"):
        return _llava(
            found,
            base=base,
            encoders=encoders,
            keep_adapter=keep_adapter,
            own_tower=own_tower,
        )
    raise CheckpointError(
        f"is a {found.format} ({found.config.get('model_type')}), no multimodal model",
        where=str(found.folder),
        rule="a model needs a language model, an encoder and a connector",
        fix="assemble one with `retinue build`",
    )


def _own(found: Found, *, base: str | Path | None) -> Opened:
    sources = [Source(weights=found.weights, keys=OWN_KEYS, label=str(found.folder))]
    if (found.folder / BASE).exists():
        told = read_json(found.folder / BASE)
        named = base or told["base"]
        under = open_folder(named, base=told.get("on"), encoders=told.get("encoders"))
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
    found: Found,
    *,
    base: str | Path | None,
    encoders: Encoders,
    keep_adapter: bool,
    own_tower: bool,
) -> Opened:
    where = str(found.folder)
    under: Found | None = None
    if not found.config or found.format != "llava":
        under = detect(resolve(_base(found, base)))
    if not found.config:  # the original's runs end with bare weights
        found = _with_config(found, under)
    place = projector_place(found.config, where=where)
    if found.format == "llava":
        main = _projector(found, place=place) if found.config["model_type"] in GROUPED else []
        main.append(_full(found, found.config, place=place))
    else:
        main = _on_base(found, under, place=place, keep_adapter=keep_adapter)
    carried = any(
        (source.keys.to_retinue(key) or "").startswith("encoders.")
        for source in main
        for key in source.weights
    )
    beside = [found.folder, *([under.folder] if under else [])]
    frozen = not own_tower and found.config.get("unfreeze_mm_vision_tower") is False
    tower = find_tower(
        found.config, beside=beside, encoders=encoders, carried=carried, frozen=frozen
    )
    if tower.weights.files:
        keys = tower_keys(ENCODER)
        main.insert(0, Source(weights=tower.weights, keys=keys, label=f"tower {tower.source}"))
    names = [name for source in main for name in source.weights]
    made = import_llava(with_projector(found.config, names), tower, where=where)
    made.config.foreign["tower_carried"] = carried and not tower.weights.files
    folder = found.folder if has_tokenizer(found.folder) or under is None else under.folder
    opened = _opened(found, made, main, tokenizer=folder)
    if found.format == "llava-lora" and keep_adapter:
        opened.adapters.append(found.folder)
    return opened


def _full(found: Found, config: Mapping[str, Any], *, place: str, **more: Any) -> Source:
    """All weights of a folder whose language model is the config's."""
    keys = llava_keys(projector=place, language=language_rules(config))
    weights = language_weights(found.weights, config)
    return Source(weights=weights, keys=keys, label=str(found.folder), **more)


def _projector(found: Found, *, place: str) -> list[Source]:
    """A projector beside full weights, which MOSS2's loader puts over them."""
    file = found.folder / PROJECTOR
    keys = projector_keys(projector=place)
    return [Source(weights=Weights([file]), keys=keys, label=str(file))] if file.exists() else []


def _on_base(found: Found, under: Found | None, *, place: str, keep_adapter: bool) -> list[Source]:
    """Sources of a projector or LoRA folder and of the model that it stands on."""
    assert under is not None
    if under.format not in ("causal-lm", "llava"):
        raise CheckpointError(
            f"its base {under.folder} is {under.format}",
            where=str(found.folder),
            rule="a base is the language model or a full LLaVA checkpoint",
        )
    lora: Lora | None = None
    name, keys = PROJECTOR, projector_keys(projector=place)
    if found.format == "llava-lora":
        name, keys = NON_LORA, non_lora_keys(projector=place)
        lora = None if keep_adapter else read_lora(found.folder, found.adapter)
    files = [found.folder / name] if (found.folder / name).exists() else []
    own = Weights(files)
    rows = marker_rows(own, int(found.config["vocab_size"]))
    keep = (lambda name: name != EMBED) if rows is not None else None
    under_source = _full(under, under.config or found.config, place=place)
    changes = lora.changes(under_source.keys.to_retinue) if lora else {}
    if rows is not None:
        changes |= added_rows(rows, vocab=int(found.config["vocab_size"]))
    return [
        Source(weights=own, keys=keys, label=str(found.folder / name), keep=keep),
        replace(under_source, changes=changes),
    ]


def _with_config(found: Found, under: Found | None) -> Found:
    """Bare weights with the config of the model that they were trained from."""
    assert under is not None
    if not is_original(under.config):
        raise CheckpointError(
            "its base's config.json names no vision tower",
            where=str(under.folder),
            rule="weights without a config need that of the model they were trained from",
            fix="name the LLaVA folder that training started from",
        )
    return replace(found, config=under.config)


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


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary."""
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _adapters(folder: Path) -> list[Path]:
    """Adapters inside a retinue folder: `adapter/`, or one folder each below it."""
    root, name = folder / ADAPTER, "adapter_config.json"
    if (root / name).exists():
        return [root]
    return sorted(path.parent for path in root.glob(f"*/{name}"))
