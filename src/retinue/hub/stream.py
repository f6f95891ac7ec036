"""Weights into a model without weights: one tensor at a time, every name accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from retinue.convert.keymap import Coverage, KeyMap, Op, shorten
from retinue.convert.translation import FOREIGN
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.model.quant.swap import Quantizer
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.ops.malloc import returning_memory

if TYPE_CHECKING:
    from retinue.parallel.spread import Spread
    from retinue.parallel.tensor import Divider


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Weight files with the rules of their names. Of several sources the earlier one wins.

    keep: our names to take from it (None: all). changes: our name -> what to do to the tensor
    after reading, such as adding a LoRA product.
    """

    weights: Weights
    keys: KeyMap
    label: str
    keep: Callable[[str], bool] | None = None
    changes: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


@contextmanager
def weightless() -> Iterator[None]:
    """Modules made inside have parameters on the meta device; computed buffers stay real."""
    real = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        real(module, name, param)
        if param is not None and not param.is_meta:
            module._parameters[name] = nn.Parameter(
                torch.empty_like(param, device="meta"), requires_grad=param.requires_grad
            )

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = real  # type: ignore[method-assign]


def skeleton(config: RetinueConfig) -> Retinue:
    """The model of a config with every parameter on meta. Raises ConfigError if parts misfit."""
    with weightless():
        return Retinue(config)


def shapes_of(model: Retinue) -> dict[str, Tensor]:
    """What a checkpoint must hold: our name -> parameter or buffer, tied copies left out."""
    tied = tied_names(model)
    return {k: v for k, v in model.state_dict(keep_vars=True).items() if k not in tied}


def tied_names(model: Retinue) -> dict[str, str]:
    """Names that share another name's tensor -> that name."""
    return dict(model._tied_weights_keys or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one of our tensors stands: a key of a source, and what the values go through."""

    name: str
    key: str
    source: Source
    op: Op | None

    def read(self, shape: torch.Size) -> Tensor:
        """The tensor as on disk. Raises CheckpointError unless it has the shape."""
        tensor = self.source.weights.read(self.key)
        if self.op is not None:
            tensor = self.op.apply(tensor)
        if self.name in self.source.changes:
            tensor = self.source.changes[self.name](tensor)
        self._check(tuple(tensor.shape), shape)
        return tensor

    def read_part(self, shape: torch.Size, *, divider: Divider) -> Tensor:
        """This process's part of a tensor that is divided; the rest is not read where possible."""
        dim, ranges = divider.ranges(self.name)
        if self.op is None and self.name not in self.source.changes:
            weights = self.source.weights
            self._check(weights.shape(self.key), shape)
            return weights.read_part(self.key, dim=dim, ranges=ranges)
        tensor = self.read(shape)
        return torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in ranges], dim)

    def _check(self, found: tuple[int, ...], shape: torch.Size) -> None:
        if found != tuple(shape):
            raise CheckpointError(
                f"{self.key} has the shape {found}, {self.name} of the model is {tuple(shape)}",
                where=str(self.source.weights.names[self.key]),
                rule="weights must have the sizes that the config states",
            )


def places(
    sources: list[Source], wanted: Mapping[str, Tensor], tied: Mapping[str, str], cover: Coverage
) -> Iterator[Place]:
    """Where everything wanted stands, in the files' order; `cover` is filled on the way."""
    done: set[str] = set()
    for source in sources:
        for key in source.weights:
            found = source.keys.match(key)
            name = found[0] if found else ""
            if name in done or (source.keep and found and not source.keep(name)):
                continue
            if name in tied or (name not in wanted and source.keys.ignores(key)):
                cover.ignored.append(key)
                continue
            if found is None or name not in wanted:
                cover.unused.append(key)
                continue
            done.add(name)
            cover.used.append(key)
            yield Place(name=name, key=key, source=source, op=found[1].op)
    cover.missing.extend(name for name in wanted if name not in done)


