"""The table of submissions: answers -> the file that a benchmark's server or script takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retinue.core.registry import Registry

Submit = Callable[[Sequence[Mapping[str, Any]]], bytes]
"""rows {id, text, fields, ranking} of every question in order -> the file.

text: None if unanswered; fields: as published; ranking: name -> score, where names were ranked.
"""

SUBMISSIONS: Registry[Submit] = Registry(
    "submission",
    {
        "vqa": "retinue.eval.submissions.lists:vqa",
        "vizwiz": "retinue.eval.submissions.lists:vizwiz",
        "gqa": "retinue.eval.submissions.lists:gqa",
        "seed": "retinue.eval.submissions.lists:seed",
        "mmvet": "retinue.eval.submissions.lists:mmvet",
        "mmmu": "retinue.eval.submissions.lists:mmmu",
        "docvqa": "retinue.eval.submissions.lists:docvqa",
        "captions": "retinue.eval.submissions.lists:captions",
        "hateful-memes": "retinue.eval.submissions.lists:hateful_memes",
        "mmbench": "retinue.eval.submissions.sheet:mmbench",
    },
)
