"""Fusion table: how visual tokens meet the words."""

from retinue.core.registry import Registry

FUSIONS: Registry[type] = Registry(
    "fusion",
    {
        "splice": "retinue.model.fusions.splice:Splice",
        "expert": "retinue.model.fusions.expert:Expert",
        "prefix": "retinue.model.fusions.prefix:Prefix",
        "cross": "retinue.model.fusions.cross:Cross",
    },
)
