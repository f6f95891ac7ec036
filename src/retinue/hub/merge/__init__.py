"""Several checkpoints of one architecture -> one: the table of methods."""

from retinue.core.registry import Registry

MERGERS: Registry[type] = Registry(
    "merger",
    {
        "linear": "retinue.hub.merge.plain:Linear",
        "slerp": "retinue.hub.merge.plain:Slerp",
        "task": "retinue.hub.merge.plain:Task",
        "ties": "retinue.hub.merge.sparse:Ties",
        "dare_linear": "retinue.hub.merge.sparse:DareLinear",
        "dare_ties": "retinue.hub.merge.sparse:DareTies",
    },
)
