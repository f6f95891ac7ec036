"""LLaVA's Python interface: the original's snippets run with only the import line changed.

    from retinue.compat.llava import eval_model, get_model_name_from_path, load_pretrained_model

Checkpoints are recognised by their contents; a model's name decides one thing only, the prompt of
`eval_model` without `conv_mode`. Reference: haotian-liu/LLaVA, mu-cai/matryoshka-mm.
"""

from retinue.compat.llava.conversation import Conversation, conv_templates
from retinue.compat.llava.loading import load_pretrained_model
from retinue.compat.llava.model import LlavaModel
from retinue.compat.llava.names import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
    conv_mode_of,
    get_model_name_from_path,
)
from retinue.compat.llava.pictures import ImageProcessor, process_images
from retinue.compat.llava.run import eval_model
from retinue.compat.llava.tokenizer import LlavaTokenizer, tokenizer_image_token

__all__ = [
    "DEFAULT_IMAGE_PATCH_TOKEN",
    "DEFAULT_IMAGE_TOKEN",
    "DEFAULT_IM_END_TOKEN",
    "DEFAULT_IM_START_TOKEN",
    "IGNORE_INDEX",
    "IMAGE_PLACEHOLDER",
    "IMAGE_TOKEN_INDEX",
    "Conversation",
    "ImageProcessor",
    "LlavaModel",
    "LlavaTokenizer",
    "conv_mode_of",
    "conv_templates",
    "eval_model",
    "get_model_name_from_path",
    "load_pretrained_model",
    "process_images",
    "tokenizer_image_token",
]
