"""Segment Anything's published `.pth` files on transformers' SamModel: config and parameters.

Everything that the config holds is read off the weights, except the heads of the mask decoder.
Reference: facebookresearch/segment-anything (parameter names); Kirillov et al. 2023, 2304.02643.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
PROBE = "image_encoder.patch_embed.proj.weight"
TWIN = "shared_image_embedding.positional_embedding"
"""A second name of one buffer, which prompts and pictures share."""

DECODER_HEADS = 8


def _numbered(theirs: str, ours: str, pairs: Sequence[tuple[str, str]]) -> list[Rule]:
    return [Rule(f"{theirs}.{a}.{{leaf}}", f"{ours}.{b}.{{leaf}}") for a, b in pairs]


def _mlp(theirs: str, ours: str) -> list[Rule]:
    """Three layers: the first and last have names of their own."""
    pairs = (("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out"))
    return _numbered(theirs, ours, pairs)


_LAYERS = "mask_decoder.transformer.layers.{n:int}"
_BLOCKS = ("image_encoder.blocks.{n:int}", "vision_encoder.layers.{n:int}")

SAM = KeyMap(
    [
        Rule("image_encoder.pos_embed", "vision_encoder.pos_embed"),
        Rule(
            "image_encoder.patch_embed.proj.{leaf}", "vision_encoder.patch_embed.projection.{leaf}"
        ),
        Rule(f"{_BLOCKS[0]}.norm{{k:int}}.{{leaf}}", f"{_BLOCKS[1]}.layer_norm{{k:int}}.{{leaf}}"),
        Rule(f"{_BLOCKS[0]}.{{rest}}", f"{_BLOCKS[1]}.{{rest}}"),
        *_numbered(
            "image_encoder.neck",
            "vision_encoder.neck",
            (("0", "conv1"), ("1", "layer_norm1"), ("2", "conv2"), ("3", "layer_norm2")),
        ),
        Rule(GAUSSIAN, "prompt_encoder.shared_embedding.positional_embedding"),
        Rule("prompt_encoder.point_embeddings.{rest}", "prompt_encoder.point_embed.{rest}"),
        *_numbered(
            "prompt_encoder.mask_downscaling",
            "prompt_encoder.mask_embed",
            (
                *(("0", "conv1"), ("1", "layer_norm1"), ("3", "conv2")),
                *(("4", "layer_norm2"), ("6", "conv3")),
            ),
        ),
        Rule(f"{_LAYERS}.norm{{k:int}}.{{leaf}}", f"{_LAYERS}.layer_norm{{k:int}}.{{leaf}}"),
        Rule(
            "mask_decoder.transformer.norm_final_attn.{leaf}",
            "mask_decoder.transformer.layer_norm_final_attn.{leaf}",
        ),
        *_numbered(
            "mask_decoder.output_upscaling",
            "mask_decoder",
            (("0", "upscale_conv1"), ("1", "upscale_layer_norm"), ("3", "upscale_conv2")),
        ),
        *_mlp(
            "mask_decoder.output_hypernetworks_mlps.{n:int}",
            "mask_decoder.output_hypernetworks_mlps.{n:int}",
        ),
        *_mlp("mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head"),
        Rule("mask_decoder.{rest}", "mask_decoder.{rest}"),
        Rule("prompt_encoder.{rest}", "prompt_encoder.{rest}"),
    ]
)
"""Names of the published files <-> names in transformers."""


def sam_config(weights: Weights, *, where: str) -> dict[str, Any]:
    """The config of a published file. Raises CheckpointError where it is none of SAM's."""
    if PROBE not in weights or GAUSSIAN not in weights:
        raise CheckpointError(
            f"no {PROBE}",
            where=where,
            rule="a file of Segment Anything (sam_vit_h, _l, _b) has it",
            fix="give such a .pth, or a folder of transformers' SamModel",
        )
    width, _, patch, _ = weights.shape(PROBE)
    grid = weights.shape("image_encoder.pos_embed")[1]
    reach: list[tuple[int, ...]] = []
    while f"image_encoder.blocks.{len(reach)}.attn.rel_pos_h" in weights:
        reach.append(weights.shape(f"image_encoder.blocks.{len(reach)}.attn.rel_pos_h"))
    windows = [(rows + 1) // 2 for rows, _ in reach]
    hidden = weights.shape("prompt_encoder.point_embeddings.0.weight")[1]
    layers = r"mask_decoder\.transformer\.layers\.(\d+)\."
    first = "mask_decoder.transformer.layers.0"
    return {
        "model_type": "sam",
        "vision_config": {
            "hidden_size": width,
            "output_channels": weights.shape("image_encoder.neck.0.weight")[0],
            "num_hidden_layers": len(reach),
            "num_attention_heads": width // reach[0][1],
            "image_size": grid * patch,
            "patch_size": patch,
            "mlp_dim": weights.shape("image_encoder.blocks.0.mlp.lin1.weight")[0],
            "window_size": min(windows),
            "global_attn_indexes": [i for i, one in enumerate(windows) if one == grid],
            "num_pos_feats": weights.shape(GAUSSIAN)[1],
        },
        "prompt_encoder_config": {
            "hidden_size": hidden,
            "image_size": grid * patch,
            "patch_size": patch,
            "mask_input_channels": weights.shape("prompt_encoder.mask_downscaling.3.weight")[0],
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": weights.shape(f"{first}.mlp.lin1.weight")[0],
            "num_hidden_layers": 1 + max(int(m[1]) for n in weights if (m := re.match(layers, n))),
            "num_attention_heads": DECODER_HEADS,
            "attention_downsample_rate": hidden
            // weights.shape(f"{first}.cross_attn_token_to_image.q_proj.weight")[0],
            "num_multimask_outputs": weights.shape("mask_decoder.mask_tokens.weight")[0] - 1,
            "iou_head_hidden_dim": weights.shape(
                "mask_decoder.iou_prediction_head.layers.0.weight"
            )[0],
            # the published code leaves torch's default there, transformers' is 1e-6
            "layer_norm_eps": 1e-5,
        },
    }
