"""Pictures and videos: fetching, decoding, resizing, and the policies that make views of one."""

from retinue.core.registry import Registry

VIEWS: Registry[type] = Registry(
    "view",
    {
        "single": "retinue.media.whole:Single",
        "stored": "retinue.media.stored:Stored",
        "pad": "retinue.media.whole:Pad",
        "squash": "retinue.media.whole:Squash",
        "quad": "retinue.media.quad:Quad",
        "nine": "retinue.media.quad:Nine",
        "accessory": "retinue.media.accessory:Accessory",
        "random_crop": "retinue.media.random_crop:RandomCrop",
        "centre_crop": "retinue.media.random_crop:CentreCrop",
        "anyres": "retinue.media.anyres:AnyRes",
    },
)

VIDEOS: Registry[type] = Registry(
    "video",
    {
        "frames": "retinue.media.frames:Frames",
        "collage": "retinue.media.frames:Collage",
    },
)
