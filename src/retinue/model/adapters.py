"""LoRA adapters inside a model: put in, take out, save and load in PEFT's folder layout.

Adapters replace linears in place, so that `model.run` sees no difference. Reference: LoRA (Hu et
al. 2021, arXiv 2106.09685) as in the peft library.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retinue.core.errors import CheckpointError, ConfigError
from retinue.model.quant.base import QuantLinear
from retinue.model.quant.bnb import hush

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
DEFAULT = "default"

hush()  # peft imports bitsandbytes where it is installed


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTarget:
    """The adapter of one linear layer; `rule`: the pattern that asked for it."""

    r: int
    alpha: float
    dropout: float = 0.0
    rule: str = ""


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named linear layers, those below an adapter under their plain name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in f".{name}":
            yield name.removesuffix(".base_layer"), module


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in a model, in the order they came."""
    found: dict[str, None] = {}
    for _, layer in _layers(model):
        found.update(dict.fromkeys(layer.lora_A))
    return list(found)


def add_lora(model: nn.Module, targets: Mapping[str, LoraTarget], *, name: str = DEFAULT) -> None:
    """Adapt the layers named by `targets` in place (A random, B zero: nothing changes at first).

    Afterwards only adapters require gradients. Raises ConfigError for different dropouts, for a
    layer that is not there, or if an adapter of that name is.
    """
    from peft import LoraConfig

    if name in adapter_names(model):
        raise ConfigError(
            f"an adapter {name!r} is already in the model", fix="merge it first, or choose a name"
        )
    known = dict(linears(model))
    absent = [layer for layer in targets if layer not in known]
    if absent:
        raise ConfigError(
            f"{len(absent)} layers to adapt are not in the model, the first is {absent[0]}",
            rule=f"the model has {len(known)} linear layers",
        )
    dropouts = {target.dropout for target in targets.values()}
    if len(dropouts) > 1:
        raise ConfigError(
            f"one adapter has one dropout, not {sorted(dropouts)}",
            where="train.stages.*.trainable",
        )
    ranks = {layer: target.r for layer, target in targets.items()}
    alphas = {layer: target.alpha for layer, target in targets.items()}
    rank, alpha = _most(list(ranks.values())), _most(list(alphas.values()))
    config = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        lora_dropout=dropouts.pop(),
        target_modules=sorted(targets),
        rank_pattern={_exactly(k): v for k, v in ranks.items() if v != rank},
        alpha_pattern={_exactly(k): v for k, v in alphas.items() if v != alpha},
        task_type="CAUSAL_LM",
    )
    _inject(model, config, name=name)


def adapter_state(model: nn.Module, *, name: str = DEFAULT) -> dict[str, Tensor]:
    """The weights of an adapter under PEFT's key names."""
    marks = (f".lora_A.{name}.", f".lora_B.{name}.")
    return {
        PREFIX + key.replace(f".{name}.", "."): value.detach()
        for key, value in model.state_dict().items()
        if any(mark in key for mark in marks)
    }


def save_adapter(
    model: nn.Module, folder: str | Path, *, base: str | None = None, name: str = DEFAULT
) -> None:
    """Write adapter_config.json, which names the base, and adapter_model.safetensors."""
    config = _configs(model)[name]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: _plain(value) for key, value in config.to_dict().items()}
    fields |= {"base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps(fields, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", "utf-8")
    state = {key: value.contiguous() for key, value in adapter_state(model, name=name).items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapter(
    model: nn.Module, folder: str | Path, *, name: str = DEFAULT, trainable: bool = False
) -> None:
    """Put a saved adapter into the model its base was.

    Raises CheckpointError where files are missing or broken, or where layers or shapes do not fit.
    """
    from peft import LoraConfig

    folder = Path(folder)
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError("no readable adapter", where=str(folder), rule=str(error)) from None
    if fields.get("peft_type") != "LORA":
        raise CheckpointError(
            f"an adapter of type {fields.get('peft_type')}", where=str(folder), rule="LORA is read"
        )
    known = LoraConfig.__dataclass_fields__
    try:
        _inject(model, LoraConfig(**{k: v for k, v in fields.items() if k in known}), name=name)
    except ValueError as error:
        raise _misfit(folder, str(error), fields) from None
    own = _named_state(model, name)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise _misfit(folder, f"{len(odd)} keys differ, the first is {odd[0]}", fields)
    for key, value in own.items():
        if value.shape != state[key].shape:
            shapes = f"{key} is {tuple(state[key].shape)} there and {tuple(value.shape)} here"
            raise _misfit(folder, shapes, fields)
        with torch.no_grad():
            value.copy_(state[key])
        value.requires_grad_(trainable)


def merge_adapters(model: nn.Module) -> list[str]:
    """Fold all adapters into the weights and remove them; returns the changed parameters.

    A quantized weight is decoded first and stays so: rounding it again would undo the training.
    """
    changed = []
    for path, layer in list(_layers(model)):
        if isinstance(layer.get_base_layer(), QuantLinear):
            layer.base_layer = layer.get_base_layer().plain()
        layer.merge(adapter_names=list(layer.lora_A))
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
        changed.append(f"{path}.weight")
    if hasattr(model, "peft_config"):
        del model.peft_config
    return changed


def only_adapters(model: nn.Module, names: Sequence[str]) -> None:
    """From now on the model computes with these adapters and no others; none at all is allowed."""
    for _, layer in _layers(model):
        layer.enable_adapters(bool(names))
        if names:
            layer.set_adapter(list(names), inference_mode=True)


def drop_adapter(model: nn.Module, name: str) -> None:
    """Take an adapter out again, not merged; a layer without any is the plain one again."""
    for path, layer in list(_layers(model)):
        if name not in layer.lora_A:
            continue
        layer.delete_adapter(name)
        if not layer.lora_A:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
    configs: Any = getattr(model, "peft_config", {})
    configs.pop(name, None)
    if not configs and hasattr(model, "peft_config"):
        del model.peft_config


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters, keys as if there were none."""
    return {
        key.replace(".base_layer.", "."): value
        for key, value in model.state_dict().items()
        if ".lora_" not in key
    }


def _inject(model: nn.Module, config: Any, *, name: str) -> None:
    from peft import inject_adapter_in_model

    # A list of full names, or a set after reading a file: peft matches both by suffix.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of ties that no target touches
        inject_adapter_in_model(config, model, adapter_name=name)


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield path, module


def _named_state(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    marks = (f".lora_A.{name}.", f".lora_B.{name}.")
    return {
        PREFIX + key.replace(f".{name}.", "."): value
        for key, value in model.named_parameters()
        if any(mark in key for mark in marks)
    }


def _configs(model: nn.Module) -> Mapping[str, Any]:
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    assert configs, "the model has no adapter"
    return configs


def _exactly(layer: str) -> str:
    """A pattern of peft for one layer: it is matched as a regular expression at the name's end."""
    return "^" + layer.replace(".", r"\.")


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)


def _most(values: list[Any]) -> Any:
    return max(sorted(set(values)), key=values.count)


def _misfit(folder: Path, rule: str, fields: Mapping[str, Any]) -> CheckpointError:
    base = fields.get("base_model_name_or_path")
    return CheckpointError(
        "the adapter does not fit this base model",
        where=str(folder),
        rule=rule,
        fix=f"load it onto {base}" if base else "load it onto the model it was trained on",
    )
