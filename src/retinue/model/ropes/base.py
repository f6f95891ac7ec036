"""Dynamic NTK scaling of rotary positions: the formula, and which modules it replaces.

Legend: B rows, T tokens, J pairs of a head's channels, D head width.
Source: the scheme of "Dynamically Scaled RoPE" (u/emozilla, 2023) over NTK-aware scaling
(u/bloc97, 2023), as Llama, InternLM2 and MOSS2 have it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from retinue.model.ropes import ROPES


class DynamicRope(nn.Module):
    """cos and sin of positions; beyond the trained length L0 the base grows with the length L.

    base' = base (f L / L0 - (f - 1)) ^ (d / (d - 2)), with the config's factor f and head width d.
    It keeps no buffers: the few frequencies are computed anew in every forward, in fp32.
    """

    replaces = "dynamic"

    def __init__(self, config: Any) -> None:
        super().__init__()
        rope = config.rope_parameters
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.width = int(head * rope.get("partial_rotary_factor", 1.0))
        self.base, self.factor = float(rope["rope_theta"]), float(rope["factor"])
        self.limit = int(config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (B, T, D) in the dtype of x."""
        lengths_BT = self.lengths(position_ids)
        half_BTJ = position_ids[..., None].float() * self.frequencies(lengths_BT)
        angles_BTD = torch.cat([half_BTJ, half_BTJ], dim=-1)
        return angles_BTD.cos().to(x.dtype), angles_BTD.sin().to(x.dtype)

    @abstractmethod
    def lengths(self, positions_BT: Tensor) -> Tensor:
        """(B, T) length by which each token's angle is scaled."""

    def frequencies(self, lengths_BT: Tensor) -> Tensor:
        """(B, T, J) radians per position."""
        d = self.width
        steps_J = torch.arange(0, d, 2, device=lengths_BT.device, dtype=torch.float) / d
        plain_J = 1.0 / self.base**steps_J
        stretch_BT = self.factor * lengths_BT.float() / self.limit - (self.factor - 1)
        grown_BT = self.base * stretch_BT.clamp(min=1.0) ** (d / (d - 2))
        long_BT1 = (lengths_BT > self.limit)[..., None]
        return torch.where(long_BT1, 1.0 / grown_BT[..., None] ** steps_J, plain_J)


def replace_dynamic(model: nn.Module, config: Any, *, kind: str) -> None:
    """Put the leaf `kind` where a model's rotary module scales by length and remembers it.

    transformers' own module keeps the largest length it has met until a short sequence comes, so
    that answers would depend on earlier requests.
    """
    leaf: Any = ROPES.get(kind)
    for name, module in list(model.named_modules()):
        if getattr(module, "rope_type", None) == leaf.replaces:
            model.set_submodule(name, leaf(config))
