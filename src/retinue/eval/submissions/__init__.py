"""The table of submissions: answers -> the file that a benchmark's server or script takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retinue.core.registry import Registry

Submit = Callable[[Sequence[Mapping[str, Any]]], bytes]
"""rows {id, text, facts} of every question in order (text: None if unanswered) -> the file."""

SUBMISSIONS: Registry[Submit] = Registry(
    "submission",
    {
        "vqa": "retinue.eval.submissions.lists:vqa",
        "vizwiz": "retinue.eval.submissions.lists:vizwiz",
        "gqa": "retinue.eval.submissions.lists:gqa",
        "seed": "retinue.eval.submissions.lists:seed",
        "mmvet": "retinue.eval.submissions.lists:mmvet",
        "mmbench": "retinue.eval.submissions.sheet:mmbench",
    },
)
