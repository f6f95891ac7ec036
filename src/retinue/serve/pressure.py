"""Fewer visual tokens for those who allow it, while many wait: everyone is answered sooner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from retinue.core.spec import Spec


class Pressure(Spec):
    """When budgets of visual tokens shrink, how far, and whose.

    who: nobody; asked: requests that say `visual_tokens_min`; everyone: also those that say nothing
    of visual tokens. start, full: calls waiting at which budgets begin to shrink, and at which they
    are at their smallest. floor: visual tokens per view that no request goes below.
    """

    who: Literal["nobody", "asked", "everyone"] = "asked"
    start: int = Field(default=4, ge=0)
    full: int = Field(default=32, ge=1)
    floor: int = Field(default=1, ge=1)

    def budget(
        self,
        waiting: int,
        *,
        wanted: int | None,
        least: int | None,
        budgets: Sequence[int],
        usual: int,
    ) -> int | None:
        """Visual tokens per view for a request; `wanted` itself where nothing is to change.

        waiting: calls that are not computed yet; wanted: what it asks for, None: the model's
        `usual`; least: what it can do with, None: it does not say; budgets: those of the model.
        Between `start` and `full` the limit falls geometrically, as costs and accuracies do.
        """
        may = self.who != "nobody" and least is not None
        may = may or (self.who == "everyone" and wanted is None)
        if not may or waiting <= self.start:
            return wanted
        top = usual if wanted is None else wanted
        bottom = max(self.floor, least or 1)
        share = min((waiting - self.start) / max(self.full - self.start, 1), 1.0)
        limit = top * (bottom / top) ** share if bottom < top else top
        fit = [budget for budget in budgets if bottom <= budget <= top]
        if not fit:
            return wanted
        return max((budget for budget in fit if budget <= limit + 1e-9), default=min(fit))
