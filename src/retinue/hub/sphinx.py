"""Folders of LLaMA2-Accessory opened: shards, config, variant and tokenizer are probed for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinue.convert.consolidated import Consolidated, shard_files
from retinue.convert.detect import json_if_there
from retinue.convert.groups import Layered, Regrouped
from retinue.convert.sphinx import FORMAT, Precision, import_sphinx, sphinx_groups
from retinue.convert.sphinx_lm import experts_layout
from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError
from retinue.hub.resolve import resolve
from retinue.hub.sphinx_tuned import grown
from retinue.hub.stream import Source

if TYPE_CHECKING:
    from retinue.hub.sources import Opened

GIVEN = "encoders.json"
"""Optional, ours: fields of encoders that the weights cannot tell, such as numbers of heads."""

GATE = "layers.0.feed_forward.gate.weight"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")


def open_sphinx(
    path: str | Path | Sequence[str | Path],
    *,
    base: str | Path | None = None,
    llama_type: str | None = None,
    llama_config: Sequence[str | Path] = (),
    tokenizer_path: str | Path | None = None,
    precision: Precision = "original",
) -> Opened:
    """One model of one folder or several, later ones over earlier ones.

    base: a folder that `path` lies over. The variant, config and tokenizer are those of the last
    folder that has them, unless they are given; precision: how pictures are resampled. Raises
    CheckpointError naming a missing file and the argument that replaces it.
    """
    from retinue.hub.sources import Opened

    paths: list[str | Path] = [path] if isinstance(path, str | Path) else list(path)
    folders = [resolve(one) for one in ([base] if base is not None else []) + paths]
    tokenizer = _tokenizer(folders, tokenizer_path)
    weights = whole_weights(folders)
    where = str(folders[-1])
    found = _last(folders, "meta.json")
    if llama_type is None and found is not None:
        llama_type = read_json(found).get("llama_type")
    args = _args(folders, [Path(file) for file in llama_config])
    new = grown(weights, args, llama_type=llama_type)
    if new is not None:
        weights = Layered([weights, new])
    given = _last(folders, GIVEN)
    made = import_sphinx(
        args,
        weights,
        llama_type=llama_type,
        given=read_json(given) if given else None,
        precision=precision,
        where=where,
    )
    groups = sphinx_groups(made.config, experts=experts_layout(weights), names=weights)
    source = Source(weights=Regrouped(weights, groups), keys=made.keys, label=where)
    return Opened(
        format=FORMAT,
        folder=folders[-1],
        config=made.config,
        processor=made.processor,
        tokenizer=tokenizer,
        sources=[source],
        notes=made.notes,
        default="accessory",
    )


def whole_weights(folders: Sequence[Path]) -> Weights:
    """The parameters of all folders, whole, without `llma.`; a later folder's count."""
    layers = []
    experts: int | None = None
    for folder in folders:
        files = shard_files(folder)
        if not files:
            names = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
            raise CheckpointError(
                f"no consolidated.*.pth ({names})",
                where=str(folder),
                fix="name the folder that holds the weights",
            )
        layer = Consolidated(files)
        if GATE in layer:
            experts = layer.shape(GATE)[0]
        layer.experts = experts
        layers.append(layer)
    return layers[0] if len(layers) == 1 else Layered(layers)


def _args(folders: Sequence[Path], files: Sequence[Path]) -> Mapping[str, Any]:
    """Model arguments: of the files given, left to right, else of the last folder with some."""
    if files:
        merged: dict[str, Any] = {}
        for file in files:
            merged |= read_json(file)
        return merged
    for folder in reversed(folders):
        for name in ("config.json", "params.json"):
            if (folder / name).exists():
                return json_if_there(folder / name)
    return {}


def _last(folders: Sequence[Path], name: str) -> Path | None:
    return next((f / name for f in reversed(folders) if (f / name).exists()), None)


def _tokenizer(folders: Sequence[Path], given: str | Path | None) -> Path:
    if given is not None:
        place = Path(given)
        return place if place.is_dir() else place.parent
    for folder in reversed(folders):
        if any((folder / name).exists() for name in TOKENIZERS):
            return folder
    raise CheckpointError(
        "no tokenizer.model, and no tokenizer.json",
        where=str(folders[-1]),
        rule="a checkpoint of this format has one beside its weights",
        fix="copy it there, or name it: tokenizer_path=PATH",
    )
