"""Writing LLaMA2-Accessory's folders: any number of shards, one of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from retinue.convert.consolidated import PREFIX, cut
from retinue.convert.groups import Regrouped, written
from retinue.convert.sphinx import FORMAT, sphinx_groups
from retinue.convert.sphinx_export import arguments, experts_of, given_fields, llama_type
from retinue.core.errors import ConfigError
from retinue.core.files import versions, write_json
from retinue.hub.files import whole_folder
from retinue.hub.sources import Opened
from retinue.hub.sphinx import GIVEN
from retinue.processor import Processor

Tensors = Callable[[], Iterator[tuple[str, Tensor]]]
NAME = "consolidated.{:02d}-of-{:02d}.model.pth"


def write_sphinx(
    opened: Opened,
    tensors: Tensors,
    folder: Path,
    *,
    shards: int,
    dtype: torch.dtype | None,
    processor: Processor,
    source: str | Path,
) -> tuple[list[str], list[str]]:
    """Write a folder of `shards` files; names of parameters, and notes for the report.

    tensors: our names and values, anew at every call; they are read once for each shard. From the
    same format the parameters are only cut anew, LoRA and leftovers included. Raises
    CheckpointError for a model that the format cannot hold, or that does not divide.
    """
    if not 1 <= shards <= 99:
        raise ConfigError(f"{shards} shards", rule="1 to 99")
    config = opened.config
    name = llama_type(config)
    text = config.get_text_config()
    number = getattr(text, "num_local_experts", None) if text.model_type == "mixtral" else None
    raw = opened.sources[0].weights if opened.format == FORMAT else None
    fields = arguments(config, name)
    if isinstance(raw, Regrouped):
        fields |= {k: v for k, v in config.foreign["config"].items() if k == "lora_rank"}

    def theirs() -> Iterator[tuple[str, Tensor]]:
        if isinstance(raw, Regrouped):
            for key in raw.under:
                tensor = raw.under.read(key)
                cast = dtype is not None and tensor.is_floating_point()
                yield key, tensor.to(dtype) if cast else tensor
            return
        yield from written(tensors(), sphinx_groups(config, experts=experts_of(name)))

    names: list[str] = []
    with whole_folder(folder) as partial:
        for rank in range(shards):
            held: dict[str, Tensor] = {}
            for key, tensor in theirs():
                part = cut(key, tensor, shards=shards, experts=number)[rank]
                if part is not None:
                    held[PREFIX + key] = part.contiguous().clone()
            names += [key for key in held if key not in names] if rank else list(held)
            torch.save({"model": held}, partial / NAME.format(rank, shards))
        write_json(partial / "config.json", fields)
        write_json(partial / "meta.json", {"llama_type": name})
        if config.encoders:
            write_json(partial / GIVEN, given_fields(config))
        processor.tokenizer.save(partial)
        facts = {"versions": versions(), "from": {"path": str(source), "format": opened.format}}
        write_json(partial / "provenance.json", facts)
    notes = [f"llama_type {name}, {shards} shard{'s' if shards > 1 else ''}"]
    if config.encoders and raw is None:
        notes.append("CLIP's unused text half is left out; the original says so and goes on")
    return names, notes
