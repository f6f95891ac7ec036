"""AdamW and its parameter groups: who decays, who has a rate of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.optim import Optimizer

from retinue.core.errors import ConfigError
from retinue.core.lazy import need
from retinue.core.spec import Spec
from retinue.model.freeze import TrainableTable
from retinue.train.adamw_plain_eps import AdamWPlainEps
from retinue.train.muon import with_muon


class OptimSpec(Spec):
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), or Muon beside it.

    kind: adamw8bit keeps the moments in 8 bits (bitsandbytes); muon moves the matrices of numbered
    layers by Muon (Jordan et al. 2024; scaled to AdamW's step as in arXiv 2502.16982) and the rest
    by AdamW: small models learn in fewer updates from scratch; adamw_plain_eps adds eps to the
    uncorrected second moment (Cerebras ModelZoo). decay: which parameters decay, see
    `DECAY`. clip: largest norm of all gradients together; None = no clipping.
    """

    kind: Literal["adamw", "adamw8bit", "muon", "adamw_plain_eps"] = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    clip: float | None = Field(default=1.0, gt=0)
    decay: str = "matrices"

    @field_validator("decay")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in DECAY:
            raise ValueError(f"unknown decay rule {name!r} (known: {', '.join(DECAY)})")
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """What grouping must know of a parameter.

    module: class name of the module that owns it; rule: number of the trainable rule with a rate of
    its own that it fell to, None for the stage's rate; partly: only some of its rows train, so that
    none of it may decay.
    """

    name: str
    module: str
    dims: int
    rule: int | None = None
    partly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One AdamW group; names in the order given."""

    lr: float
    weight_decay: float
    names: list[str] = field(default_factory=list)


def decays_matrix(param: Param) -> bool:
    """Only tensors of two or more dimensions decay: no norm, bias, gate or newline."""
    return param.dims >= 2


def decays_llava(param: Param) -> bool:
    """LLaVA's rule through transformers 4.37: all but LayerNorm, LlamaRMSNorm and `bias` names.

    Other RMSNorm classes do decay there.
    """
    return param.module not in ("LayerNorm", "LlamaRMSNorm") and "bias" not in param.name


def decays_moss2(param: Param) -> bool:
    """LLaVA's rule where the language model has an RMSNorm class of its own, which then decays."""
    return param.module != "LayerNorm" and "bias" not in param.name


def decays_accessory(param: Param) -> bool:
    """LLaMA2-Accessory's rule: all but biases and the language model's norms.

    Its projections' norms have names that the rule misses, so these decay.
    """
    norm = param.name.startswith("lm.") and param.name.endswith("norm.weight")
    return not norm and not param.name.endswith(".bias")


def decays_modelzoo(param: Param) -> bool:
    """ModelZoo's rule: all but the parameters of norms and names with `bias`."""
    return "Norm" not in param.module and "bias" not in param.name


def decays_flamingo(param: Param) -> bool:
    """The gated blocks and adapters within them, gates and norms too (OpenFlamingo)."""
    return "gated_cross_attn" in param.name


DECAY: dict[str, Callable[[Param], bool]] = {
    "matrices": decays_matrix,
    "llava": decays_llava,
    "modelzoo": decays_modelzoo,
    "llava-moss2": decays_moss2,
    "accessory": decays_accessory,
    "flamingo": decays_flamingo,
}


def group_parameters(
    params: Sequence[Param],
    *,
    lr: float,
    weight_decay: float,
    decay: str,
    own: Mapping[int, float] | None = None,
) -> list[Group]:
    """Groups in the order of LLaVA and M3: decaying, not decaying; then both of every own rate.

    own: rule -> its absolute rate, in group order. Empty groups are kept, as the originals do.
    """
    decays = DECAY[decay]
    groups = []
    for rule, rate in [(None, lr), *(own or {}).items()]:
        members = [param for param in params if param.rule == rule]
        for wanted, strength in ((True, weight_decay), (False, 0.0)):
            names = [
                param.name for param in members if (decays(param) and not param.partly) == wanted
            ]
            groups.append(Group(lr=rate, weight_decay=strength, names=names))
    return groups


def describe_parameters(
    model: nn.Module, table: TrainableTable
) -> tuple[list[Param], dict[int, float]]:
    """The trainable parameters of a model and the rates that rules set for themselves."""
    rows = table.rows
    own = {
        rule: rows[rule].lr
        for rule in sorted(set(table.rule_of.values()))
        if rows[rule].lr != table.lr
    }
    params = []
    for name, parameter in model.named_parameters():
        if name in table.rule_of:
            owner = model.get_submodule(name.rpartition(".")[0])
            rule = table.rule_of[name]
            params.append(
                Param(
                    name=name,
                    module=type(owner).__name__,
                    dims=parameter.dim(),
                    rule=rule if rule in own else None,
                    partly=name in table.rows_of,
                )
            )
    return params, own


def make_optimizer(
    model: nn.Module, table: TrainableTable, *, spec: OptimSpec
) -> tuple[Optimizer, list[Group]]:
    """AdamW over the trainable parameters; each group carries `base_lr` and its `names`."""
    params, own = describe_parameters(model, table)
    groups = group_parameters(
        params, lr=spec.lr, weight_decay=spec.weight_decay, decay=spec.decay, own=own
    )
    by_name = dict(model.named_parameters())
    filled: list[dict[str, Any]] = [
        {
            "params": [by_name[name] for name in group.names],
            "lr": group.lr,
            "base_lr": group.lr,
            "weight_decay": group.weight_decay,
            "names": group.names,
        }
        for group in groups
    ]
    filled = [part for group in filled for part in _one_layout(group)]
    common: dict[str, Any] = {"lr": spec.lr, "betas": spec.betas, "eps": spec.eps}
    if spec.kind == "adamw8bit":
        if any(hasattr(p, "device_mesh") for group in filled for p in group["params"]):
            raise ConfigError(
                "8-bit moments of weights that processes share",
                where="train.stages.*.optim.kind",
                rule="bitsandbytes knows whole tensors only",
                fix="use adamw, whose moments are divided as well, or parallel.shard=none",
            )
        bits = need("bitsandbytes", extra="quant", purpose="8-bit AdamW")
        optimizer: Optimizer = bits.optim.AdamW8bit(filled, **common)
        return optimizer, groups
    if spec.kind == "adamw_plain_eps":
        return AdamWPlainEps(filled, **common), groups
    if spec.kind == "muon":
        return with_muon(filled, **common), groups
    return torch.optim.AdamW(filled, fused=True, **common), groups


def _one_layout(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group parted so that each part's tensors lie alike: fused steps take no mixture of plain
    tensors and such that processes share."""
    places: dict[Any, list[int]] = {}
    for place, parameter in enumerate(group["params"]):
        places.setdefault(getattr(parameter, "device_mesh", None), []).append(place)
    if len(places) < 2:
        return [group]
    return [
        {**group, **{key: [group[key][place] for place in some] for key in ("params", "names")}}
        for some in places.values()
    ]


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Give every group its own base rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
