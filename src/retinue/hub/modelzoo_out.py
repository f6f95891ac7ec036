"""Models written as ModelZoo's checkpoint with its YAML, or as the pair of HF folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from retinue.convert.keymap import KeyMap
from retinue.convert.llava_export import export_keys
from retinue.convert.mdl import write_mdl
from retinue.convert.modelzoo_export import export_modelzoo, pair_configs
from retinue.convert.modelzoo_find import PAIR
from retinue.convert.modelzoo_keys import HEAD, LN_F, NORM, TABLE, modelzoo_keys
from retinue.convert.towers import tower_rules
from retinue.core.files import write_json
from retinue.core.yamlio import Dumper
from retinue.hub.files import BinWriter
from retinue.hub.sources import Opened
from retinue.hub.targets.plan import renamed
from retinue.processor import Processor, ProcessorSpec

Tensors = Callable[[], Iterator[tuple[str, Tensor]]]


def write_mm_simple(
    opened: Opened, tensors: Tensors, folder: Path, *, release: str, exact: bool
) -> list[str]:
    """`pytorch_model_to_cs-X.Y.mdl` and `config_to_cs-X.Y.yaml`; returns the names written."""
    model = export_modelzoo(opened.config, release=release, exact=exact)
    keys = modelzoo_keys(opened.config)
    tied = bool(opened.config.get_text_config().tie_word_embeddings)

    def state() -> Iterator[tuple[str, Tensor]]:
        for ours, value in tensors():
            name, tensor = renamed(ours, value, keys=keys)
            yield name, tensor
            if name == NORM:
                yield LN_F, tensor
            if name == TABLE and tied:
                yield HEAD, tensor
        for number, encoder in enumerate(opened.config.encoders.values()):
            if getattr(encoder, "positions", None) == "fixed":
                from retinue.model.encoders.plain_vit import sines

                place = f"image_model.image_model_list.{number}.0.embedding_layer."
                yield f"{place}position_embeddings", sines(encoder)

    names = write_mdl(folder / f"pytorch_model_to_cs-{release}.mdl", state())
    text = yaml.dump({"model": model}, Dumper=Dumper, sort_keys=True, indent=4)
    (folder / f"config_to_cs-{release}.yaml").write_text(text, "utf-8")
    return names


def write_pair(
    opened: Opened,
    tensors: Tensors,
    folder: Path,
    *,
    final: Path,
    shard_bytes: int,
    processor: Processor | None,
) -> list[str]:
    """`image_model/` and `text_model/` as the original's converter writes them, tokenizer added.

    final: where the folder will stand in the end, which the text config names.
    """
    settings = settings_of(opened)
    configs = pair_configs(opened.config, settings, tower=str(final / PAIR[0]))
    words, image, pictures = configs
    (name,) = opened.config.encoders
    keys = {
        PAIR[0]: KeyMap(tower_rules(name)),
        PAIR[1]: export_keys(opened.config, carry_tower=False),
    }
    writers: dict[str, BinWriter] = {}
    for part in PAIR:
        (folder / part).mkdir()
        writers[part] = BinWriter(folder / part, shard_bytes=shard_bytes, numbered=True)
    written = []
    for ours, tensor in tensors():
        part = PAIR[0] if ours.startswith("encoders.") else PAIR[1]
        theirs, value = renamed(ours, tensor, keys=keys[part])
        writers[part].add(theirs, value)
        written.append(f"{part}/{theirs}")
    for writer in writers.values():
        writer.close()
    write_json(folder / PAIR[0] / "config.json", image)
    write_json(folder / PAIR[0] / "preprocessor_config.json", pictures)
    write_json(folder / PAIR[1] / "config.json", words)
    if processor is not None:
        processor.tokenizer.save(folder / PAIR[1])
    return written


def settings_of(opened: Opened) -> dict[str, Any]:
    """The processor's settings with every default, without its tokenizer."""
    spec = ProcessorSpec.parse({**opened.processor, "template": "plain"}, where="processor")
    return spec.model_dump(mode="json")
