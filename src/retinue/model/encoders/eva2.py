"""EVA2-CLIP's vision transformer as CogVLM carries it: norms on what each half of a block adds.

Legend: N views, C H W pixels, L tokens, D width, G heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.clip import MEAN, STD
from retinue.model.encoders.vit import ViT, ViTSpec


class Eva2Config(PreTrainedConfig):
    """Sizes; the defaults are those of EVA2-CLIP-E without its last layer."""

    model_type = "retinue_eva2"

    def __init__(
        self,
        image_size: int = 490,
        patch_size: int = 14,
        num_channels: int = 3,
        hidden_size: int = 1792,
        num_hidden_layers: int = 63,
        num_attention_heads: int = 16,
        intermediate_size: int = 15360,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.num_channels, self.hidden_size = num_channels, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size, self.hidden_act = intermediate_size, hidden_act
        self.layer_norm_eps = layer_norm_eps
        super().__init__(**kwargs)


AutoConfig.register(Eva2Config.model_type, Eva2Config, exist_ok=True)


class Eva2Spec(ViTSpec):
    kind: Literal["eva2"] = "eva2"

    def shape(self, config: Any) -> EncoderShape:
        return self.square(config, prefix=1, mean=MEAN, std=STD)


class Eva2(ViT):
    """EVA2-CLIP-E as CogVLM's encoder (arXiv 2303.15389, arXiv 2311.03079); no norm at the end."""

    Spec: ClassVar[type[EncoderSpec]] = Eva2Spec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = Eva2Net(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        found: Tensor = self.net.patch_embedding(pixels_NCHW)
        return found

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.transformer.layers


class Eva2Net(nn.Module):
    """The names of CogVLM's checkpoints."""

    def __init__(self, config: Eva2Config) -> None:
        super().__init__()
        self.patch_embedding = Embedding(config)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(
            Eva2Block(config) for _ in range(config.num_hidden_layers)
        )


class Embedding(nn.Module):
    """Class token and patches, a learned position added to each."""

    def __init__(self, config: Eva2Config) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.proj = nn.Conv2d(config.num_channels, width, patch, stride=patch)
        self.cls_embedding = nn.Parameter(torch.empty(1, width))
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02."""
        nn.init.trunc_normal_(self.cls_embedding, std=0.02)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        x_NLD = self.proj(pixels_NCHW).flatten(2).transpose(1, 2)
        first_N1D = self.cls_embedding.expand(len(x_NLD), 1, -1)
        found: Tensor = torch.cat([first_N1D, x_NLD], dim=1) + self.position_embedding.weight
        return found


class Eva2Block(nn.Module):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def __init__(self, config: Eva2Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads, self.act = config.num_attention_heads, ACT2FN[config.hidden_act]
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)
        self.attention, self.mlp = nn.Module(), nn.Module()
        self.attention.query_key_value = nn.Linear(width, 3 * width)
        self.attention.dense = nn.Linear(width, width)
        self.mlp.fc1 = nn.Linear(width, config.intermediate_size)
        self.mlp.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x_NLD: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, L, D) -> (N, L, D); all tokens see all (the mask argument keeps the common call)."""
        attention: Any = self.attention
        mlp: Any = self.mlp
        q_NGLK, k_NGLK, v_NGLK = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in attention.query_key_value(x_NLD).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q_NGLK, k_NGLK, v_NGLK).transpose(1, 2).flatten(2)
        x_NLD = x_NLD + self.input_layernorm(attention.dense(mixed))
        wide = self.act(mlp.fc1(x_NLD))
        found: Tensor = x_NLD + self.post_attention_layernorm(mlp.fc2(wide))
        return found
