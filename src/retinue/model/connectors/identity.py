"""No projection: features already have the language model's width."""

from __future__ import annotations

from typing import ClassVar, Literal

from retinue.model.connectors.base import ConnectorSpec
from retinue.model.connectors.unary import Unary, UnarySpec


class IdentitySpec(UnarySpec):
    kind: Literal["identity"] = "identity"


class Identity(Unary):
    """Its operand unchanged (LLaVA's projector type `identity`, haotian-liu/LLaVA)."""

    Spec: ClassVar[type[ConnectorSpec]] = IdentitySpec
