"""Learned prefixes that the upper layers attend to beside the sequence, behind a gate.

Legend: B rows, T tokens, P prefix tokens, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from retinue.core.errors import ConfigError
from retinue.model.fusions.base import FusionSpec
from retinue.model.fusions.expert_layer import layer_classes
from retinue.model.fusions.splice import Splice, SpliceSpec

if TYPE_CHECKING:
    from retinue.model.lm.base import LanguageModel

PREFIX, GATE = "prefix", "prefix_gate"
"""Parameters of an attention layer: (P, D) and (H)."""


class PrefixSpec(SpliceSpec):
    """`length`: vectors of each prefix; `layers`: how many of the last layers have one, None = all.

    Pictures, where there are some, stand among the words as under `splice`.
    """

    kind: Literal["prefix"] = "prefix"  # type: ignore[assignment]
    length: int = Field(default=10, ge=1)
    layers: int | None = Field(default=None, ge=1)


class Prefix(Splice):
    """Zero-initialised attention of LLaMA-Adapter (arXiv 2303.16199), as LLaMA2-Accessory has it.

    Queries attend to the prefix by a softmax of its own; tanh of a head's gate, which starts at
    zero, weighs what comes of it. Nothing of it is cached: it has no place in the sequence.
    """

    Spec: ClassVar[type[FusionSpec]] = PrefixSpec
    spec: PrefixSpec

    def attach(self, lm: LanguageModel, *, media_width: int, image_id: int) -> None:
        """Parameters into the attention of the last layers, whose own keep their names."""
        layers = list(lm.layers)
        number = len(layers) if self.spec.layers is None else self.spec.layers
        if number > len(layers):
            raise ConfigError(
                f"prefixes for {number} layers in a language model of {len(layers)}",
                where="model.fusion.layers",
                rule="at most all layers",
            )
        for layer in layers[-number:]:
            add_prefix(layer, length=self.spec.length)

    def renew(self, lm: LanguageModel) -> None:
        for layer in lm.layers:
            if isinstance(layer.self_attn, Prefixed):
                fill(layer.self_attn, length=self.spec.length)


class Prefixed(nn.Module):
    """What an attention layer becomes: itself, and the gated look at its prefix."""

    turn: Any

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As the layer it was; (B, T, D) with the prefix's part added before the output matrix."""
        y_BTD, *rest = super().forward(hidden_states, position_embeddings, *args, **kwargs)
        q_BHTE = self.heads_of(self.q_proj(hidden_states))
        q_BHTE, _ = type(self).turn(q_BHTE, q_BHTE, *position_embeddings)
        prefix_1PD = self.prefix[None].to(hidden_states.dtype)
        k_1HPE, v_1HPE = (self.heads_of(p(prefix_1PD)) for p in (self.k_proj, self.v_proj))
        times = q_BHTE.shape[1] // k_1HPE.shape[1]
        if times > 1:
            k_1HPE, v_1HPE = (t.repeat_interleave(times, dim=1) for t in (k_1HPE, v_1HPE))
        rows = len(q_BHTE)
        seen_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_1HPE.expand(rows, -1, -1, -1),
            v_1HPE.expand(rows, -1, -1, -1),
            scale=self.scaling,
        )
        gate_H11 = self.prefix_gate.tanh()[:, None, None].to(seen_BHTE.dtype)
        flat_BTD = (gate_H11 * seen_BHTE).transpose(1, 2).flatten(2)
        bias = getattr(self.o_proj, "bias", None)
        added_BTD = self.o_proj(flat_BTD) if bias is None else self.o_proj(flat_BTD) - bias
        return (y_BTD + added_BTD, *rest)

    def heads_of(self: Any, x_BTD: Tensor) -> Tensor:
        """(B, T, H * E) -> (B, H, T, E)."""
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


_made: dict[type, type] = {}


def add_prefix(layer: Any, *, length: int) -> None:
    """Give a decoder layer's attention a prefix. Raises ConfigError for other arithmetic."""
    kind = type(layer)
    if kind not in layer_classes():
        known = ", ".join(sorted(one.__name__ for one in layer_classes()))
        raise ConfigError(
            f"a language model of {kind.__name__}s",
            where="model.fusion",
            rule=f"fusion 'prefix' knows the layers {known}",
            fix="choose a Llama-like language model",
        )
    inner = layer.self_attn
    own = type(inner)
    if own not in _made:
        body = {"__module__": own.__module__, "turn": staticmethod(layer_classes()[kind])}
        _made[own] = type(f"Prefixed{own.__name__}", (Prefixed, own), body)
    inner.__class__ = _made[own]
    fill(inner, length=length)


def fill(inner: Any, *, length: int) -> None:
    """Fresh parameters of one layer: a normal prefix, a closed gate."""
    inner.prefix = nn.Parameter(torch.randn(length, inner.config.hidden_size))
    inner.prefix_gate = nn.Parameter(torch.zeros(inner.config.num_attention_heads))
