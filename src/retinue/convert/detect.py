"""Which format a folder has, by what it holds: config fields and weight names, not its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retinue.convert.consolidated import shard_files
from retinue.convert.internlm import FOREIGN_LMS
from retinue.convert.modelzoo_find import find_modelzoo, is_pair
from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError

Format = Literal[
    "retinue",
    "llava",
    "llava-projector",
    "llava-lora",
    "hf-llava",
    "hf-llava-next",
    "causal-lm",
    "vision-tower",
    "peft-adapter",
    "mm_simple",
    "hf-pair",
    "cogvlm",
    "sphinx",
]

TOWERS = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "dinov2": "dinov2",
}
"""model_type of a vision tower's config -> our encoder kind."""

LLAVA_TYPES = ("llava_llama", "llava_mistral", "llava_moss2", "llava")
PROJECTOR, NON_LORA = "mm_projector.bin", "non_lora_trainables.bin"
BASE = "base.json"
"""In a retinue folder that keeps only changed tensors: which folder or id has the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A folder and what it is. config: its config.json; adapter: its adapter_config.json."""

    format: Format
    folder: Path
    weights: Weights
    config: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)


def detect(folder: Path) -> Found:
    """The format of a folder. Raises CheckpointError saying what was found if it has none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            "no such folder", where=str(folder), fix="check the path, or name a hub id owner/name"
        )
    if is_pair(folder):
        return Found(format="hf-pair", folder=folder, weights=Weights([]))
    modelzoo = find_modelzoo(folder)
    if modelzoo is not None:
        return Found(format="mm_simple", folder=folder, weights=modelzoo[1], config=modelzoo[0])
    config = json_if_there(folder / "config.json")
    adapter = json_if_there(folder / "adapter_config.json")
    weights = Weights.of(folder)
    kind = "sphinx" if shard_files(folder) else _format(folder, config, adapter, weights)
    if kind is None:
        raise CheckpointError(
            f"no checkpoint that retinue knows ({_summary(folder, config)})",
            where=str(folder),
            rule="known: retinue, LLaVA (full, projector, LoRA), HF Llava and LlavaNext, "
            "causal LM, vision tower, PEFT adapter, CogVLM, SPHINX, ModelZoo's mm_simple and "
            "hf-pair, OpenFlamingo's .pt",
            fix="point at the folder that holds config.json and the weights",
        )
    return Found(format=kind, folder=folder, weights=weights, config=config, adapter=adapter)


def _format(
    folder: Path, config: dict[str, Any], adapter: dict[str, Any], weights: Weights
) -> Format | None:
    kind = str(config.get("model_type", ""))
    original = is_original(config)
    if kind == "retinue":
        return "retinue" if weights.files or (folder / BASE).exists() else None
    if "CogVLMForCausalLM" in (config.get("architectures") or ()):
        return "cogvlm" if weights.files else None
    if adapter and not weights.files:
        return "llava-lora" if original else "peft-adapter"
    apart = (folder / PROJECTOR).exists()
    if original or apart or has_projector(weights):
        if weights.files:
            whole = apart or has_projector(weights) or not may_lack_projector(config)
            return "llava" if whole else "causal-lm"
        return "llava-projector" if apart else None
    if kind in ("llava", "llava_next") and isinstance(config.get("text_config"), dict):
        wanted: Format = "hf-llava" if kind == "llava" else "hf-llava-next"
        return wanted if weights.files else None
    if kind in TOWERS:
        return "vision-tower"
    return "causal-lm" if is_causal_lm(kind) else None


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is the original LLaVA's: an LLM's fields and `mm_` ones."""
    nested = "text_config" in config or "vision_config" in config
    named = config.get("model_type") in LLAVA_TYPES
    return not nested and (named or "mm_vision_tower" in config or "mm_projector_type" in config)


def has_projector(weights: Weights) -> bool:
    """Whether weight files hold a LLaVA's projector."""
    return any(".mm_projector." in name for name in weights)


def may_lack_projector(config: dict[str, Any]) -> bool:
    """Whether a LLaVA's config may stand beside a bare language model: LLaVA-MOSS2's first step."""
    grouped = config.get("model_type") in FOREIGN_LMS
    return grouped and config.get("mm_projector_type") != "identity"


def is_causal_lm(kind: str) -> bool:
    """Whether transformers has a causal language model of this model_type, or we rename it."""
    if not kind or kind in FOREIGN_LMS:
        return bool(kind)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def json_if_there(file: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no such file. Raises as `read_json`."""
    return read_json(file) if file.exists() else {}


def _summary(folder: Path, config: dict[str, Any]) -> str:
    names = sorted(path.name for path in folder.iterdir())
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    kind = f"config.json of model_type {config.get('model_type')!r}; " if config else ""
    return f"{kind}files: {listed or 'none'}"
