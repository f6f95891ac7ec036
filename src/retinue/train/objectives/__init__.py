"""Objective table: what a forward of training computes from model and batch."""

from retinue.core.registry import Registry

OBJECTIVES: Registry[type] = Registry(
    "objective",
    {
        "elastic": "retinue.train.objectives.elastic:Elastic",
        "moe": "retinue.train.objectives.moe:Moe",
        "sft": "retinue.train.objectives.sft:Sft",
    },
)
