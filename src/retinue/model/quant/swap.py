"""Which layers of a model change their weight format, and the change itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from retinue.core.errors import ConfigError
from retinue.model.quant import QUANTS, canonical
from retinue.model.quant.base import QuantLinear

if TYPE_CHECKING:
    from retinue.model.retinue import Retinue


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """A kind, and the parts it is for: the language model's layers, and on request others.

    Connectors, embeddings and everything that does not compute as nn.Linear keep their weights.
    """

    kind: type[QuantLinear]
    encoders: bool = False
    head: bool = False

    @classmethod
    def of(cls, name: str, *, encoders: bool = False, head: bool = False) -> Quantizer:
        """By a kind's name or alias. Raises ConfigError for another, EnvError if it needs more."""
        kind: type[QuantLinear] = QUANTS.get(canonical(name))
        kind.require()
        return cls(kind=kind, encoders=encoders, head=head)

    def targets(self, model: Retinue) -> set[str]:
        """Names of the weights that change."""
        kept = set() if self.head else {f"lm.{model.lm.head_name}"}
        tied = dict(model._tied_weights_keys or {})
        if tied:  # a head that shares the embeddings' table stays with it
            kept |= {name.removesuffix(".weight") for name in tied}
        roots = ("lm.", "encoders.") if self.encoders else ("lm.",)
        return {
            f"{name}.weight"
            for name, module in model.named_modules()
            if _ordinary(module) and name.startswith(roots) and name not in kept
        }

    def put(self, model: nn.Module, name: str, weight_OI: Tensor) -> None:
        """Let the layer whose weight is called `name` hold this weight, in the kind's format."""
        path = name.removesuffix(".weight")
        parent, _, leaf = path.rpartition(".")
        bias = model.get_submodule(path)._parameters["bias"]
        setattr(model.get_submodule(parent), leaf, self.kind(weight_OI, bias=bias))


def _ordinary(module: nn.Module) -> bool:
    """A linear layer that is called, and computes what nn.Linear does."""
    called = not isinstance(module, NonDynamicallyQuantizableLinear | QuantLinear)
    return isinstance(module, nn.Linear) and called and type(module).forward is nn.Linear.forward


@torch.no_grad()
def quantize(model: Retinue, *, kind: str, encoders: bool = False, head: bool = False) -> list[str]:
    """Change a loaded model in place; returns the names of the changed weights.

    encoders, head: these too. `load(quant=...)` does it while weights are read, which needs less
    memory. Raises ConfigError for an unknown kind, EnvError where its package is missing.
    """
    quantizer = Quantizer.of(kind, encoders=encoders, head=head)
    names = sorted(quantizer.targets(model))
    for name in names:
        quantizer.put(model, name, model.get_parameter(name))
    return names


@torch.no_grad()
def dequantize(model: nn.Module) -> list[str]:
    """Give a quantized model ordinary layers again, in place; the rounding stays.

    Returns the names of the changed weights.
    """
    found = list(quantized(model))
    for name, module in found:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.plain())
    return [f"{name}.weight" for name, _ in found]


def quantized(model: nn.Module) -> Iterator[tuple[str, QuantLinear]]:
    """Quantized layers by name."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            yield name, module


def quantized_shapes(model: nn.Module) -> dict[str, Tensor]:
    """Name -> a tensor on meta with the shape of the weight, names as without adapters."""
    return {
        f"{name.removesuffix('.base_layer')}.weight": torch.empty(
            module.out_features, module.in_features, device="meta"
        )
        for name, module in quantized(model)
    }


def refuse_quantized(model: nn.Module) -> None:
    """Raise ConfigError for a model that cannot be written as it is: its full weights are gone."""
    found = next(quantized(model), None)
    if found is not None:
        raise ConfigError(
            f"the weights are {found[1].kind}, their full values are no longer here",
            where=found[0],
            rule="a model folder holds full weights, the format is chosen at loading",
            fix="copy the original folder; for adapters alone give base=PATH; to keep the rounded "
            "weights call retinue.model.quant.swap.dequantize(model) first",
        )
