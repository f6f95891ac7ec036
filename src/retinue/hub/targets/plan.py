"""Targets with one folder of weights under other names, and files beside them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from retinue.convert.internlm import joined
from retinue.convert.keymap import KeyMap
from retinue.core.errors import CheckpointError
from retinue.hub.files import BinWriter, ShardWriter, whole_folder
from retinue.hub.save import write_weights
from retinue.hub.targets.base import Job, Streamed, keep_origin


@dataclass(slots=True, kw_only=True)
class Plan:
    """How a target names the tensors, and what it writes beside them."""

    keys: KeyMap | None
    finish: Callable[[Path], None]
    grow: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    skip: Callable[[str], bool] = lambda name: False
    heads: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    def named(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the target; heads: queries and groups of a `wqkv` to be joined."""
        found = self._renamed(tensors)
        if self.heads is None:
            return found
        return joined(found, heads=self.heads[0], groups=self.heads[1])

    def _renamed(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if not self.skip(name):
                grown = self.grow(name, tensor)
                yield (name, grown) if self.keys is None else renamed(name, grown, keys=self.keys)


def renamed(name: str, tensor: Tensor, *, keys: KeyMap) -> tuple[str, Tensor]:
    """A tensor under the target's name. Raises CheckpointError where it has no place for it."""
    found = keys.match_back(name)
    if found is None:
        raise CheckpointError(f"{name} has no place in the target format", fix="convert to retinue")
    return found[0], tensor if found[1].op is None else found[1].op.invert(tensor)


class Planned(Streamed):
    """A target that a `Plan` describes."""

    @abstractmethod
    def plan(self, job: Job) -> Plan:
        """Raises CheckpointError for what the target cannot express."""

    def write(self, job: Job) -> tuple[list[str], list[str]]:
        plan, asked = self.plan(job), job.asked
        with whole_folder(asked.dst) as partial:
            state = plan.named(job.tensors())
            writer: ShardWriter | None = None
            if asked.files == "projector":
                state = ((name, tensor) for name, tensor in state if is_projector(name))
                writer = BinWriter(partial, shard_bytes=2**62, stem="mm_projector")
            elif asked.files == "bin":
                writer = BinWriter(partial, shard_bytes=asked.shard_bytes)
            written = write_weights(
                state, partial, dtype=asked.dtype, shard_bytes=asked.shard_bytes, writer=writer
            )
            plan.finish(partial)
            keep_origin(job, partial)
        return written, plan.notes


def is_projector(name: str) -> bool:
    """Whether `mm_projector.bin` has a place for an original's name."""
    return ".mm_projector." in name or name == "model.image_newline"
