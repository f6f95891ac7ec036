"""The table of measures: rows of one benchmark -> its figures, the headline first.

A measure sees rows with `score`, `scores`, `text`, `references` and `facts`, and is called again
on resampled rows for the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retinue.core.registry import Registry

Measure = Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]

MEASURES: Registry[Measure] = Registry(
    "measure",
    {
        "mean": "retinue.eval.measures.plain:average",
        "pope": "retinue.eval.measures.binary:pope",
        "mme": "retinue.eval.measures.binary:mme",
        "circular": "retinue.eval.measures.plain:circular",
        "against": "retinue.eval.measures.judged:against",
        "mmmu": "retinue.eval.measures.plain:domains",
        "tasks": "retinue.eval.measures.plain:tasks",
        "auc": "retinue.eval.measures.ranked:auc",
        "top5": "retinue.eval.measures.ranked:top5",
        "cider": "retinue.eval.measures.captions:cider",
    },
)
