"""The rope of LLaMA2-Accessory's scaled models, built while bf16 was the default dtype.

Legend: B rows, T tokens, J pairs of a head's channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RoundedRope(nn.Module):
    """Positions scaled in bf16: from 256 on, neighbours share an angle.

    Only for comparing with the original; without scaling its positions are exact. It replaces
    linear scaling, whose factor divides positions.
    """

    replaces = "linear"

    def __init__(self, config: Any) -> None:
        super().__init__()
        rope = config.rope_parameters
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.width, self.base = int(head), float(rope["rope_theta"])
        self.scale = 1.0 / float(rope["factor"])

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (B, T, D) in the dtype of x."""
        steps_J = torch.arange(0, self.width, 2, device=x.device).float() / self.width
        scaled_BT = (position_ids.to(torch.bfloat16) * self.scale).float()
        half_BTJ = scaled_BT[..., None] * (1.0 / self.base**steps_J)
        angles_BTD = torch.cat([half_BTJ, half_BTJ], dim=-1)
        return angles_BTD.cos().to(x.dtype), angles_BTD.sin().to(x.dtype)
