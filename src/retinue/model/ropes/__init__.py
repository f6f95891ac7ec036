"""Rope table: what the length of a sequence does to dynamic NTK scaling."""

from retinue.core.registry import Registry

ROPES: Registry[type] = Registry(
    "rope",
    {
        "sequence": "retinue.model.ropes.sequence:SequenceRope",
        "rounded": "retinue.model.ropes.rounded:RoundedRope",
        "sticky": "retinue.model.ropes.sticky:StickyRope",
    },
)
