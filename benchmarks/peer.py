"""The peer and our model with the same weights, and samples whose lengths follow LLaVA's data.

Dims S: ViT 384 x 12 layers at 336 px / 14, language model 512 x 12 layers, 8 heads, vocabulary
32000, untied. XS: 4 layers, ViT 6 layers at 224 px. 7b: the shapes of LLaVA-1.5-7B.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import common  # noqa: F401  (pins the threads before torch is imported)
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from retinue.convert.hf import hf_keys
from retinue.model.build import build_model
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.ops.collate import collate
from retinue.ops.pixels import normalize
from retinue.types import IGNORE, Batch, Example, Grid, Item, Span


@dataclass(frozen=True, kw_only=True)
class Dims:
    """Sizes of one pair of models; side in pixels."""

    width: int = 512
    layers: int = 12
    heads: int = 8
    inner: int = 1376
    vocab: int = 32000
    eye_width: int = 384
    eye_layers: int = 12
    eye_heads: int = 6
    side: int = 336
    patch: int = 14

    @property
    def image_tokens(self) -> int:
        return (self.side // self.patch) ** 2

    @property
    def image_id(self) -> int:
        """The last id of the vocabulary stands for pictures."""
        return self.vocab - 1


DIMS = {
    "s": Dims(),
    "xs": Dims(layers=4, eye_layers=6, side=224),
    "7b": Dims(
        width=4096,
        layers=32,
        heads=32,
        inner=11008,
        vocab=32064,
        eye_width=1024,
        eye_layers=24,
        eye_heads=16,
    ),
}


def text_config(dims: Dims) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=dims.vocab,
        hidden_size=dims.width,
        intermediate_size=dims.inner,
        num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads,
        num_key_value_heads=dims.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=0,
    )


def vision_config(dims: Dims) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=dims.eye_width,
        intermediate_size=4 * dims.eye_width,
        num_hidden_layers=dims.eye_layers,
        num_attention_heads=dims.eye_heads,
        image_size=dims.side,
        patch_size=dims.patch,
        projection_dim=dims.eye_width,
    )


def make_peer(
    dims: Dims, *, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> LlavaForConditionalGeneration:
    """transformers' model with seeded random weights, its vision tower frozen."""
    config = LlavaConfig(
        vision_config=vision_config(dims),
        text_config=text_config(dims),
        image_token_index=dims.image_id,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.requires_grad_(False)
    return model.to(device=device, dtype=dtype)


def our_config(dims: Dims) -> RetinueConfig:
    take = {"kind": "take", "encoder": "clip", "layer": -2, "prefix": False}
    spec = {
        "encoders": {"clip": {"kind": "clip"}},
        "connector": {"kind": "mlp", "depth": 2, "of": take},
        "layout": {"kind": "plain"},
        "fusion": {"kind": "splice"},
        "image_token_id": dims.image_id,
    }
    encoders = {"clip": vision_config(dims)}
    return RetinueConfig(text_config=text_config(dims), encoders=encoders, spec=spec)


def twin_of(peer: LlavaForConditionalGeneration, dims: Dims, *, share: bool = False) -> Retinue:
    """Our model with the peer's state dict; every key must find its place.

    share: the tensors themselves instead of copies, where there is no room for two models.
    """
    keys = hf_keys(text_config(dims))
    state = {keys.to_retinue(name): tensor for name, tensor in peer.state_dict().items()}
    assert None not in state, "a key of the peer has no name of ours"
    first = next(peer.parameters())
    if share:
        model = build_model(our_config(dims), dtype=first.dtype, device="meta")
        model.load_state_dict(state, assign=True)
        for name, buffer in fresh_buffers(dims, device=first.device).items():
            module, _, leaf = name.rpartition(".")
            model.get_submodule(module).register_buffer(leaf, buffer, persistent=False)
    else:
        model = build_model(our_config(dims), dtype=first.dtype, device=first.device)
        model.load_state_dict(state)
    model.encoders.requires_grad_(False)
    return model


def fresh_buffers(dims: Dims, *, device: torch.device) -> dict[str, Tensor]:
    """Buffers that state dicts leave out, from a model whose weights are of the smallest depth."""
    small = Dims(**{**vars(dims), "layers": 1, "eye_layers": 2})
    model = build_model(our_config(small))
    saved = set(model.state_dict())
    return {name: b.to(device) for name, b in model.named_buffers() if name not in saved}


# ---------------------------------------------------------------- samples


def samples(number: int, dims: Dims, *, seed: int) -> list[Example]:
    """94 % one picture + text (lognormal, mean 200, sigma 0.75), 6 % text (mean 700, sigma 0.8).

    45 % of the text, its end, is supervised.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    made = []
    for place in range(number):
        with_image = rng.random() < 0.94
        mean, sigma = (200, 0.75) if with_image else (700, 0.8)
        drawn = rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
        length = min(max(int(drawn), 16), 1400)
        made.append(sample(f"{seed}-{place}", length, dims, generator, with_image=with_image))
    return made


def sample(
    name: str, length: int, dims: Dims, generator: torch.Generator, *, with_image: bool
) -> Example:
    """`length` random text tokens, the picture (if any) before the last but eight of them."""
    text = torch.randint(3, dims.vocab - 1, (length,), generator=generator).tolist()
    trained = max(1, int(0.45 * length))
    before = 4 if with_image else 0
    run = dims.image_tokens if with_image else 0
    tokens = [*text[:before], *[dims.image_id] * run, *text[before:]]
    labels = [IGNORE] * (len(tokens) - trained) + tokens[len(tokens) - trained :]
    if not with_image:
        return Example(id=name, tokens=tokens, labels=labels)
    pixels = torch.randint(
        256, (1, 3, dims.side, dims.side), generator=generator, dtype=torch.uint8
    )
    item = Item(pixels={"rgb": pixels}, grid=Grid(size=(dims.side, dims.side)), num_tokens=run)
    span = Span(start=before, length=run, item=0)
    return Example(id=name, tokens=tokens, labels=labels, spans=[span], items=[item])


def packed(examples: Sequence[Example]) -> Batch:
    """What our trainer eats: one packed row."""
    return collate(examples, train=True, packed=True)


def padded(examples: Sequence[Example], model: Retinue, *, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' trainer eats: rows padded on the right, labels unshifted."""
    batch = collate(examples)
    labels = torch.full_like(batch.tokens, IGNORE)
    for row, example in enumerate(examples):
        labels[row, : len(example.labels)] = torch.tensor(example.labels)
    inputs = {
        "input_ids": batch.tokens,
        "attention_mask": (batch.segments > 0).long(),
        "labels": labels,
    }
    if batch.visual is not None:
        inputs["pixel_values"] = pixels(batch, model, dtype=dtype)
    return inputs


def pixels(batch: Batch, model: Retinue, *, dtype: torch.dtype) -> Tensor:
    """The pictures of a batch as transformers' processor gives them."""
    assert batch.visual is not None
    shape = model.plan.shapes["clip"]
    levels = batch.visual.pixels["rgb"]
    return normalize(levels, mean=shape.mean, std=shape.std, dtype=dtype)


def counts(examples: Sequence[Example]) -> dict[str, int]:
    """Real, padded and supervised tokens, and pictures, of one batch."""
    lengths = [len(example.tokens) for example in examples]
    return {
        "samples": len(lengths),
        "real_tokens": sum(lengths),
        "padded_tokens": max(lengths) * len(lengths),
        "supervised_tokens": sum(example.num_supervised for example in examples),
        "pictures": sum(len(example.items) for example in examples),
    }
