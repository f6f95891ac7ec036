"""A tiny untrained model and its processor, pictures and samples, for tests of the verbs.

`tiny_model()` gives a model and its processor, `processor([ask("a", "what?", picture())])` a batch.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import LlamaConfig

from retinue.model.build import build_model
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.text.train import train_bpe
from retinue.types import Media, Message, Part, Sample, Text

LINES = [
    "USER: what colour is the circle? ASSISTANT: the circle is red, green or blue",
    "USER: how many shapes are there? ASSISTANT: one two three",
]
TEMPLATE = {"name": "vicuna_v1", "system": ""}
VIEWS = {"kind": "squash"}


def tiny_model(
    *,
    seed: int = 0,
    width: int = 32,
    layers: int = 2,
    image_in_vocab: bool = False,
    template: Any = None,
    views: Any = None,
    side: int = 32,
    **text: Any,
) -> tuple[Retinue, Processor]:
    """A Llama of two layers behind a patch encoder of (side / 8)^2 tokens, in eval mode, fp32.

    image_in_vocab: `<image>` is an id of the vocabulary, else the first one beyond it; text:
    further fields of LlamaConfig.
    """
    specials = ["<image>"] if image_in_vocab else []
    tokenizer = train_bpe(LINES, vocab_size=320, specials=specials)
    fields = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "initializer_range": 0.2,  # answers that differ from step to step
        **text,
    }
    config = RetinueConfig(
        LlamaConfig(**fields),
        {"eye": PatchesConfig(hidden_size=width, image_size=side)},
        {
            "encoders": {"eye": {"kind": "patches"}},
            "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
            "image_token_id": tokenizer.image_id,
        },
    )
    spec = ProcessorSpec.parse(
        {
            "views": views or VIEWS,
            "streams": {"rgb": {"size": side, "mean": [0.5] * 3, "std": [0.5] * 3}},
            "template": template or TEMPLATE,
        }
    )
    processor = Processor(Plan(config), tokenizer=tokenizer, spec=spec)
    return build_model(config, seed=seed).eval(), processor


def picture(seed: int = 0, *, width: int = 40, height: int = 30) -> Image.Image:
    """One colour and a bar of another."""
    image = Image.new("RGB", (width, height), ((seed * 71) % 256, (seed * 37) % 256, 200))
    image.paste(((seed * 13) % 256, 90, 30), (seed % 7, 3, seed % 7 + 12, 14))
    return image


def ask(id: str, question: str, *images: Any, answer: str | None = None) -> Sample:
    """One question about any number of pictures, answered or not."""
    parts: list[Part] = [Media(source=image) for image in images]
    parts.append(Text(text="\n" * bool(images) + question))
    messages = [Message(role="user", parts=tuple(parts))]
    if answer is not None:
        messages.append(Message(role="assistant", parts=(Text(text=answer),)))
    return Sample(id=id, messages=tuple(messages))
