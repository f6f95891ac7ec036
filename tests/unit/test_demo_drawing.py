"""Answers drawn on pictures; Segment Anything from either layout of its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from retinue.cli.chat import Session
from retinue.cli.main import run
from retinue.cli.places import Places
from retinue.convert.sam import SAM, TWIN
from retinue.core.errors import CheckpointError, ConfigError
from retinue.demo.drawing import boxes_of, draw, style_of
from retinue.demo.masks import Masks
from retinue.media.boxes import STYLES

WHITE = (255, 255, 255)


def tiny_sam(seed: int = 0) -> Any:
    """transformers' SamModel in miniature, one layer with windows and one without."""
    from transformers import SamConfig, SamModel

    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 8}
    vision = {
        **{"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "mlp_dim": 24},
        **{"num_attention_heads": 4, "image_size": 64, "patch_size": 8, "window_size": 3},
        **{"global_attn_indexes": [1], "num_pos_feats": 8, "initializer_range": 0.2},
    }
    decoder = {"hidden_size": 16, "mlp_dim": 20, "iou_head_hidden_dim": 12, "layer_norm_eps": 1e-5}
    config = SamConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    torch.manual_seed(seed)
    model = SamModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        table = model.shared_image_embedding.positional_embedding
        table.normal_()
        model.prompt_encoder.shared_embedding.positional_embedding = table
    return model


def as_published(model: Any, file: Path) -> Path:
    """The same weights under the names of Segment Anything's own file."""
    state = {
        SAM.from_retinue(key): value.clone()
        for key, value in model.state_dict().items()
        if key != TWIN
    }
    assert None not in state
    torch.save(state, file)
    return file


PUBLISHED = {
    "image_encoder.pos_embed",
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.blocks.1.norm1.bias",
    "image_encoder.blocks.1.attn.rel_pos_h",
    "image_encoder.blocks.0.attn.qkv.weight",
    "image_encoder.blocks.0.mlp.lin2.bias",
    "image_encoder.neck.0.weight",
    "image_encoder.neck.3.bias",
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "prompt_encoder.point_embeddings.3.weight",
    "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.no_mask_embed.weight",
    "prompt_encoder.mask_downscaling.0.weight",
    "prompt_encoder.mask_downscaling.4.bias",
    "prompt_encoder.mask_downscaling.6.weight",
    "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.transformer.layers.1.self_attn.q_proj.weight",
    "mask_decoder.transformer.layers.1.norm4.weight",
    "mask_decoder.transformer.layers.0.mlp.lin1.weight",
    "mask_decoder.transformer.layers.0.cross_attn_image_to_token.out_proj.bias",
    "mask_decoder.transformer.final_attn_token_to_image.k_proj.weight",
    "mask_decoder.transformer.norm_final_attn.weight",
    "mask_decoder.output_upscaling.0.weight",
    "mask_decoder.output_upscaling.1.bias",
    "mask_decoder.output_upscaling.3.bias",
    "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
    "mask_decoder.iou_prediction_head.layers.1.bias",
}
"""Names in sam_vit_h_4b8939.pth, one of each kind."""


def test_both_layouts_of_sam_are_one_model(tmp_path: Path, draw: Any) -> None:
    model = tiny_sam()
    file = as_published(model, tmp_path / "sam_vit_t.pth")
    names = set(torch.load(file, weights_only=True))
    assert names >= PUBLISHED
    assert all(SAM.from_retinue(SAM.to_retinue(name) or "") == name for name in names)
    model.save_pretrained(tmp_path / "folder")
    picture, boxes = draw(50, 30), [(2.0, 3.0, 20.0, 25.0), (25.0, 5.0, 49.0, 28.0)]
    one, two = Masks.load(file), Masks.load(tmp_path / "folder")
    assert one.model.config.vision_config.global_attn_indexes == [1]
    assert one.model.config.vision_config.window_size == 3
    states = [m.model.state_dict() for m in (one, two)]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    masks = [m(picture, boxes) for m in (one, two)]
    assert [mask.shape for mask in masks[0]] == [(30, 50)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(*masks, strict=True))
    assert any(0 < mask.mean() < 1 for mask in masks[0])
    assert one(picture, []) == []


def test_masks_come_from_the_boxes_alone(draw: Any) -> None:
    """Together or one by one, the same masks; another box, another mask."""
    masks = Masks(tiny_sam(seed=3))
    picture, boxes = draw(40, 40), [(1.0, 1.0, 12.0, 12.0), (20.0, 20.0, 39.0, 39.0)]
    both = masks(picture, boxes)
    assert all(np.array_equal(masks(picture, [b])[0], m) for b, m in zip(boxes, both, strict=True))


def test_what_is_no_sam_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="SamModel"):
        Masks.load(tmp_path / "nowhere")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="Segment Anything"):
        Masks.load(tmp_path / "other.pth")
    file = as_published(tiny_sam(), tmp_path / "sam.pth")
    state = torch.load(file, weights_only=True)
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="iou_token"):
        Masks.load(file)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    with pytest.raises(CheckpointError, match="Segment Anything"):
        Masks.load(tmp_path / "llama")
    shutil.rmtree(tmp_path / "llama")


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("[0.1,0.2,0.5,0.75]", "sphinx"),
        ("[14 53 22 61]", "compact"),
        ("[140,530,220,610]", "thousand"),
        ("[140,530,1220,1610]", "pixels"),
        ("nothing", "sphinx"),
    ],
)
def test_styles_are_told_by_their_numbers(text: str, style: str) -> None:
    assert style_of(text) == STYLES[style]


