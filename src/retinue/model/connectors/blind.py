"""No connector: a language model by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NoReturn

from retinue.core.errors import RequestError
from retinue.model.connectors.base import Connector, ConnectorSpec, EncoderFeatures
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class BlindSpec(ConnectorSpec):
    kind: Literal["blind"] = "blind"

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        refuse()

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return lm_width


class Blind(Connector):
    """No encoder, no pictures: our own, for checkpoints that hold a language model only."""

    Spec: ClassVar[type[ConnectorSpec]] = BlindSpec

    def encode(self, features: EncoderFeatures) -> Features:
        refuse()


def refuse() -> NoReturn:
    """Raise RequestError: this model sees nothing."""
    raise RequestError(
        "this model has no encoder",
        rule="it reads text only",
        fix="leave the picture out, or choose a model that sees",
    )
