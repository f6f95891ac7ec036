"""Convert a transformers LLaVA folder to retinue and to the original layout, and back.

    python examples/convert_llava.py work

Makes a tiny random LlavaForConditionalGeneration folder itself; a real one works the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import retinue
from retinue.hub.convert import convert
from retinue.text.train import train_bpe


def make_llava(folder: Path) -> None:
    """A random model as transformers saves it: CLIP, projector, Llama, processor."""
    lines = ["USER: What is this? ASSISTANT: a picture"]
    tokenizer = train_bpe(lines, vocab_size=300, specials=["<image>"]).hf()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    vision = CLIPVisionConfig(
        image_size=28,
        patch_size=7,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=token)
    )
    model.save_pretrained(folder)
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="Convert a LLaVA both ways.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/convert"))
    folder = parser.parse_args(arguments).folder
    source = folder / "hf"
    make_llava(source)

    chain = {"retinue": source, "llava": folder / "retinue", "hf": folder / "llava"}
    for target, start in chain.items():
        place = folder / ("hf-again" if target == "hf" else target)
        print(convert(start, place, to=target, template="vicuna_v1"))

    _, processor = retinue.load(folder / "retinue")
    picture = Image.linear_gradient("L").convert("RGB")
    inputs = processor(text="USER: <image>\nWhat is this? ASSISTANT:", images=picture)
    inputs.pop("image_grids")  # transformers' LLaVA has one view of each picture
    inputs["pixel_values"] = inputs["pixel_values"].flatten(0, 1)
    first, last = (
        AutoModelForImageTextToText.from_pretrained(place)(**inputs).logits
        for place in (source, folder / "hf-again")
    )
    difference = float((first - last).detach().abs().max())
    print(f"largest difference of the logits after three conversions: {difference}")
    return difference


if __name__ == "__main__":
    main()
