"""Prompts that are rendered already, answered by transformers' `generate`: beams and all.

The engine and the decoding loop choose one id after the other; whatever looks at several answers
at once goes this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from retinue.decode.prompt import end_ids
from retinue.decode.sampling import SamplingParams
from retinue.ops.pixels import normalize
from retinue.processor import Processor
from retinue.processor_hf import hf_inputs
from retinue.types import Batch, Media

if TYPE_CHECKING:
    from retinue.model.retinue import Retinue

TIDY = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")
"""What the tokenizers of 2023 closed up when they decoded; also blanks around a quote."""

BLACK = (224, 224)


def inputs_of(processor: Processor, prompt: str, images: Sequence[Any]) -> dict[str, Tensor]:
    """A prompt with `<image>` marks as inputs of `generate`; images: paths or pictures.

    Where `<image>` is a word of the vocabulary the prompt is tokenized whole. A model whose marks
    may outnumber its pictures (`counting: ids`) sees a black one where there is none at all, as
    the original does. Raises MediaError, RequestError.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.image_in_text:
        example = processor.prompt_example("prompt", prompt, images)
        return dict(hf_inputs(processor, processor.collate([example], pad_side="left")))
    ids = torch.tensor([tokenizer.call(prompt)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    marked = bool((ids == processor.image_id).any())
    if marked and not images and processor.plan.spec.fusion.surplus_marks:
        images = [Image.new("RGB", BLACK)]
    if images:
        stream = processor.spec.streams["rgb"]
        items = [processor.item(Media(source=one), where=f"{one!s:.200}") for one in images]
        pixels = torch.cat([item.pixels["rgb"] for item in items])
        inputs["pixel_values"] = normalize(
            pixels, mean=stream.mean, std=stream.std, dtype=torch.float32
        )
    return inputs


@torch.inference_mode()
def rendered_ids(
    model: Retinue, processor: Processor, prompt: str, images: Sequence[Any], **options: Any
) -> Tensor:
    """(T,) ids of one prompt and its answer, which the tokenizer's end id ends."""
    inputs = inputs_of(processor, prompt, images)
    eos = processor.tokenizer.eos_id
    out: Tensor = model.generate(
        **{name: value.to(model.device) for name, value in inputs.items()},
        eos_token_id=eos,
        pad_token_id=eos,
        **options,
    )
    return out[0]


def tidy(text: str) -> str:
    """Decoded text as those tokenizers gave it, punctuation closed up."""
    for piece in TIDY:
        text = text.replace(piece, piece[1:])
        if piece == " ,":
            text = text.replace(" ' ", "'")
    return text


@torch.inference_mode()
def search(
    model: Retinue, processor: Processor, batch: Batch, *, params: SamplingParams
) -> list[list[int]]:
    """Ids of each row's best answer, its end id included, as `generate` finds them with beams.

    batch: left-padded prompts. With a temperature beams are drawn from a stream of `params.seed`.
    """
    inputs = hf_inputs(processor, batch)
    ends = end_ids(processor)
    options: dict[str, Any] = {
        "num_beams": params.num_beams,
        "length_penalty": params.length_penalty,
        "max_new_tokens": params.max_new_tokens,
        "do_sample": params.temperature > 0,
        "eos_token_id": None if params.ignore_eos or not ends else ends,
        "pad_token_id": processor.tokenizer.pad_id,
    }
    if params.temperature > 0:
        options |= {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p or None,
        }
    if params.no_repeat_ngram_size:
        options["no_repeat_ngram_size"] = params.no_repeat_ngram_size
    if params.repetition_penalty != 1.0:
        options["repetition_penalty"] = params.repetition_penalty
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(params.seed)
        out = model.generate(
            **{name: value.to(model.device) for name, value in inputs.items()}, **options
        )
    rows: list[list[int]] = out[:, batch.tokens.shape[1] :].tolist()
    stops = set() if params.ignore_eos else set(ends)
    return [row[: next((n + 1 for n, id in enumerate(row) if id in stops), None)] for row in rows]
