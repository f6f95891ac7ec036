"""Muon for the matrices of numbered layers, AdamW for everything else, behind one optimizer.

Source: Jordan et al. 2024 (Muon), Liu et al. 2025 (arXiv 2502.16982: the step size of AdamW).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim._muon import _adjust_lr

from retinue.parallel.tensor_split import like, whole

MOMENTUM = 0.95
NUMBERED = re.compile(r"\.\d+\.")


def with_muon(groups: Sequence[Mapping[str, Any]], **adamw: Any) -> Optimizer:
    """An optimizer over groups that carry `params` and `names`; keywords are AdamW's."""
    hidden: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for group in groups:
        for part, wanted in ((hidden, True), (rest, False)):
            kept = [
                (name, parameter)
                for name, parameter in zip(group["names"], group["params"], strict=True)
                if hidden_matrix(name, parameter) == wanted
            ]
            part.append({**group, "names": [n for n, _ in kept], "params": [p for _, p in kept]})
    parts: list[Optimizer] = [torch.optim.AdamW(rest, fused=True, **adamw)]
    filled = [group for group in hidden if group["params"]]
    if filled:
        muon = GatheredMuon(
            filled, lr=adamw["lr"], momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        parts.append(muon)
    return Together(parts)


class GatheredMuon(torch.optim.Muon):
    """Muon also for matrices that processes share: each step is made from the whole matrix.

    The iteration runs on the gathered matrix in every process, one matrix at a time, so that the
    step is the one that a single process makes; momentum stays divided. Matrices that are not
    shared go through it together with all others of their shape: the same bits in half the time.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no closure"
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.Tensor]] = {}
            for matrix in group["params"]:
                if isinstance(matrix.grad, DTensor):
                    turn = orthogonal(whole(self.ahead(matrix, group))[None], group)[0]
                    self.move([matrix], [like(turn.to(matrix.dtype), matrix)], group)
                elif matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for matrices in alike.values():
                ahead = torch.stack([self.ahead(matrix, group) for matrix in matrices])
                self.move(matrices, orthogonal(ahead, group).unbind(), group)

    def ahead(self, matrix: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor:
        """The direction before it is made orthogonal; its momentum goes on."""
        assert matrix.grad is not None
        state, momentum = self.state[matrix], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        mean: torch.Tensor = state["momentum_buffer"]
        mean.lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum) if group["nesterov"] else mean

    def move(
        self,
        matrices: Sequence[torch.Tensor],
        turns: Sequence[torch.Tensor],
        group: Mapping[str, Any],
    ) -> None:
        """One step of matrices of one shape."""
        size = _adjust_lr(group["lr"], group["adjust_lr_fn"], matrices[0].shape)
        for matrix, turn in zip(matrices, turns, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(turn, alpha=-size)


def orthogonal(x_NRC: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor:
    """The matrices nearest to orthogonal, by Newton and Schulz's iteration in bfloat16 (N, R, C).

    The same products as torch.optim.Muon's, many matrices at once.
    """
    a, b, c = group["ns_coefficients"]
    x = x_NRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
    for _ in range(group["ns_steps"]):
        square = torch.bmm(x, x.transpose(1, 2))
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return x.transpose(1, 2) if tall else x


def hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix inside a numbered layer; adapters' factors are not."""
    return parameter.dim() == 2 and bool(NUMBERED.search(name)) and ".lora_" not in name


class Together(Optimizer):
    """Several optimizers as one; their groups, in order, are its groups."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no closure"
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State by the parameter's place among all groups."""
        state: dict[int, Any] = {}
        groups: list[Any] = []
        for part in self.parts:
            own, first = part.state_dict(), sum(len(group["params"]) for group in groups)
            state |= {first + place: value for place, value in own["state"].items()}
            for group in own["param_groups"]:
                groups.append({**group, "params": [first + i for i in group["params"]]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What `state_dict` gave, each part its share."""
        groups, first = list(state_dict["param_groups"]), 0
        for part in self.parts:
            own = [groups.pop(0) for _ in part.param_groups]
            count = sum(len(group["params"]) for group in own)
            places = range(first, first + count)
            state = state_dict["state"]
            part.load_state_dict(
                {
                    "state": {i - first: state[i] for i in places if i in state},
                    "param_groups": [
                        {**group, "params": [i - first for i in group["params"]]} for group in own
                    ],
                }
            )
            first += count
