"""A micro-batch's forward as a module: the root around which weights are gathered.

Every process must ask for the same weights in the same order, whatever its batch holds. One whose
micro-batch has no picture, while another's has one, encodes a black one that adds nothing.

Legend: B rows, T tokens, D language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retinue.types import Batch, Grid, Output, Visual, VisualTokens


class Computes(Protocol):
    """What is asked of an objective."""

    def __call__(self, model: Any, batch: Batch) -> Output: ...
    def look(self, model: Any, visual: Visual) -> VisualTokens: ...


class Step(nn.Module):
    """Runs an objective over a micro-batch, and notes which parameters its backward reached.

    gated: modules whose weights are whole only while they run. `reached`: names of parameters that
    have had a gradient of their own since it was last cleared.
    """

    def __init__(self, model: Any, *, gated: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.reached: set[str] = set()
        self._stand_in: Visual | None = None
        self._look: Any = None
        self._watched: set[int] = set()
        self._handles = [model.fusion.register_forward_pre_hook(self._before_fusion)]
        inside = {id(module) for one in gated for module in one.modules()}
        names = {id(one): name for name, one in model.named_modules()}
        for one in gated:
            self._handles.append(one.register_forward_pre_hook(self._watcher(names[id(one)])))
        self._rest = [
            (f"{path}.{leaf}" if path else leaf, module, leaf)
            for path, module in model.named_modules()
            if id(module) not in inside
            for leaf, _ in module.named_parameters(recurse=False)
        ]

    def forward(self, objective: Computes, batch: Batch, *, stand_in: Visual | None) -> Output:
        """The objective's output; stand_in: what is encoded for others' sake."""
        for name, module, leaf in self._rest:
            self._watch(name, getattr(module, leaf))
        self._stand_in, self._look = stand_in, objective.look
        try:
            return objective(self.model, batch)
        finally:
            self._stand_in = self._look = None

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _before_fusion(self, fusion: nn.Module, args: tuple[Any, ...]) -> Any:
        """Words join the stand-in's graph by a zero: (x_BTD, words, batch) -> the same."""
        if self._stand_in is None:
            return None
        x_BTD, *others = args
        seen = self._look(self.model, self._stand_in)
        return (x_BTD + nothing(seen).to(x_BTD.dtype), *others)

    def _watcher(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            for name, parameter in module.named_parameters():
                self._watch(f"{path}.{name}", parameter)

        return hook

    def _watch(self, name: str, parameter: Tensor) -> None:
        if not parameter.requires_grad or id(parameter) in self._watched:
            return
        self._watched.add(id(parameter))

        def arrived(_: Tensor) -> None:
            self.reached.add(name)

        parameter.register_post_accumulate_grad_hook(arrived)


def nothing(words: VisualTokens) -> Tensor:
    """Zero, with the graph of visual tokens behind it."""
    return torch.nan_to_num(words.x_TD.float()).sum() * 0.0


def stand_in(model: Any) -> Visual:
    """One black view in every stream, on the CPU, of which no token has a place."""
    pixels = {}
    for shape in model.plan.shapes.values():
        pixels[shape.stream] = torch.zeros((1, 3, *shape.size), dtype=torch.uint8)
    first = next(iter(model.plan.shapes.values()))
    return Visual(
        pixels=pixels,
        grids=[Grid(size=first.size)],
        budgets=[None],
        spans=torch.zeros((1, 3), dtype=torch.long),
        index=torch.zeros(0, dtype=torch.long),
    )
