"""A language model whose layers lie on several devices of one process, one after the other.

Embeddings, encoders, connector, norm and head stay on the first device. What a layer is given is
moved to where the layer is, once per forward and device; what the last one says is moved back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from retinue.core.errors import EnvError
from retinue.model.fusions.splice import Splice
from retinue.model.lm.causal import CausalLM
from retinue.model.retinue import Retinue
from retinue.parallel.plan_spread import gigabytes, spread_layers
from retinue.types import Cache


class Spread:
    """Where each parameter of a model belongs, decided before any is read.

    room: devices with their free bytes; widths: bytes of a number of each parameter, by name.
    Raises EnvError where the devices together are too small, or where a model that needs several
    cannot be spread.
    """

    def __init__(
        self,
        model: Retinue,
        room: Sequence[tuple[torch.device, int]],
        *,
        widths: Mapping[str, float],
    ) -> None:
        names = {id(module): name for name, module in model.named_modules()}
        self.layers = [names[id(layer)] for layer in model.lm.layers]
        sizes = dict.fromkeys(self.layers, 0.0)
        rest = 0.0
        for name, parameter in model.named_parameters():
            size = parameter.numel() * widths[name]
            owner = next((path for path in self.layers if name.startswith(f"{path}.")), None)
            if owner is None:
                rest += size
            else:
                sizes[owner] += size
        self.devices = [device for device, _ in room]
        self.places = spread_layers(
            [int(size) for size in sizes.values()], rest=int(rest), room=[free for _, free in room]
        )
        if self.needed and type(model.fusion) is not Splice:
            need = gigabytes(int(rest + sum(sizes.values())))
            raise EnvError(
                f"{need} of weights do not fit one device, and fusion "
                f"{type(model.fusion).__name__} keeps its layers together",
                fix="--quant int4, or a larger device",
            )

    @property
    def needed(self) -> bool:
        """Whether one device is not enough."""
        return max(self.places, default=0) > 0

    @property
    def home(self) -> torch.device:
        """Where everything but the layers is."""
        return self.devices[0]

    def device_of(self, name: str) -> torch.device:
        """Of a parameter or buffer."""
        for path, place in zip(self.layers, self.places, strict=True):
            if name.startswith(f"{path}."):
                return self.devices[place]
        return self.home

    def settle(self, model: Retinue) -> None:
        """Everything to its place, and the moves between devices; caches follow the layers."""
        own = {path: model.get_submodule(path) for path in self.layers}
        inside = {id(module) for layer in own.values() for module in layer.modules()}
        for module in model.modules():
            if id(module) not in inside:
                for table in (module._parameters, module._buffers):
                    for leaf, tensor in table.items():
                        if tensor is not None:
                            table[leaf] = _to(tensor, self.home)
        carrier = Carrier(self.home)
        for path, place in zip(self.layers, self.places, strict=True):
            own[path].to(self.devices[place])
            carrier.attach(own[path], self.devices[place])
        carrier.bring_home(own[self.layers[-1]])
        assert type(model.lm) is CausalLM
        model.lm.__class__ = SpreadLM


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    moved = tensor.detach().to(device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(moved, requires_grad=tensor.requires_grad)
    return moved


class Carrier:
    """Moves what layers are given; what several layers of a device share is moved once."""

    def __init__(self, home: torch.device) -> None:
        self.home = home
        self.moved: dict[tuple[int, torch.device], tuple[Any, Any]] = {}

    def attach(self, layer: nn.Module, device: torch.device) -> None:
        """Let a layer be given everything on its device."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            del module
            given = tuple(self.carry(one, device) for one in args)
            return given, {name: self.carry(one, device) for name, one in kwargs.items()}

        layer.register_forward_pre_hook(before, with_kwargs=True)

    def bring_home(self, layer: nn.Module) -> None:
        """Let what the last layer says be on the first device, and forget what was moved."""

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            del module, args
            self.moved.clear()
            return self.move(output, self.home)

        layer.register_forward_hook(after)

    def carry(self, found: Any, device: torch.device) -> Any:
        """The same on a device."""
        if device == self.home:
            return found
        if isinstance(found, Tensor) or not (is_dataclass(found) or isinstance(found, tuple)):
            return self.move(found, device)
        key = (id(found), device)
        if key not in self.moved:  # the original is held, so that its id stays its own
            self.moved[key] = (found, self.move(found, device))
        return self.moved[key][1]

    def move(self, found: Any, device: torch.device) -> Any:
        """Tensors inside tuples and dataclasses to a device.

        What is on the CPU of a model that is elsewhere stays there, and so does what is written to:
        caches and mappings.
        """
        if isinstance(found, Tensor):
            stays = found.device.type == "cpu" != self.home.type
            return found if stays else found.to(device, non_blocking=True)
        if isinstance(found, tuple | list):
            return type(found)(self.move(one, device) for one in found)
        if is_dataclass(found) and not isinstance(found, type):
            changes = {}
            for one in fields(found):
                value = getattr(found, one.name)
                new = self.move(value, device)
                if new is not value:
                    changes[one.name] = new
            return replace(found, **changes) if changes else found
        return found


class SpreadCache(DynamicCache):
    """Keys and values that lie where their layers do."""

    def batch_select_indices(self, indices: Tensor) -> None:
        for layer in self.layers:
            if layer.get_seq_length():
                layer.batch_select_indices(indices.to(layer.keys.device))


class SpreadLM(CausalLM):
    """A language model on several devices."""

    def new_cache(self) -> Cache:
        return Cache(lm=SpreadCache(config=self.config))
