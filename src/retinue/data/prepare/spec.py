"""The YAML of a preparation: ModelZoo's sections setup, processing and dataset.

A known key in the wrong section and an unknown key are errors; what this program does not do is
refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest
from retinue.core.spec import Spec
from retinue.core.yamlio import load_yaml


class DataPlace(Spec):
    """Where raw records are: a file, or a folder that is searched to its bottom."""

    source: str
    type: Literal["local"] = "local"


class SetupSpec(Spec):
    """image_dir: root of the records' picture paths; processes: None = one for each core."""

    data: DataPlace
    output_dir: str = "./output"
    image_dir: str | None = None
    processes: int | None = Field(default=None, ge=1)
    mode: Literal["pretraining", "finetuning"]


class ProcessingSpec(Spec):
    """Tokens, reading and writing; sizes of chunks in KB of raw records."""

    huggingface_tokenizer: str
    max_seq_length: int = Field(default=2048, ge=2)
    min_sequence_len: int = 10
    read_chunk_size: int = Field(default=1024, ge=1)
    write_chunk_size: int = Field(default=1024, ge=1)
    read_hook: str
    read_hook_kwargs: dict[str, Any] = Field(default_factory=dict)
    shuffle: bool = False
    shuffle_seed: int = 0
    eos_id: int | None = None
    pad_id: int | None = None
    input_ids_dtype: Literal["int32"] = "int32"
    input_mask_dtype: Literal["int32"] = "int32"
    inverted_mask: Literal[False] = False
    use_ftfy: bool = True
    ftfy_normalizer: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = "NFC"
    wikitext_detokenize: bool = False
    semantic_loss_weight: dict[str, float] = Field(default_factory=dict)
    semantic_drop_mask: dict[str, bool] = Field(default_factory=dict)
    semantic_attention_mask: dict[str, bool] = Field(default_factory=dict)
    end_of_turn_token: str | None = None
    write_in_batch: bool = False
    resume_from_checkpoint: bool = False
    UNSAFE_skip_jsonl_decoding_errors: bool = False
    seed: int = 0
    short_seq_prob: float = Field(default=0.0, ge=0, le=0)


class DatasetSpec(Spec):
    """Pictures and templates."""

    is_multimodal: bool = False
    image_token: str = "<special_image_token>"
    register_special_image_token: Literal[True] = True
    num_patches: int = Field(default=1, ge=1)
    max_num_img: int = Field(default=1, ge=1)
    use_single_image_token: bool = False
    chat_template: str | None = None
    sep_token: str | None = None
    pack_sequences: bool | None = None


class PrepareSpec(Spec):
    """A whole preparation."""

    setup: SetupSpec
    processing: ProcessingSpec
    dataset: DatasetSpec = DatasetSpec()


SECTIONS: dict[str, type[BaseModel]] = {
    "setup": SetupSpec,
    "processing": ProcessingSpec,
    "dataset": DatasetSpec,
}
MOVED = {"image_dir": "setup"}
"""Keys that release 2.3 had in `dataset`."""


def read_spec(path: Path) -> tuple[PrepareSpec, dict[str, Any]]:
    """(spec, the file's own data) of a YAML file. Raises ConfigError naming every wrong key."""
    data, _ = load_yaml(path)
    if not isinstance(data, Mapping):
        raise ConfigError("is no mapping", where=str(path))
    return parse_spec(data, where=str(path)), dict(data)


def parse_spec(data: Mapping[str, Any], *, where: str) -> PrepareSpec:
    """A spec of plain data; see `read_spec`."""
    known = {key: name for name, cls in SECTIONS.items() for key in cls.model_fields}
    moved = {name: dict(data.get(name) or {}) for name in SECTIONS}
    for name, cls in SECTIONS.items():
        for key in list(moved[name]):
            if key in cls.model_fields:
                continue
            if MOVED.get(key) is not None:
                moved[MOVED[key]].setdefault(key, moved[name].pop(key))
                continue
            if key in known:
                raise ConfigError(
                    f"{key} stands in {name}", where=where, rule=f"it belongs to {known[key]}"
                )
            hint = nearest(key, list(cls.model_fields))
            raise ConfigError(
                f"{name}.{key} is not supported" + (f"; did you mean {hint!r}?" if hint else ""),
                where=where,
                rule=f"{name} has {', '.join(cls.model_fields)}",
                fix="remove it",
            )
    extra = set(data) - set(SECTIONS)
    if extra:
        raise ConfigError(
            f"unknown sections {', '.join(sorted(extra))}",
            where=where,
            rule=f"sections are {', '.join(SECTIONS)}",
        )
    hook = moved["processing"].get("read_hook_kwargs") or {}
    nested = hook.get("data_keys")  # release 2.3
    if isinstance(nested, Mapping):
        rest = {key: value for key, value in hook.items() if key != "data_keys"}
        moved["processing"]["read_hook_kwargs"] = {**nested, **rest}
    spec = PrepareSpec.parse(moved, where=where)
    if not any(key.endswith("_key") for key in spec.processing.read_hook_kwargs):
        raise ConfigError(
            "read_hook_kwargs name no column",
            where=f"{where}: processing",
            rule="at least one of them ends in _key and names what to read",
        )
    return spec
