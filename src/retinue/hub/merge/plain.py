"""Methods that keep every number: weighted sums, a walk along the sphere, task vectors.

Legend: T one tensor of any shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import FiniteFloat
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.hub.merge.base import Merger, Part

NEARLY_ONE_LINE = 0.9995
"""Cosine beyond which an arc is as good as its chord, and the sine in the formula too small."""


class Linear(Merger):
    """Weighted sum, weights brought to the sum 1 unless normalize is false (SPHINX's domain mix).

    Source: SPHINX (arXiv 2311.07575), section 3.1; model soups (arXiv 2203.05482).
    """

    kind: Literal["linear"] = "linear"
    normalize: bool = True

    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        total = sum(part.weight for part in parts)
        if self.normalize and abs(total) < 1e-12:
            raise ConfigError(
                f"the weights {[part.weight for part in parts]} sum to 0",
                rule="linear divides by the sum of the weights",
                fix="change one, or set normalize: false",
            )
        scale = 1 / total if self.normalize else 1.0
        # Differences to the heaviest part: what is equal in all parts comes out bit for bit.
        heaviest = max(parts, key=lambda part: abs(part.weight))
        out_T = heaviest.x_T * (total * scale) if not self.normalize else heaviest.x_T.clone()
        for part in parts:
            if part is not heaviest:
                out_T.add_(part.x_T - heaviest.x_T, alpha=part.weight * scale)
        return out_T


class Slerp(Merger):
    """Two checkpoints, along the arc between them: the second one's share of the weights is t.

    sin((1-t)w)/sin w * a + sin(t w)/sin w * b with w the angle between both tensors, each taken as
    one vector; a straight line where they point the same way, opposite ways, or are zero.
    Source: Shoemake 1985, Animating Rotation with Quaternion Curves, section 3.3.
    """

    kind: Literal["slerp"] = "slerp"
    exactly: ClassVar[int | None] = 2

    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        if len(parts) == 1:
            return parts[0].x_T.clone()
        first, second = parts
        if min(first.weight, second.weight) < 0:
            raise ConfigError("a negative weight", rule="slerp goes from one model to the other")
        t = second.weight / (first.weight + second.weight)
        a_T, b_T = first.x_T, second.x_T
        norm = torch.linalg.vector_norm
        lengths = norm(a_T, dtype=torch.float64) * norm(b_T, dtype=torch.float64)
        dot = (a_T * b_T).sum(dtype=torch.float64)
        cosine = float(dot / lengths) if lengths > 0 else 1.0
        if abs(cosine) > NEARLY_ONE_LINE:
            return torch.lerp(a_T, b_T, t)
        angle = torch.tensor(cosine, dtype=torch.float64).acos()
        left, right = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
        return a_T * float(left) + b_T * float(right)


class Task(Merger):
    """Task arithmetic: the base plus the weighted sum of what each checkpoint learnt since then.

    A negative weight unlearns. scale: of the sum. Source: arXiv 2212.04089.
    """

    kind: Literal["task"] = "task"
    needs_base: ClassVar[bool] = True
    scale: FiniteFloat = 1.0

    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        assert base_T is not None
        out_T = base_T.clone()
        for part in parts:
            out_T.add_(part.x_T - base_T, alpha=part.weight * self.scale)
        return out_T
