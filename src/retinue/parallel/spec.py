"""The `parallel:` section: how processes share a model, and how a layer is run. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from retinue.core.errors import ConfigError
from retinue.core.spec import Spec

OTHER_NAMES = {"sdp": "keep", "state": "keep", "fsdp": "reshard", "full": "reshard"}
"""LLaMA2-Accessory's and ZeRO's words for what `shard` says."""


def _shard(value: Any) -> Any:
    return OTHER_NAMES.get(value, value) if isinstance(value, str) else value


Shard = Annotated[Literal["none", "keep", "reshard"], BeforeValidator(_shard)]


class ParallelSpec(Spec):
    """Processes are a grid: `data` groups that see different samples x `tensor` that share layers.

    data: auto = all processes / tensor. tensor: processes that divide every layer's matrices.
    shard: what the data groups divide. none: nothing, each holds the model; keep (sdp, ZeRO-2):
    weights, gradients and moments, weights stay gathered from forward to backward; reshard (fsdp,
    ZeRO-3): gathered layer by layer and dropped again. offload: shards live in main memory.
    gather: number format in which layers' weights travel and compute; model = their own.
    activation: full = recomputed in the backward; compile: every layer by itself.
    """

    activation: Literal["none", "full"] = "none"
    compile: bool = False
    data: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    tensor: int = Field(default=1, gt=0)
    shard: Shard = "none"
    offload: bool = False
    gather: Literal["model", "bf16"] = "model"

    def degrees(self, processes: int) -> tuple[int, int]:
        """(data, tensor) for a launch. Raises ConfigError, with the product, where it differs."""
        data = self.data
        if data == "auto":
            data = processes // self.tensor
        if data * self.tensor != processes:
            shown = f"{self.data} x tensor {self.tensor}"
            raise ConfigError(
                f"data {shown} does not give {processes} process{'es' * (processes != 1)}",
                where="parallel",
                rule=f"processes = data x tensor, here {processes} / {self.tensor} = "
                f"{processes / self.tensor:g} data groups",
                fix=f"start {max(data, 1) * self.tensor} processes, or set parallel.data=auto "
                "and a parallel.tensor that divides their number",
            )
        return data, self.tensor
