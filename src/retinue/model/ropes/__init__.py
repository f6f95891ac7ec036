"""Rope table: what the length of a sequence does to dynamic NTK scaling."""

from retinue.core.registry import Registry

ROPES: Registry[type] = Registry(
    "rope",
    {
        "sequence": "retinue.model.ropes.sequence:SequenceRope",
        "sticky": "retinue.model.ropes.sticky:StickyRope",
    },
)
