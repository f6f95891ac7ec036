"""`load_pretrained_model`: the original's loader over ours."""

from __future__ import annotations

from typing import Any

import torch

from retinue.compat.llava.model import LlavaModel
from retinue.compat.llava.pictures import ImageProcessor
from retinue.compat.llava.tokenizer import LlavaTokenizer
from retinue.core.errors import ConfigError
from retinue.core.log import once
from retinue.hub.load import load
from retinue.ops.backend import pick_device

CONTEXT = 2048
"""What the original takes for the length of a context where the config is silent."""


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "auto",
    use_flash_attn: bool = False,
    **unused: Any,
) -> tuple[LlavaTokenizer, LlavaModel, ImageProcessor, int]:
    """(tokenizer, model, image_processor, context_len) of a folder or hub id.

    model_base: what a LoRA or projector folder stands on; load_8bit, load_4bit: bitsandbytes'
    formats. fp16 on an accelerator, fp32 on the CPU. model_name, device_map, use_flash_attn are
    accepted without effect: contents decide, the model goes to `device`, attention is chosen by
    the machine. Raises CheckpointError, EnvError, and ConfigError for both formats at once.
    """
    if load_8bit and load_4bit:
        raise ConfigError("load_8bit and load_4bit together", rule="one of them at most")
    del model_name, device_map, use_flash_attn
    if unused:
        once(f"load_pretrained_model: without effect here: {', '.join(sorted(unused))}")
    chosen = pick_device(device.partition(":")[0])[0]
    model, processor = load(
        model_path,
        base=model_base,
        device=chosen,
        dtype=torch.float32 if str(chosen) == "cpu" else torch.float16,
        quant="bnb8" if load_8bit else "bnb4" if load_4bit else None,
    )
    wrapped = LlavaModel(model, processor)
    text = model.config.get_text_config()
    length = int(getattr(text, "max_sequence_length", None) or CONTEXT)
    return LlavaTokenizer(processor.tokenizer), wrapped, wrapped.image_processor, length
