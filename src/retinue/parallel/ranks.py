"""What the loop asks of other processes; one process answers for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retinue.types import Batch, Output


class Ranks:
    """Sums over the processes of a launch. This base is a launch of one.

    rank, size: among all processes; data_rank, data_size: among the groups that see different
    samples. device: where this process computes, None = where the model is.
    """

    rank = 0
    size = 1
    data_rank = 0
    data_size = 1
    device: torch.device | None = None

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the data groups."""
        return list(values)

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of all processes' values, at each place."""
        return list(values)

    def share(self, module: nn.Module) -> None:
        """Give every process the weights of the first."""

    def wait(self) -> None:
        """Let every process come to this point."""

    def divide(self, model: Any) -> None:
        """Lay a prepared model out over the processes, until `join`."""

    def join(self, model: Any) -> None:
        """Give the model its plain parameters back, in every process."""

    def parts(
        self, objective: Any, model: Any, batch: Batch, *, pictures: bool
    ) -> Iterator[Output]:
        """The objective's outputs for a micro-batch; the caller goes back through each.

        pictures: whether the micro-batch of any process has some.
        """
        return iter(objective.parts(model, batch))

    def output(self, objective: Any, model: Any, batch: Batch, *, pictures: bool) -> Output:
        """The same in one piece, without gradients."""
        output: Output = objective(model, batch)
        return output

    def check(self, objective: Any) -> None:
        """Raise ConfigError for an objective that cannot be computed under this layout."""

    def add_gradients(self, model: nn.Module) -> None:
        """Sum gradients over the data groups. A parameter for which nobody has one keeps none."""

    def release(self) -> None:
        """Drop copies of weights that an update is about to make stale."""

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Norm of all gradients together, which are scaled down to `limit`, if there is one."""
        norm: Tensor = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if limit is not None:
            nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def whole(self, model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors under names of the model's parameters, each in one piece.

        Everyone asks at once; the first process gets them, on the CPU where they were divided.
        Values that are mappings are such of one parameter: its moments.
        """
        return dict(tensors)

    def like(self, model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The way back: whole tensors laid out as the model's parameters are."""
        return dict(tensors)

    @contextmanager
    def plain(self, model: nn.Module) -> Iterator[None]:
        """Inside, the first process may read the model as if it were not divided."""
        yield
