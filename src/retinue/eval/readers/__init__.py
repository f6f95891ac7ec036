"""The table of readers: one for each way in which benchmarks publish their files."""

from __future__ import annotations

from retinue.core.registry import Registry
from retinue.eval.readers.base import Item, Reader

__all__ = ["READERS", "Item", "Reader"]

READERS: Registry[type[Reader]] = Registry(
    "reader",
    {
        "rows": "retinue.eval.readers.rows:Rows",
        "vqa": "retinue.eval.readers.vqa:Vqa",
        "textvqa": "retinue.eval.readers.vqa:TextVqa",
        "scienceqa": "retinue.eval.readers.science:ScienceQa",
        "pope": "retinue.eval.readers.pope:Pope",
        "mme": "retinue.eval.readers.mme:Mme",
        "seed": "retinue.eval.readers.seed:Seed",
        "ai2d": "retinue.eval.readers.documents:Ai2d",
        "ocrvqa": "retinue.eval.readers.documents:OcrVqa",
        "refer": "retinue.eval.readers.refer:Refer",
        "llava-bench": "retinue.eval.readers.wild:Wild",
        "gaokao": "retinue.eval.readers.gaokao:Gaokao",
        "mmmu": "retinue.eval.readers.mmmu:Mmmu",
        "imagenet": "retinue.eval.readers.imagenet:ImageNet",
        "chat": "retinue.eval.readers.world:ChatRows",
    },
)
