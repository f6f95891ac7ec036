"""One folder format to another, tensor by tensor, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from retinue.convert import hf_export, llava_export
from retinue.convert.keymap import Coverage, KeyMap
from retinue.convert.nested import budget_note
from retinue.convert.pictures import preprocessor_of
from retinue.convert.translation import foreign
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.files import versions, write_json
from retinue.hub.files import SHARD_BYTES, whole_folder
from retinue.hub.grow import grown, image_token
from retinue.hub.load import TemplateChoice, load_with_report, make_processor
from retinue.hub.save import write_settings, write_weights
from retinue.hub.sources import Encoders, Opened, open_folder
from retinue.hub.stream import (
    Fingerprint,
    cast,
    language_dtype,
    require_complete,
    shapes_of,
    skeleton,
    stream,
    tied_names,
)
from retinue.model.adapters import base_state, merge_adapters
from retinue.processor import Processor

Target = Literal["retinue", "llava", "hf"]
TowerChoice = Literal["auto", "include", "external"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """What was read, what was written, what became of every key."""

    source: str
    target: Target
    folder: Path
    coverage: Coverage
    written: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.source} -> {self.target}: {len(self.written)} tensors in {self.folder}"
        return "\n".join([head, str(self.coverage), *self.notes])


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Target,
    base: str | Path | None = None,
    encoders: Encoders = None,
    template: TemplateChoice = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tower: TowerChoice = "auto",
) -> ConvertReport:
    """Write any folder that `load` reads as retinue, original LLaVA or transformers' Llava/Next.

    Weights keep their bits unless `dtype` asks otherwise; adapters are folded in. tower, for llava:
    `auto` writes it into the checkpoint unless the model came with a separate one that is
    unchanged. Raises CheckpointError for what the target cannot express; EnvError without room.
    """
    opened = open_folder(src, base=base, encoders=encoders)
    processor = make_processor(opened, template=template)
    cover = Coverage(sources={"weights": ", ".join(source.label for source in opened.sources)})
    if opened.adapters:
        tensors = _merged(src, base=base, encoders=encoders, template=template, cover=cover)
    else:
        tensors = _streamed(opened, dtype=dtype, cover=cover)
    if to == "llava":
        plan = _to_llava(opened, processor, tensors, tower=tower, dtype=dtype)
    elif to == "hf":
        plan = _to_hf(opened, processor, dtype=dtype)
    elif to == "retinue":
        plan = _to_retinue(opened, processor, dtype=dtype)
    else:
        raise ConfigError(f"unknown format {to!r}", rule="known: retinue, llava, hf")
    with whole_folder(Path(dst)) as partial:
        state = plan.named(tensors())
        written = write_weights(state, partial, dtype=dtype, shard_bytes=shard_bytes)
        plan.finish(partial)
        facts = {"versions": versions(), "from": {"path": str(src), "format": opened.format}}
        write_json(partial / "provenance.json", facts)
    return ConvertReport(
        source=opened.format,
        target=to,
        folder=Path(dst),
        coverage=cover,
        written=written,
        notes=[*opened.notes, *plan.notes],
    )


Tensors = Callable[[], Iterator[tuple[str, Tensor]]]


@dataclass(slots=True, kw_only=True)
class _Plan:
    """How one target names the tensors, and what it writes beside them."""

    keys: KeyMap | None
    finish: Callable[[Path], None]
    grow: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    skip: Callable[[str], bool] = lambda name: False
    notes: list[str] = field(default_factory=list)

    def named(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if self.skip(name):
                continue
            tensor = self.grow(name, tensor)
            if self.keys is None:
                yield name, tensor
                continue
            found = self.keys.match_back(name)
            if found is None:
                raise CheckpointError(
                    f"{name} has no place in the target format", fix="convert to retinue"
                )
            yield found[0], tensor if found[1].op is None else found[1].op.invert(tensor)


def _streamed(opened: Opened, *, dtype: torch.dtype | None, cover: Coverage) -> Tensors:
    """Tensors of the sources in the dtype that loading gives them. Every pass reads anew."""
    model = skeleton(opened.config)
    wanted, tied = shapes_of(model), tied_names(model)
    common = dtype or language_dtype(opened.sources)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        cover.clear()
        mark = Fingerprint()
        for name, tensor in stream(opened.sources, wanted, tied, cover):
            tensor = cast(name, tensor, asked=dtype, common=common)
            mark.add(name, tensor)
            yield name, tensor
        require_complete(cover, where=str(opened.folder))
        mark.keep(opened.config)

    return tensors


def _merged(src: str | Path, *, cover: Coverage, **options: Any) -> Tensors:
    loaded = load_with_report(src, **options)
    cover.used = loaded.coverage.used
    merge_adapters(loaded.model)
    tied = tied_names(loaded.model)
    state = {k: v for k, v in base_state(loaded.model).items() if k not in tied}
    return lambda: iter(state.items())


def _to_retinue(opened: Opened, processor: Processor, *, dtype: torch.dtype | None) -> _Plan:
    def finish(folder: Path) -> None:
        kept = _generation(opened)
        own = dtype or language_dtype(opened.sources)
        write_settings(opened.config, processor, folder, dtype=own, generation=kept)

    return _Plan(keys=None, finish=finish)


def _to_llava(
    opened: Opened,
    processor: Processor,
    tensors: Tensors,
    *,
    tower: TowerChoice,
    dtype: torch.dtype | None,
) -> _Plan:
    config, settings = opened.config, processor.spec.model_dump(mode="json")
    carry = tower == "include" or (tower == "auto" and _tower_changed(opened, tensors))
    named = str(foreign(config).get("config", {}).get("mm_vision_tower", ""))
    kind = str(dtype).removeprefix("torch.") if dtype else None
    fields = llava_export.export_llava(config, settings, dtype=kind, carry_tower=carry)
    own = fields["mm_vision_tower"] == llava_export.OWN_TOWER

    def finish(folder: Path) -> None:
        write_json(folder / "config.json", fields)
        write_json(folder / "generation_config.json", _generation(opened))
        processor.tokenizer.save(folder)
        if own:
            place = folder / llava_export.OWN_TOWER
            place.mkdir()
            vision = next(iter(config.encoders.values())).to_dict()
            write_json(place / "config.json", vision)
            pictures = preprocessor_of(next(iter(settings["streams"].values())), settings["views"])
            pictures["image_processor_type"] = "CLIPImageProcessor"
            write_json(place / "preprocessor_config.json", pictures)

    notes = budget_note(config, to="llava")
    if own:
        notes.append(
            "the tower's config is in vision_tower/; the original looks for it from its working "
            "folder, so set mm_vision_tower to where you keep it"
        )
    elif not carry:
        notes.append(f"the tower stays {named!r}, unchanged and outside the checkpoint")
    return _Plan(
        keys=llava_export.export_keys(config, carry_tower=carry),
        finish=finish,
        skip=lambda name: not carry and name.startswith("encoders."),
        notes=notes,
    )


def _tower_changed(opened: Opened, tensors: Tensors) -> bool:
    """Whether the checkpoint must hold the tower: it did, or it is not the named one."""
    kept = foreign(opened.config)
    if kept.get("format") != "llava" or kept.get("tower_carried"):
        return True
    if opened.format.startswith("llava"):
        return False
    mark = Fingerprint()
    for name, tensor in tensors():
        mark.add(name, tensor)
    return mark.value != kept.get("tower_digest")


def _to_hf(opened: Opened, processor: Processor, *, dtype: torch.dtype | None) -> _Plan:
    config, settings = opened.config, processor.spec.model_dump(mode="json")
    token, write_tokenizer = image_token(processor.tokenizer)
    rows = max(token + 1, config.get_text_config().vocab_size)
    more = rows - config.get_text_config().vocab_size
    config.get_text_config().vocab_size = rows
    own = dtype or language_dtype(opened.sources)
    kind = str(own).removeprefix("torch.") if own else None
    fields = hf_export.export_hf(config, settings, dtype=kind, image_token_id=token)
    files = hf_export.processor_files(config, settings, fields)

    def finish(folder: Path) -> None:
        write_json(folder / "config.json", fields)
        write_json(folder / "generation_config.json", _generation(opened))
        write_tokenizer(folder)
        for name, data in files.items():
            write_json(folder / name, data)

    return _Plan(
        keys=hf_export.export_keys(config),
        finish=finish,
        grow=grown(skeleton_names(opened), rows=rows),
        notes=[
            *([f"{more} rows added to the vocabulary for the placeholder <image>"] if more else []),
            *budget_note(config, to="hf"),
        ],
    )


def skeleton_names(opened: Opened) -> set[str]:
    """Our names of the tensors that have one row per token."""
    model = skeleton(opened.config)
    return {f"lm.{model.lm.embed_name}.weight", f"lm.{model.lm.head_name}.weight"}


def _generation(opened: Opened) -> dict[str, Any]:
    from retinue.convert.weights import read_json

    file = opened.folder / "generation_config.json"
    return read_json(file) if file.exists() else {}
