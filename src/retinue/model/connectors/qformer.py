"""Q-Former: learned queries look at an encoder's tokens and become a fixed number of words.

Legend: N views, L tokens of a view, Q queries, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class QFormerSpec(UnarySpec):
    """Sizes default to BLIP-2's. every: cross-attention stands in each `every`-th layer."""

    kind: Literal["qformer"] = "qformer"
    queries: int = Field(default=32, ge=1)
    out: int = Field(default=768, ge=1)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    hidden: int = Field(default=3072, ge=1)
    every: int = Field(default=2, ge=1)
    eps: float = 1e-12
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def elastic(self) -> bool:
        return False

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        self.of.num_tokens(shapes, None)
        if budget is not None and budget != self.queries:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this Q-Former always gives {self.queries}",
            )
        return TokenShape(length=self.queries, grid=None)

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.out


class QFormer(Unary):
    """BLIP-2's Q-Former without its text half (Li et al. 2023, arXiv 2301.12597, section 3.1).

    It runs in the dtype of its weights; its child `net` is transformers' module.
    """

    Spec: ClassVar[type[ConnectorSpec]] = QFormerSpec
    spec: QFormerSpec

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        if spec.out % spec.heads:
            raise ConfigError(
                f"{spec.heads} heads for a width of {spec.out}",
                where="model.connector",
                rule="the width of a Q-Former is a multiple of its heads",
            )
        self.query = nn.Parameter(torch.empty(1, spec.queries, spec.out))
        self.net: Any = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=spec.out,
                num_hidden_layers=spec.depth,
                num_attention_heads=spec.heads,
                intermediate_size=spec.hidden,
                cross_attention_frequency=spec.every,
                encoder_hidden_size=spec.of.width(shapes, lm_width),
                layer_norm_eps=spec.eps,
                hidden_dropout_prob=spec.dropout,
                attention_probs_dropout_prob=spec.dropout,
                use_qformer_text_input=False,
            )
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Queries are normal with standard deviation 0.02."""
        nn.init.normal_(self.query, std=0.02)

    def encode(self, features: EncoderFeatures) -> Features:
        x_NLD = self.of.encode(features).x_NLD
        query_NQD = self.query.to(x_NLD.dtype).expand(len(x_NLD), -1, -1)
        found = self.net(query_embeds=query_NQD, encoder_hidden_states=x_NLD)
        return Features(x_NLD=found.last_hidden_state, grid=None)
