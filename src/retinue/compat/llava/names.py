"""The original's constants, and what it concludes from the name of a model."""

from __future__ import annotations

from retinue.text.names import model_name

IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200
DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"

RULES = (
    ("llama-2", "llava_llama_2"),
    ("mistral", "mistral_instruct"),
    ("v1.6-34b", "chatml_direct"),
    ("v1", "llava_v1"),
    ("mpt", "mpt"),
)
"""Part of a name -> conversation; the first that is found counts."""
OTHERWISE = "llava_v0"


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path, with its parent's where it is a `checkpoint-*`."""
    return model_name(model_path)


def conv_mode_of(name: str) -> str:
    """The conversation that the original takes for a model of this name when none is asked for.

    A name without a known part gives `llava_v0`, also where the model was trained otherwise
    (`llava-next-vicuna-7b-m3` is one): pass conv_mode="vicuna_v1" for such.
    """
    return next((mode for part, mode in RULES if part in name.lower()), OTHERWISE)