def test_drawn_where_the_answer_says() -> None:
    """A box of the padded square on a picture twice as wide as high; a dot; limbs of a pose."""
    picture = Image.new("RGB", (100, 50), WHITE)
    made = draw(picture, "<p>dog</p>[0.200,0.350,0.600,0.650] and [0.800,0.500]")
    assert made is not None
    assert picture.getpixel((20, 10)) == WHITE
    assert made.getpixel((20, 10)) == made.getpixel((60, 40)) == (255, 0, 0)
    assert made.getpixel((40, 25)) == WHITE
    assert made.getpixel((80, 25)) == (0, 0, 255)
    pose = draw(picture, "<p>left hip</p>[0.1,0.5]<p>left knee</p>[0.5,0.5]")
    assert pose is not None
    assert pose.getpixel((30, 25)) == (0, 128, 0)
    assert draw(picture, "no places [see text]") is None
    assert draw(picture, "[0.1,0.2,0.3]") is None


def test_masks_are_blended_in_their_box_s_colour() -> None:
    picture = Image.new("RGB", (40, 40), WHITE)
    asked: list[Any] = []

    def segment(image: Image.Image, boxes: Any) -> Any:
        asked.extend(tuple(round(n, 6) for n in box) for box in boxes)
        masks = np.zeros((len(boxes), image.height, image.width), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
        return list(masks)

    text = "[0.1,0.1,0.4,0.4;0.5,0.5,0.5,0.9] [0.6,0.6,1.2,0.9]"
    made = draw(picture, text, style="sphinx", segment=segment)
    assert made is not None
    assert asked == [(4.0, 4.0, 16.0, 16.0), (24.0, 24.0, 40.0, 36.0)]
    assert made.getpixel((10, 10)) == (255, 128, 128)
    assert made.getpixel((30, 30)) == (128, 128, 255)
    assert boxes_of("[9,9]", size=(4, 4), style=STYLES["pixels"]) == []


class Talker:
    """A model that has learned its answers by heart."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.seen = list(answers), [""]

    def ask(self, text: str, **_: Any) -> Any:
        self.seen.append(text)
        yield from self.answers.pop(0)


def test_chat_draws_on_the_last_picture(tmp_path: Path, capsys: Any) -> None:
    for name, colour in (("one", "white"), ("two", "black")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    target = tmp_path / "out.png"
    chat: Any = Talker("hello", "[0.5,0.5,0.9,0.9]", "[0.1,0.1,0.4,0.4]")
    session = Session(chat, images=[str(tmp_path / "one.png")], drawn=Places(target))
    session.answer("hi")
    assert not target.exists()
    assert "nothing drawn" in capsys.readouterr().err
    session.answer("where?")
    with Image.open(target) as made:
        assert made.getpixel((0, 0)) == WHITE
        assert made.getpixel((10, 10)) == (255, 0, 0)
    session.command(f"/image {tmp_path / 'two.png'}")
    session.answer("and here?")
    with Image.open(target) as made:
        assert made.getpixel((0, 0)) == (0, 0, 0)
        assert made.getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sam", "x"], "--draw"),
        (["--draw", "out.psd2"], "out.psd2"),
        (["--draw", "nowhere/out.png"], "nowhere"),
        (["--draw", "out.png", "--box-style", "round"], "round"),
        (["--draw", "out.png", "--t2i", "paint"], "module:function"),
        (["--draw", "out.png", "--t2i", "no_such_module:f"], "no_such_module"),
        (["--draw", "out.png", "--sam", "no/folder"], "SamModel"),
    ],
)
def test_options_are_checked_before_the_model_loads(
    words: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["chat", "no-model", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_chat_without_a_pipeline_cannot_paint() -> None:
    chat: Any = Talker("x")
    with pytest.raises(ConfigError, match="--t2i"):
        Session(chat, images=[], drawn=Places(None)).command("/paint a boat")
