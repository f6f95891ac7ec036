"""Random tiny Llava and LlavaNext folders as transformers writes them, and their own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from retinue.text.train import train_bpe

SIDE, PATCH = 28, 7
PINPOINTS = [[28, 56], [56, 28], [56, 56], [28, 84]]
LINES = ["USER: what colour is the circle? ASSISTANT: the circle is red"] * 4
PROMPTS = ["USER: <image>\nwhat colour? ASSISTANT:", "USER: is <image> the <image> red?"]
CLASSES = {
    "llava": (
        transformers.LlavaConfig,
        transformers.LlavaForConditionalGeneration,
        transformers.LlavaProcessor,
    ),
    "llava_next": (
        transformers.LlavaNextConfig,
        transformers.LlavaNextForConditionalGeneration,
        transformers.LlavaNextProcessor,
    ),
}


def noise(width: int, height: int) -> Image.Image:
    """A picture of random pixels, the same for the same size."""
    values = np.random.RandomState(width * 1000 + height).randint(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def pictures() -> list[Image.Image]:
    """One for the first of PROMPTS, two for the second."""
    return [noise(40, 70), noise(90, 31), noise(49, 49)]


def make(kind: str, *, text: Any = None, tokenizer: Any = None, **fields: Any) -> tuple[Any, Any]:
    """(model, processor) of transformers; weights spread widely so that answers differ."""
    tokenizer = tokenizer or train_bpe(LINES, vocab_size=330, specials=["<image>"]).hf()
    token = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=8,
    )
    text = text or LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=len(tokenizer) + 3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config_class, model_class, processor_class = CLASSES[kind]
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
    }
    extra: dict[str, Any] = {}
    if kind == "llava_next":
        extra["image_grid_pinpoints"] = PINPOINTS
        pixels: Any = LlavaNextImageProcessorPil(**sizes, **extra)
    else:
        pixels = CLIPImageProcessorPil(**sizes)
    config = config_class(
        vision_config=vision, text_config=text, image_token_index=token, **extra, **fields
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    strategy = fields.get("vision_feature_select_strategy", "default")
    processor = processor_class(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )
    return model, processor


def save(kind: str, folder: Path, **fields: Any) -> tuple[Any, Any]:
    """As `make`, written to a folder."""
    model, processor = make(kind, **fields)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def inputs(processor: Any) -> Any:
    """transformers' inputs for PROMPTS and pictures(), left-padded."""
    return processor(
        text=PROMPTS, images=pictures(), return_tensors="pt", padding=True, padding_side="left"
    )
