"""Connector table: an expression tree of nodes, from encoder features to language-model width."""

from retinue.core.registry import Registry

CONNECTORS: Registry[type] = Registry(
    "connector",
    {
        "take": "retinue.model.connectors.take:Take",
        "identity": "retinue.model.connectors.identity:Identity",
        "linear": "retinue.model.connectors.linear:Linear",
        "mlp": "retinue.model.connectors.mlp:Mlp",
        "channel": "retinue.model.connectors.channel:Channel",
        "sequence": "retinue.model.connectors.sequence:Sequence",
        "glu": "retinue.model.connectors.glu:Glu",
        "drop": "retinue.model.connectors.drop:Drop",
        "pool": "retinue.model.connectors.pool:Pool",
        "qformer": "retinue.model.connectors.qformer:QFormer",
        "regrid": "retinue.model.connectors.regrid:Regrid",
        "pyramid": "retinue.model.connectors.pyramid:Pyramid",
        "blind": "retinue.model.connectors.blind:Blind",
        "perceiver": "retinue.model.connectors.perceiver:Perceiver",
        "abstractor": "retinue.model.connectors.abstractor:Abstractor",
        "elastic": "retinue.model.connectors.elastic:Elastic",
    },
)