def stream(
    sources: list[Source],
    wanted: Mapping[str, Tensor],
    tied: Mapping[str, str],
    cover: Coverage,
    divider: Divider | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor as on disk) of everything wanted; `cover` is filled on the way.

    divider: says of which tensors a part is wanted, and which. Raises CheckpointError at the first
    tensor whose shape is not the model's.
    """
    for place in places(sources, wanted, tied, cover):
        shape = wanted[place.name].shape
        if divider is not None and divider.divides(place.name):
            yield place.name, place.read_part(shape, divider=divider)
        else:
            yield place.name, place.read(shape)


def require_complete(cover: Coverage, *, where: str) -> None:
    """Raise CheckpointError if any tensor of the model was found nowhere."""
    if cover.missing:
        raise CheckpointError(
            f"{len(cover.missing)} tensors are missing: {', '.join(shorten(cover.missing))}",
            where=where,
            rule="every parameter must come from the checkpoint, its base or its encoders",
            fix="name the base model with base=, a tower with --encoder NAME=PATH",
        )


def language_dtype(sources: list[Source]) -> torch.dtype | None:
    """Dtype of the language model's first weight in the last source that has one."""
    for source in reversed(sources):
        for key in source.weights:
            name = source.keys.to_retinue(key) or ""
            if name.startswith("lm.") and (source.keep is None or source.keep(name)):
                dtype = source.weights.dtype(key)
                if dtype.is_floating_point:
                    return dtype
    return None


def fill(
    model: Retinue,
    sources: list[Source],
    *,
    dtype: torch.dtype | None,
    device: str | torch.device,
    where: str,
    quantizer: Quantizer | None = None,
    divider: Divider | None = None,
    spread: Spread | None = None,
) -> Coverage:
    """Give a skeleton its weights. Nothing stays on meta, or CheckpointError names what would.

    dtype None: encoders keep the dtype they have on disk, all else takes the language model's.
    quantizer: changes the format of each weight it is for as soon as that is read; divider: of the
    weights that several processes share, each reads its part; spread: where each weight goes, if
    not all to `device`.
    """
    cover = Coverage()
    wanted, tied = shapes_of(model), tied_names(model)
    quantized = quantizer.targets(model) if quantizer else set()
    common = dtype or language_dtype(sources)
    mark = Fingerprint()
    made = quantizer is not None or divider is not None
    made = made or any(source.weights.made for source in sources)
    with returning_memory() if made else nullcontext():
        for name, tensor in stream(sources, wanted, tied, cover, divider):
            tensor = cast(name, tensor, asked=dtype, common=common)
            mark.add(name, tensor)
            tensor = tensor.to(device if spread is None else spread.device_of(name))
            if quantizer is not None and name in quantized:
                quantizer.put(model, name, tensor)
            else:
                place(model, name, tensor)
    require_complete(cover, where=where)
    mark.keep(model.config)
    for name, other in tied.items():
        parent, leaf = _parent(model, name)
        parent._parameters[leaf] = model.get_parameter(other)
    if spread is None:
        model.to(device)
    else:
        spread.settle(model)
    return cover


def widths(
    model: Retinue,
    sources: list[Source],
    *,
    dtype: torch.dtype | None,
    quantizer: Quantizer | None = None,
) -> dict[str, float]:
    """Bytes of a number of each parameter, once it is read; scales of few bits counted in."""
    common = dtype or language_dtype(sources) or torch.float32
    few = quantizer.targets(model) if quantizer else set()
    bits = 4.5 if quantizer and quantizer.kind.kind.endswith("4") else 8.1
    names = (name for name, _ in model.named_parameters())
    return {name: bits / 8 if name in few else common.itemsize for name in names}


def cast(
    name: str, tensor: Tensor, *, asked: torch.dtype | None, common: torch.dtype | None
) -> Tensor:
    """A tensor in the dtype that loading gives it."""
    if not tensor.is_floating_point() or (asked is None and name.startswith("encoders.")):
        return tensor
    return tensor if common is None else tensor.to(common)


class Fingerprint:
    """A digest of an external tower's weights, so that an export knows whether they changed."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Count one tensor in; all but encoders' are ignored, order does not matter."""
        if name.startswith("encoders."):
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
            head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            digest = hashlib.blake2b(data, key=hashlib.blake2b(head).digest(), digest_size=6)
            self.value ^= int.from_bytes(digest.digest(), "big")

    def keep(self, config: RetinueConfig) -> None:
        """Remember the digest in a config whose tower stands outside its checkpoint."""
        kept = getattr(config, FOREIGN, None)
        if isinstance(kept, dict) and kept.get("tower_carried") is False:
            kept.setdefault("tower_digest", self.value)


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where the model has a parameter or buffer of that name."""
    parent, leaf = _parent(model, name)
    if leaf in parent._parameters:
        held = parent._parameters[leaf]
        grad = held is None or held.requires_grad
        parent._parameters[leaf] = nn.Parameter(
            tensor.contiguous().clone(), requires_grad=grad and tensor.is_floating_point()
        )
    else:
        parent._buffers[leaf] = tensor.contiguous().clone()


def _parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
