"""One folder format to another, tensor by tensor, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from retinue.convert import hf_export, llava_export
from retinue.convert.internlm import AS_GROUPED, joined
from retinue.convert.internlm_export import moss2_fields
from retinue.convert.keymap import Coverage, KeyMap
from retinue.convert.nested import budget_note
from retinue.convert.pictures import preprocessor_of
from retinue.convert.translation import foreign
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.files import versions, write_json
from retinue.hub.files import SHARD_BYTES, BinWriter, ShardWriter, whole_folder
from retinue.hub.flamingo_export import to_flamingo
from retinue.hub.grow import grown, image_token
from retinue.hub.load import TemplateChoice, load_with_report, make_processor
from retinue.hub.modelzoo_out import MODELZOO, write_modelzoo
from retinue.hub.resolve import resolve
from retinue.hub.save import write_settings, write_weights
from retinue.hub.sources import Encoders, Opened, has_tokenizer, open_folder
from retinue.hub.sphinx_out import write_sphinx
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
from retinue.model.spec import RetinueConfig
from retinue.processor import Processor

Target = Literal[
    "retinue", "llava", "llava_moss2", "moss2", "hf", "mm_simple", "hf-pair", "sphinx", "flamingo"
]
Files = Literal["safetensors", "bin", "projector"]
FORMATS_WITH: dict[Files, tuple[Target, ...]] = {
    "safetensors": get_args(Target),
    "bin": ("llava", "llava_moss2", "moss2", "hf-pair"),
    "projector": ("llava", "llava_moss2"),
}
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
    files: Files = "safetensors",
    tokenizer: str | Path | None = None,
    release: str = "2.9",
    exact: bool = False,
    shards: int = 1,
) -> ConvertReport:
    """Write any folder that `load` reads as retinue, an original LLaVA or transformers' Llava/Next.

    to: llava_moss2 is LLaVA on MOSS2, moss2 its language model alone. Weights keep their bits
    unless `dtype` asks otherwise; adapters are folded in. tower, for both kinds of llava: `auto`
    writes it into the checkpoint unless the model came with a separate one that is unchanged.
    files: bin writes `pytorch_model.bin`, projector only `mm_projector.bin`. tokenizer: a folder,
    for sources that have none. release, exact: of mm_simple, the format's version, and whether to
    repeat its converter's defects. shards: of sphinx, number of files. Raises CheckpointError for
    what the target cannot express; EnvError without room.
    """
    if to in get_args(Target) and to not in FORMATS_WITH[files]:
        raise ConfigError(
            f"{files} files of {to}", rule=f"only {', '.join(FORMATS_WITH[files])} have them"
        )
    if to == "flamingo":
        return to_flamingo(src, dst, base=base, encoders=encoders, dtype=dtype)
    own = to in ("llava", "llava_moss2")
    opened = open_folder(src, base=base, encoders=encoders, own_tower=own)
    if tokenizer is not None:
        opened.tokenizer = resolve(tokenizer, weights=False)
    bare = to in MODELZOO and not has_tokenizer(opened.tokenizer)
    processor = None if bare else make_processor(opened, template=template)
    cover = Coverage(sources={"weights": ", ".join(source.label for source in opened.sources)})
    if opened.adapters:
        tensors = _merged(src, base=base, encoders=encoders, template=template, cover=cover)
    else:
        tensors = _streamed(opened, dtype=dtype, cover=cover)
    if to in MODELZOO:
        written, notes = write_modelzoo(
            opened,
            tensors,
            Path(dst),
            to=to,
            src=src,
            release=release,
            exact=exact,
            shard_bytes=shard_bytes,
            processor=processor,
        )
        return ConvertReport(
            source=opened.format,
            target=to,
            folder=Path(dst),
            coverage=cover,
            written=written,
            notes=notes,
        )
    assert processor is not None
    if to == "sphinx":
        written, notes = write_sphinx(
            opened,
            tensors,
            Path(dst),
            shards=shards,
            dtype=dtype,
            processor=processor,
            source=src,
        )
        return ConvertReport(
            source=opened.format,
            target=to,
            folder=Path(dst),
            coverage=cover,
            written=written,
            notes=[*opened.notes, *notes],
        )
    if own:
        plan = _to_llava(
            opened, processor, tensors, tower=tower, dtype=dtype, moss2=to == "llava_moss2"
        )
    elif to == "moss2":
        plan = _to_moss2(opened, processor, dtype=dtype)
    elif to == "hf":
        plan = _to_hf(opened, processor, dtype=dtype)
    elif to == "retinue":
        plan = _to_retinue(opened, processor, dtype=dtype)
    else:
        raise ConfigError(f"unknown format {to!r}", rule=f"known: {', '.join(get_args(Target))}")
    with whole_folder(Path(dst)) as partial:
        state = plan.named(tensors())
        writer: ShardWriter | None = None
        if files == "projector":
            state = ((name, tensor) for name, tensor in state if is_projector(name))
            writer = BinWriter(partial, shard_bytes=2**62, stem="mm_projector")
        elif files == "bin":
            writer = BinWriter(partial, shard_bytes=shard_bytes)
        written = write_weights(state, partial, dtype=dtype, shard_bytes=shard_bytes, writer=writer)
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
    heads: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    def named(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the target; heads: queries and groups of a `wqkv` to be joined."""
        renamed = self._renamed(tensors)
        if self.heads is None:
            return renamed
        return joined(renamed, heads=self.heads[0], groups=self.heads[1])

    def _renamed(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
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
    moss2: bool = False,
) -> _Plan:
    config, settings = opened.config, processor.spec.model_dump(mode="json")
    carry = tower == "include" or (tower == "auto" and _tower_changed(opened, tensors))
    named = str(foreign(config).get("config", {}).get("mm_vision_tower", ""))
    kind = _dtype_name(dtype or (language_dtype(opened.sources) if moss2 else None))
    fields = llava_export.export_llava(config, settings, dtype=kind, carry_tower=carry, moss2=moss2)
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
        keys=llava_export.export_keys(config, carry_tower=carry, moss2=moss2),
        heads=_heads(config) if moss2 else None,
        finish=finish,
        skip=lambda name: not carry and name.startswith("encoders."),
        notes=notes,
    )


def _to_moss2(opened: Opened, processor: Processor, *, dtype: torch.dtype | None) -> _Plan:
    """The language model alone."""
    own = _dtype_name(dtype or language_dtype(opened.sources))
    fields = moss2_fields(opened.config.get_text_config(), dtype=own)

    def finish(folder: Path) -> None:
        write_json(folder / "config.json", fields)
        write_json(folder / "generation_config.json", _generation(opened))
        processor.tokenizer.save(folder)

    return _Plan(
        keys=KeyMap(AS_GROUPED),
        heads=_heads(opened.config),
        finish=finish,
        skip=lambda name: not name.startswith("lm."),
        notes=["only the language model: encoders and connector are left out"],
    )


def _heads(config: RetinueConfig) -> tuple[int, int]:
    text = config.get_text_config()
    return int(text.num_attention_heads), int(text.num_key_value_heads)


def _dtype_name(dtype: torch.dtype | None) -> str | None:
    return str(dtype).removeprefix("torch.") if dtype else None


def is_projector(name: str) -> bool:
    """Whether `mm_projector.bin` has a place for an original's name."""
    return ".mm_projector." in name or name == "model.image_newline"


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
    kind = _dtype_name(dtype or language_dtype(opened.sources))
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
