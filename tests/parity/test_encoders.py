"""Our encoders give transformers' hidden states, layer by layer, and stop where they may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from retinue.core.errors import ConfigError
from retinue.model.encoders import ENCODERS
from retinue.model.encoders.vit import FINAL

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
CASES = [
    (
        "clip",
        transformers.CLIPVisionConfig,
        transformers.CLIPVisionModel,
        {"intermediate_size": 24},
    ),
    (
        "siglip",
        transformers.SiglipVisionConfig,
        transformers.SiglipVisionModel,
        {"intermediate_size": 24},
    ),
    ("dinov2", transformers.Dinov2Config, transformers.Dinov2Model, {"mlp_ratio": 2}),
    (
        "dinov2",
        transformers.Dinov2WithRegistersConfig,
        transformers.Dinov2WithRegistersModel,
        {"mlp_ratio": 2, "num_register_tokens": 3},
    ),
]


@pytest.mark.parametrize(("kind", "config_class", "model_class", "extra"), CASES)
def test_hidden_states_equal_transformers(
    kind: str, config_class: Any, model_class: Any, extra: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config = config_class(**TINY, **extra)
    reference = model_class(config).eval()
    encoder_class = ENCODERS.get(kind)
    encoder = encoder_class(encoder_class.Spec(kind=kind), config).eval()
    encoder.net.load_state_dict(reference.state_dict())
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = reference(pixels, output_hidden_states=True)
        found = encoder(pixels, layers=(0, -2, -1, 2, FINAL))
    for layer in (0, -2, -1, 2):
        torch.testing.assert_close(
            found[layer].x_NLD, expected.hidden_states[layer], atol=1e-5, rtol=0
        )
    if kind != "clip":  # transformers' CLIP leaves its last state unnormalised
        final = expected.last_hidden_state
        torch.testing.assert_close(found[FINAL].x_NLD, final, atol=1e-5, rtol=0)
    shape = encoder.shape
    assert found[-1].x_NLD.shape == (2, shape.prefix + shape.grid[0] * shape.grid[1], shape.width)


def test_stops_after_the_deepest_layer_asked_for() -> None:
    config = transformers.CLIPVisionConfig(**TINY, intermediate_size=24)
    clip = ENCODERS.get("clip")
    encoder = clip(clip.Spec(kind="clip"), config)
    ran = []
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    encoder(torch.randn(1, 3, 28, 28), layers=(-2,))
    assert ran == [0, 1]


def test_layer_out_of_range_names_the_range() -> None:
    config = transformers.CLIPVisionConfig(**TINY, intermediate_size=24)
    clip = ENCODERS.get("clip")
    encoder = clip(clip.Spec(kind="clip"), config)
    with pytest.raises(ConfigError, match="3 blocks"):
        encoder(torch.randn(1, 3, 28, 28), layers=(9,))
