"""A model and its processor -> one self-describing folder, whole or not at all.

config.json, generation_config.json, processor.json, tokenizer files, model*.safetensors with an
index where sharded, adapter/ in PEFT's layout, provenance.json.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.detect import BASE
from retinue.core.files import versions, write_json
from retinue.hub.files import SHARD_BYTES, ShardWriter, whole_folder
from retinue.hub.sources import ADAPTER
from retinue.hub.stream import tied_names
from retinue.model.adapters import adapter_names, base_state, save_adapter
from retinue.model.quant.swap import refuse_quantized
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.processor import Processor


def save(
    model: Retinue,
    processor: Processor,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    base: str | None = None,
    changed: Collection[str] | None = None,
    beside: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder that `load` reads back to the same logits; returns it.

    dtype: of the written weights, default as they are; shard_bytes: largest weight file; base: PATH
    of the model that holds all other weights than `changed`, names that default to those that
    require grad here; the others are then not written; beside: what `load` must be told to read the
    base (`on`: its own base, `encoders`); provenance: facts to keep with the versions.
    An existing folder is replaced once the new one is complete. Raises EnvError when there is no
    room, the previous folder is then kept; ConfigError for a quantized model without a base.
    """
    if base is None:
        refuse_quantized(model)
    tied = tied_names(model)
    state: Iterable[tuple[str, Tensor]] = (
        (name, tensor) for name, tensor in base_state(model).items() if name not in tied
    )
    if base is not None:
        wanted = _trained(model) if changed is None else set(changed)
        state = ((name, tensor) for name, tensor in state if name in wanted)
    with whole_folder(Path(folder)) as partial:
        write_weights(state, partial, dtype=dtype, shard_bytes=shard_bytes)
        write_settings(
            model.config,
            processor,
            partial,
            dtype=dtype or next(model.lm.parameters()).dtype,
            generation=model.generation_config.to_diff_dict() if model.generation_config else {},
        )
        names = adapter_names(model)
        for name in names:
            place = partial / ADAPTER if len(names) == 1 else partial / ADAPTER / name
            save_adapter(model, place, base=base, name=name)
        if base is not None:
            told = {key: value for key, value in (beside or {}).items() if value}
            write_json(partial / BASE, {"base": base, **told})
        write_json(partial / "provenance.json", {"versions": versions(), **(provenance or {})})
    return Path(folder)


def _trained(model: Retinue) -> set[str]:
    return {
        name.replace(".base_layer.", ".")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    }


def write_weights(
    state: Iterable[tuple[str, Tensor]],
    folder: Path,
    *,
    dtype: torch.dtype | None,
    shard_bytes: int,
    writer: ShardWriter | None = None,
) -> list[str]:
    """Stream tensors into safetensors files, or to another writer; returns their names."""
    writer = writer or ShardWriter(folder, shard_bytes=shard_bytes)
    names = []
    for name, tensor in state:
        cast = dtype is not None and tensor.is_floating_point()
        writer.add(name, tensor.to(dtype) if cast else tensor)
        names.append(name)
    writer.close()
    return names


def write_settings(
    config: RetinueConfig,
    processor: Processor,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    generation: Mapping[str, Any],
) -> None:
    """config.json, generation_config.json, processor.json and the tokenizer's files."""
    fields = config.to_dict()
    fields.pop("_name_or_path", None)
    fields |= {"architectures": ["Retinue"], "model_type": "retinue"}
    if dtype is not None:
        fields["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", fields)
    processor.save(folder)
    own = {"eos_token_id": processor.tokenizer.eos_ids, "pad_token_id": processor.tokenizer.pad_id}
    own = {key: value for key, value in own.items() if value not in ([], None)}
    write_json(folder / "generation_config.json", {**own, **generation})
