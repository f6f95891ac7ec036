"""The layout seam: views of an item -> its run of visual tokens.

Legend: T tokens of the run, D language-model width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny
from torch import nn

from retinue.core.spec import Spec
from retinue.model.layouts import LAYOUTS
from retinue.types import Features, Grid, TokenShape, VisualTokens


class LayoutSpec(Spec):
    kind: str

    @abstractmethod
    def num_tokens(self, grid: Grid, per_view: TokenShape) -> int:
        """Length of the run of one item."""


class Layout(nn.Module):
    """Base of all layouts; a layout may own vectors of LM width (newline, start, end)."""

    Spec: ClassVar[type[LayoutSpec]]

    def __init__(self, spec: Any, lm_width: int) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, views: Sequence[Features], grids: Sequence[Grid]) -> VisualTokens:
        """views[i]: (V_i, L_i, D) of item i -> flat tokens of all items, with lengths."""


LayoutField = Annotated[SerializeAsAny[LayoutSpec], BeforeValidator(LAYOUTS.spec_of)]
