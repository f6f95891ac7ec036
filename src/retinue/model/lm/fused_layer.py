"""One Llama-shaped decoder layer for inference: two fused products in, two products out.

Legend: B rows, T new tokens, S cached and new tokens, H query heads, G key/value heads,
R = H / G, D head width, N = B * T, W layer width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from retinue.model.lm.fused_cache import FusedCache
from retinue.model.quant.base import QuantLinear, join
from retinue.ops.attention import attend
from retinue.ops.linear import prepack_bf16
from retinue.ops.plan import AttentionPlan

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the layers of one forward share.

    start, stop: columns of the new tokens in the cache; turns: cosines and signed sines, each
    (B, T, 1, D); plan: who sees whom; mask: None, or (B, 1, 1, S) added to the scores of one
    new token a row.
    """

    start: int
    stop: int
    turns: tuple[Tensor, Tensor]
    plan: AttentionPlan | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class FusedLayer:
    """q, k and v in one product, gate and up in another; the residual is updated in place.

    Reference: the Llama decoder (arXiv 2302.13971), with the biases of Qwen 2 (2407.10671) and
    the norms of queries and keys of Qwen 3 (2505.09388).
    """

    def __init__(self, layer: Any, *, number: int, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.number, self.D = number, int(attention.head_dim)
        self.scale = float(attention.scaling)
        self.norm_in = norm_of(layer.input_layernorm, dtype)
        self.norm_mid = norm_of(layer.post_attention_layernorm, dtype)
        self.norm_q = norm_of(getattr(attention, "q_norm", None), dtype)
        self.norm_k = norm_of(getattr(attention, "k_norm", None), dtype)
        self.G = _rows_of(attention, "k_proj", attention.config.num_key_value_heads * self.D)
        self.G //= self.D
        self.H = attention.o_proj.in_features // self.D
        self.qkv = product(_parts(attention, "qkv_proj", "q_proj", "k_proj", "v_proj"), dtype)
        self.out = product([attention.o_proj], dtype)
        self.gate_up = product(_parts(mlp, "gate_up_proj", "gate_proj", "up_proj"), dtype)
        self.down = product([mlp.down_proj], dtype)

    def __call__(self, x_NW: Tensor, sight: Sight, cache: FusedCache) -> Tensor:
        """(N, W) -> (N, W), the same buffer; the cache takes the new keys and values."""
        B, T = sight.turns[0].shape[:2]
        qkv = self.qkv(self.norm_in(x_NW)).view(B, T, self.H + 2 * self.G, self.D)
        self._turn(qkv, sight)
        x_NW.add_(self.out(self._mix(qkv, sight, cache)))
        gate, up = self.gate_up(self.norm_mid(x_NW)).chunk(2, dim=-1)
        return x_NW.add_(self.down(silu(gate).mul_(up)))

    def _turn(self, qkv_BTHD: Tensor, sight: Sight) -> None:
        """Rotary positions on queries and keys, in place (arXiv 2104.09864)."""
        qk = qkv_BTHD[:, :, : self.H + self.G]
        if self.norm_q is not None and self.norm_k is not None:
            qk[:, :, : self.H] = self.norm_q(qk[:, :, : self.H])
            qk[:, :, self.H :] = self.norm_k(qk[:, :, self.H :])
        cos, sin = sight.turns
        turned = qk.roll(self.D // 2, -1)
        qk.mul_(cos).addcmul_(turned, sin)

    def _mix(self, qkv_BTHD: Tensor, sight: Sight, cache: FusedCache) -> Tensor:
        """Attention: (N, H * D)."""
        B, T = qkv_BTHD.shape[:2]
        H, G, D = self.H, self.G, self.D
        heads_BHTD = qkv_BTHD.transpose(1, 2)
        kv_BGSD = cache.write(self.number, heads_BHTD[:, H:], sight.start, sight.stop)
        k_BGSD, v_BGSD = kv_BGSD[:, :G], kv_BGSD[:, G:]
        if sight.plan is None:
            # one query a row: the heads of a group stand where queries stand, no key is copied
            q_BGRD = qkv_BTHD[:, 0, :H].view(B, G, H // G, D)
            out_BGRD = scaled_dot_product_attention(
                q_BGRD, k_BGSD, v_BGSD, attn_mask=sight.mask, scale=self.scale
            )
            return out_BGRD.reshape(B, H * D)
        out_BTHD = attend(heads_BHTD[:, :H], k_BGSD, v_BGSD, plan=sight.plan, scale=self.scale)
        return out_BTHD.reshape(B * T, H * D)


def norm_of(module: Any, dtype: torch.dtype) -> Any:
    """A norm on its weights in `dtype`; None for no norm."""
    if module is None:
        return None
    return Norm(module.weight.detach().to(dtype), float(module.variance_epsilon))


def product(linears: list[nn.Linear], dtype: torch.dtype) -> Product:
    """Linear layers on one input as one product, laid out for the machine where that pays.

    Quantized layers join in their own way.
    """
    if any(isinstance(linear, QuantLinear) for linear in linears):
        return join(linears)
    weight = torch.cat([linear.weight.detach() for linear in linears]).to(dtype)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if any(linear.bias is not None for linear in linears):
        parts = [
            weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
            for linear in linears
        ]
        joined.bias = nn.Parameter(torch.cat([p.to(dtype) for p in parts]), requires_grad=False)
    return prepack_bf16(joined)


def _parts(owner: nn.Module, whole: str, *names: str) -> list[nn.Linear]:
    """The layers to be joined; Phi 3 has them joined already, under the name `whole`."""
    if hasattr(owner, whole):
        return [owner.get_submodule(whole)]  # type: ignore[list-item]
    return [owner.get_submodule(name) for name in names]  # type: ignore[misc]


def _rows_of(owner: nn.Module, name: str, otherwise: int) -> int:
    found = getattr(owner, name, None)
    return otherwise if found is None else int(found.out_features)
