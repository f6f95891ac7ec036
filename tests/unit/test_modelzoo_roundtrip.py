"""Models that no other format can say: out as ModelZoo's checkpoint and in again, bit for bit."""

import pytest
import torch

from retinue.convert.modelzoo import import_modelzoo
from retinue.convert.modelzoo_export import export_modelzoo
from retinue.convert.modelzoo_keys import turned
from retinue.core.errors import CheckpointError
from retinue.hub.modelzoo_out import write_mm_simple
from retinue.hub.sources import Opened, open_folder
from retinue.hub.stream import fill, skeleton
from retinue.model.build import build_model

TEXT = {
    "name": "LlamaModel",
    "vocab_size": 31,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "rotary_dim": 12,
    "filter_size": 20,
    "max_position_embeddings": 32,
    "position_embedding_type": "rotary",
    "norm_type": "rmsnorm",
    "nonlinearity": "swiglu",
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
    "use_projection_bias_in_attention": False,
    "use_ffn_bias_in_attention": False,
    "use_ffn_bias": False,
    "share_embedding_weights": False,
}
PLAIN = {
    "name": "ViTModel",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "filter_size": 20,
    "image_size": [8, 8],
    "patch_size": [4, 4],
    "dropout_rate": 0.0,
}
CLIP = {
    **PLAIN,
    "position_embedding_type": "learned",
    "use_conv_patchified_embedding": True,
    "use_embed_proj_bias": False,
    "use_post_embed_layer_norm": True,
    "image_layer_idx": -2,
}


def ffn(wide, *units, acts=None):
    return {
        "name": "FeedForwardNetwork",
        "input_unit": wide,
        "layers_units": list(units),
        "layers_activation": acts or [None] * len(units),
        "use_bias": True,
    }


def section(images, *, mode="patch", above=None, **text):
    lists = {"image_feature_select_mode": mode, "image_models": images}
    if above is not None:
        lists["global_image_projection"] = above
    return {
        "name": "multimodal_simple",
        "freeze": ["^text_model"],
        "image_model_list": lists,
        "text_model": {**TEXT, **text},
        "loss_scaling": "num_tokens",
        "loss_weight": 1.0,
    }


UP = ffn(16, 24, 24, acts=["gelu", None])
SECTIONS = {
    "clip": section([{"image_encoder": CLIP}], above=UP),
    "two encoders": section(
        [
            {"image_encoder": CLIP, "projection_layer": ffn(16, 10)},
            {
                "image_encoder": {**PLAIN, "position_embedding_type": "learned"},
                "projection_layer": ffn(16, 12, 10, acts=["relu", "gelu"]),
            },
        ],
        above=ffn(10, 24),
    ),
    "no class token, linear patches": section(
        [{"image_encoder": {**PLAIN, "prepend_cls_token": False, "image_layer_idx": 0}}], above=UP
    ),
    "fixed positions": section(
        [{"image_encoder": {**PLAIN, "position_embedding_type": "fixed"}}], mode="full", above=UP
    ),
    "own projector, no global one": section(
        [{"image_encoder": CLIP, "projection_layer": ffn(16, 20, 24, acts=["gelu", None])}]
    ),
    "dual expert": section(
        [{"image_encoder": CLIP}],
        above=UP,
        extra_ffn_params={"static_dual_expert": True},
        constant_pos_embedding=2,
    ),
    "part of a head turns, tied": section(
        [{"image_encoder": CLIP}],
        above=UP,
        rotary_dim=6,
        share_embedding_weights=True,
        attention_module="multiquery_attention",
        extra_attention_params={"num_kv_groups": 1},
    ),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_out_and_in(name, tmp_path):
    made = import_modelzoo(SECTIONS[name], where=name)
    model = build_model(made.config, seed=1)
    tied = set(model._tied_weights_keys or {})
    state = {key: value for key, value in model.state_dict().items() if key not in tied}
    opened = Opened(
        format="mm_simple",
        folder=tmp_path,
        config=made.config,
        processor=made.processor,
        tokenizer=tmp_path,
        sources=[],
    )
    write_mm_simple(opened, lambda: iter(state.items()), tmp_path, release="2.9", exact=False)
    again = open_folder(tmp_path)
    loaded = skeleton(again.config)
    cover = fill(loaded, again.sources, dtype=None, device="cpu", where=name)
    assert cover.complete
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert again.config.spec == made.config.spec
    assert export_modelzoo(again.config, release="2.9", exact=False)["freeze"] == ["^text_model"]
    pixels = torch.randn(2, 3, 8, 8)
    names = list(model.encoders)
    takes = made.config.spec
    with torch.no_grad():
        for encoder in names:
            layers = tuple(i for who, i in model.plan.spec.connector.takes() if who == encoder)
            one = model.encoders[encoder](pixels, layers=layers)
            two = loaded.encoders[encoder](pixels, layers=layers)
            for layer in layers:
                assert torch.equal(one[layer].x_NLD, two[layer].x_NLD)
    assert takes["connector"]["kind"] == "mlp"


def test_linear_patches_are_rows_of_channels_last():
    """The map of a patch reads (row, column, channel), channel fastest."""
    made = import_modelzoo(SECTIONS["no class token, linear patches"], where="x")
    net = build_model(made.config, seed=0).encoders["clip"].net
    pixels = torch.randn(1, 3, 8, 8)
    patch = pixels[0, :, 0:4, 4:8].permute(1, 2, 0).flatten()
    expected = net.patches(patch) + net.positions[1]
    torch.testing.assert_close(net.embed(pixels)[0, 1], expected)


def test_turned_rows_rotate_alike():
    """Neighbours turned together, sorted, are halves turned together; the rest stays still."""
    head, rotary = 8, 4
    op, place = turned(head, rotary), torch.tensor(3.0)
    x = torch.randn(2 * head)
    expected = x.view(2, head).clone()
    for j in range(rotary // 2):
        angle = place * 100.0 ** (-2 * j / rotary)
        a, b = x.view(2, head)[:, 2 * j], x.view(2, head)[:, 2 * j + 1]
        expected[:, 2 * j] = a * angle.cos() - b * angle.sin()
        expected[:, 2 * j + 1] = b * angle.cos() + a * angle.sin()
    theirs = op.apply(expected.flatten()).view(2, head)
    ours = op.apply(x).view(2, head)
    half = head // 2
    theta = 100.0 ** (head / rotary)
    freqs = torch.tensor([theta ** (-2 * j / head) for j in range(rotary // 2)])
    angles = torch.cat([freqs, torch.zeros(half - rotary // 2)]) * place
    first, second = ours[:, :half], ours[:, half:]
    found = torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ],
        1,
    )
    torch.testing.assert_close(found, theirs)
    assert torch.equal(op.invert(op.apply(x)), x)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"dropout_rate": 0.1}, "dropout_rate"),
        ({"embeddings_scale": 2.0}, "embeddings_scale"),
        ({"rotary_dimension": 4}, "did you mean 'rotary_dim'"),
    ],
)
def test_text_fields_without_a_place(change, says):
    with pytest.raises(CheckpointError, match=says):
        import_modelzoo(section([{"image_encoder": CLIP}], above=UP, **change), where="x")
