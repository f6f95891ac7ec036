"""Target table: which formats `convert` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retinue.core.registry import Registry

if TYPE_CHECKING:
    from retinue.hub.targets.base import Target

TARGETS: Registry[type[Target]] = Registry(
    "target",
    {
        "retinue": "retinue.hub.targets.retinue:ToRetinue",
        "llava": "retinue.hub.targets.llava:ToLlava",
        "llava_moss2": "retinue.hub.targets.llava:ToLlavaMoss2",
        "moss2": "retinue.hub.targets.moss2:ToMoss2",
        "hf": "retinue.hub.targets.hf:ToHf",
        "vllm": "retinue.hub.targets.vllm:ToVllm",
        "mm_simple": "retinue.hub.targets.modelzoo:ToMmSimple",
        "hf-pair": "retinue.hub.targets.modelzoo:ToPair",
        "sphinx": "retinue.hub.targets.sphinx:ToSphinx",
        "flamingo": "retinue.hub.targets.flamingo:ToFlamingo",
    },
)
