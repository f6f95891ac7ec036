"""What nodes with several operands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import nn

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import Connector, ConnectorField, ConnectorSpec, build
from retinue.model.encoders.base import EncoderShape
from retinue.types import TokenShape


class PartsSpec(ConnectorSpec):
    parts: list[ConnectorField] = Field(min_length=1)

    @property
    def children(self) -> Sequence[ConnectorSpec]:
        return self.parts

    def shapes_below(self, shapes: Mapping[str, EncoderShape]) -> list[TokenShape]:
        return [part.num_tokens(shapes, None) for part in self.parts]

    def refuse(self, budget: int | None, length: int) -> None:
        """Raise unless the budget is absent or just what the node gives."""
        if budget is not None and budget != length:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this {self.kind!r} connector always gives {length}",
                fix="drop the budget, or wrap the connector in kind: elastic",
            )


class Parts(Connector):
    """Base of nodes with several operands, kept in the list `parts`."""

    parts: nn.ModuleList

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        self.parts = nn.ModuleList(build(part, shapes, lm_width) for part in spec.parts)
