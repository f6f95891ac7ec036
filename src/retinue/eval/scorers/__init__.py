"""The table of scorers: `(prediction, references) -> {metric: value}`, the headline metric first.

References are answers that each count as right; the best one decides. Values lie in 0..1.
"""

from __future__ import annotations

from retinue.core.registry import Registry
from retinue.eval.scorers.base import Scorer, headline

__all__ = ["SCORERS", "Scorer", "headline"]

SCORERS: Registry[Scorer] = Registry(
    "scorer",
    {
        "exact": "retinue.eval.scorers.words:exact",
        "contains": "retinue.eval.scorers.words:contains",
        "text": "retinue.eval.scorers.words:text",
        "caption": "retinue.eval.scorers.words:caption",
        "number": "retinue.eval.scorers.number:number",
        "choice": "retinue.eval.scorers.choice:choice",
        "iou": "retinue.eval.scorers.regions:iou",
        "iou50": "retinue.eval.scorers.regions:iou50",
        "det": "retinue.eval.scorers.regions:det",
        "grounded": "retinue.eval.scorers.regions:grounded",
        "oks": "retinue.eval.scorers.pose:oks",
        "gaokao": "retinue.eval.scorers.gaokao:gaokao",
        "gaokao-several": "retinue.eval.scorers.gaokao:gaokao_several",
        "vqa": "retinue.eval.scorers.vqa:vqa",
        "textvqa": "retinue.eval.scorers.vqa:textvqa",
        "gqa": "retinue.eval.scorers.short:gqa",
        "letter": "retinue.eval.scorers.short:letter",
        "scienceqa": "retinue.eval.scorers.short:scienceqa",
        "pope": "retinue.eval.scorers.short:pope",
        "mme": "retinue.eval.scorers.short:mme",
        "exact-nodot": "retinue.eval.scorers.short:exact_nodot",
        "relaxed": "retinue.eval.scorers.short:relaxed",
        "igvlm": "retinue.eval.scorers.choice:igvlm",
        "anls": "retinue.eval.scorers.short:anls",
        "mmmu": "retinue.eval.scorers.mmmu:mmmu",
        "rouge-l": "retinue.eval.scorers.rouge:rouge_l",
        "relations": "retinue.eval.scorers.relations:relations",
    },
)
