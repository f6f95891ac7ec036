"""What differed: per group of parameters, how far each checkpoint is from the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def group_of(name: str) -> str:
    """`connector` of `connector.net.0.weight`; encoders apart; LM: `embed`, `layers`, `head`, …"""
    parts = name.split(".")
    if parts[0] == "encoders":
        return ".".join(parts[:2])
    if parts[0] == "lm":
        words = [part for part in parts[1:] if part not in ("model", "weight", "bias")]
        return ".".join(["lm", *words[:1]])
    return parts[0]


@dataclass(slots=True)
class Group:
    """Running sums over one group; one entry per checkpoint, the result last."""

    tensors: int = 0
    size: int = 0
    length: float = 0.0
    squares: list[float] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)


class Distances:
    """Distances to the first checkpoint (the base, if there is one), summed over a merge."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.groups: dict[str, Group] = {}

    def add(self, name: str, first_T: Tensor, others: Sequence[Tensor | None]) -> None:
        """Count one tensor in. others: one per label, None where a checkpoint has no part in it."""
        group = self.groups.setdefault(group_of(name), Group())
        if not group.squares:
            group.squares, group.changed = [0.0] * len(self.labels), [0] * len(self.labels)
        group.tensors += 1
        group.size += first_T.numel()
        group.length += square(first_T)
        for place, other_T in enumerate(others):
            if other_T is not None:
                apart = square(other_T - first_T)
                group.squares[place] += apart
                group.changed[place] += apart > 0

    def relative(self, group: str) -> dict[str, float]:
        """Label -> length of the difference over the length of the first, of one group."""
        found = self.groups[group]
        return {
            label: (apart / found.length) ** 0.5 if found.length else float(apart > 0)
            for label, apart in zip(self.labels, found.squares, strict=True)
        }


def square(x_T: Tensor) -> float:
    """Sum of squares in float64."""
    return float(torch.linalg.vector_norm(x_T, dtype=torch.float64)) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What was merged and how far apart it was.

    first: label of the checkpoint that distances are taken to; groups: one per part of the model
    with tensors, numbers, and per checkpoint `distance` (relative) and `changed` (tensors); folder:
    None where nothing was written.
    """

    method: str
    first: str
    folder: Path | None
    groups: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        distances: Distances, *, method: str, first: str, folder: Path | None, notes: list[str]
    ) -> MergeReport:
        """The report of a finished merge."""
        groups = {
            name: {
                "tensors": group.tensors,
                "numbers": group.size,
                "distance": distances.relative(name),
                "changed": dict(zip(distances.labels, group.changed, strict=True)),
            }
            for name, group in distances.groups.items()
        }
        return MergeReport(method=method, first=first, folder=folder, groups=groups, notes=notes)

    @property
    def header(self) -> list[str]:
        """Column names of `rows`."""
        labels = next(iter(self.groups.values()))["distance"] if self.groups else {}
        return ["group", "tensors", "numbers", *labels]

    @property
    def rows(self) -> list[list[Any]]:
        """One row per group: sizes, then the relative distance of each checkpoint."""
        return [
            [name, group["tensors"], group["numbers"], *group["distance"].values()]
            for name, group in self.groups.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as provenance.json keeps it."""
        return {
            "method": self.method,
            "distances_to": self.first,
            "groups": self.groups,
            "notes": self.notes,
        }
