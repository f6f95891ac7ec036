"""The target seam: an opened model -> the files of one format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from retinue.convert.keymap import Coverage
from retinue.convert.weights import read_json
from retinue.core.errors import CheckpointError
from retinue.core.files import versions, write_json
from retinue.hub.load import TemplateChoice, load_with_report, make_processor
from retinue.hub.resolve import resolve
from retinue.hub.sources import Encoders, Opened, has_tokenizer, open_folder
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

Files = Literal["safetensors", "bin", "projector"]
TowerChoice = Literal["auto", "include", "external"]
Tensors = Callable[[], Iterator[tuple[str, Tensor]]]
"""Our names and values, anew at every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertReport:
    """What was read, what was written, what became of every key."""

    source: str
    target: str
    folder: Path
    coverage: Coverage
    written: list[str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.source} -> {self.target}: {len(self.written)} tensors in {self.folder}"
        return "\n".join([head, str(self.coverage), *self.notes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The arguments of `hub.convert.convert`, whatever the target."""

    src: str | Path
    dst: Path
    base: str | Path | None = None
    encoders: Encoders = None
    template: TemplateChoice = None
    dtype: torch.dtype | None = None
    shard_bytes: int
    tower: TowerChoice = "auto"
    files: Files = "safetensors"
    tokenizer: str | Path | None = None
    release: str = "2.9"
    exact: bool = False
    shards: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The model to be written. words: its processor, None only where the target may go without."""

    asked: Asked
    opened: Opened
    tensors: Tensors
    cover: Coverage
    words: Processor | None

    @property
    def processor(self) -> Processor:
        """The processor, of a target that always has one."""
        assert self.words is not None, "only a wordless target is written without a processor"
        return self.words

    def origin(self) -> dict[str, Any]:
        """What provenance.json says."""
        came = {"path": str(self.asked.src), "format": self.opened.format}
        return {"versions": versions(), "from": came}


class Target(ABC):
    """One format that models are written in. files: kinds of weight files that it has."""

    name: ClassVar[str]
    files: ClassVar[tuple[Files, ...]] = ("safetensors",)

    @abstractmethod
    def convert(self, asked: Asked) -> ConvertReport:
        """Open the source and write the folder. Raises as `hub.convert.convert`."""


class Streamed(Target):
    """A target that takes one tensor after the other, and never holds the model.

    own_tower: takes the encoder that a LLaVA carries also where the original would load another;
    wordless: may be written without a tokenizer; resized: can say that an encoder sees views of
    another size than its config's.
    """

    own_tower: ClassVar[bool] = False
    resized: ClassVar[bool] = False
    wordless: ClassVar[bool] = False

    def convert(self, asked: Asked) -> ConvertReport:
        opened = open_folder(
            asked.src, base=asked.base, encoders=asked.encoders, own_tower=self.own_tower
        )
        if not self.resized:
            refuse_resized(opened, target=self.name)
        if asked.tokenizer is not None:
            opened.tokenizer = resolve(asked.tokenizer, weights=False)
        bare = self.wordless and not has_tokenizer(opened.tokenizer)
        words = None if bare else make_processor(opened, template=asked.template)
        cover = Coverage(sources={"weights": ", ".join(source.label for source in opened.sources)})
        tensors = (merged if opened.adapters else streamed)(opened, asked=asked, cover=cover)
        job = Job(asked=asked, opened=opened, tensors=tensors, cover=cover, words=words)
        written, notes = self.write(job)
        return ConvertReport(
            source=opened.format,
            target=self.name,
            folder=asked.dst,
            coverage=cover,
            written=written,
            notes=[*opened.notes, *notes],
        )

    @abstractmethod
    def write(self, job: Job) -> tuple[list[str], list[str]]:
        """Write the folder; (names of its tensors, notes). Raises CheckpointError, EnvError."""


def refuse_resized(opened: Opened, *, target: str) -> None:
    """Raise CheckpointError for an encoder whose position table is interpolated."""
    for name, encoder in opened.config.spec.get("encoders", {}).items():
        size, own = encoder.get("size"), getattr(opened.config.encoders[name], "image_size", None)
        if size and own and size != own:
            raise CheckpointError(
                f"encoder {name} made for {own} pixels, which sees {size}",
                where=f"export to {target}",
                rule="the format has a tower's own resolution only",
                fix="keep it as retinue",
            )


def streamed(opened: Opened, *, asked: Asked, cover: Coverage) -> Tensors:
    """Tensors of the sources in the dtype that loading gives them. Every pass reads anew."""
    model = skeleton(opened.config)
    wanted, tied = shapes_of(model), tied_names(model)
    common = asked.dtype or language_dtype(opened.sources)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        cover.clear()
        mark = Fingerprint()
        for name, tensor in stream(opened.sources, wanted, tied, cover):
            tensor = cast(name, tensor, asked=asked.dtype, common=common)
            mark.add(name, tensor)
            yield name, tensor
        require_complete(cover, where=str(opened.folder))
        mark.keep(opened.config)

    return tensors


def merged(opened: Opened, *, asked: Asked, cover: Coverage) -> Tensors:
    """Tensors of the whole model with its adapters folded in."""
    loaded = load_with_report(
        asked.src, base=asked.base, encoders=asked.encoders, template=asked.template
    )
    cover.used = loaded.coverage.used
    merge_adapters(loaded.model)
    tied = tied_names(loaded.model)
    state = {k: v for k, v in base_state(loaded.model).items() if k not in tied}
    return lambda: iter(state.items())


def generation(opened: Opened) -> dict[str, Any]:
    """The source's generation_config.json, empty if it has none."""
    file = opened.folder / "generation_config.json"
    return read_json(file) if file.exists() else {}


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """As a config.json names a dtype."""
    return str(dtype).removeprefix("torch.") if dtype else None


def keep_origin(job: Job, folder: Path) -> None:
    """Write provenance.json."""
    write_json(folder / "provenance.json", job.origin())
