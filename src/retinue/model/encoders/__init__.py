"""Encoder table: one file per kind."""

from retinue.core.registry import Registry

ENCODERS: Registry[type] = Registry(
    "encoder",
    {
        "clip": "retinue.model.encoders.clip:Clip",
        "siglip": "retinue.model.encoders.siglip:Siglip",
        "dinov2": "retinue.model.encoders.dinov2:Dinov2",
        "eva2": "retinue.model.encoders.eva2:Eva2",
        "plain_vit": "retinue.model.encoders.plain_vit:PlainViT",
        "convnext": "retinue.model.encoders.convnext:ConvNext",
        "blip2": "retinue.model.encoders.blip2:Blip2",
        "patches": "retinue.model.encoders.patches:Patches",
    },
)
