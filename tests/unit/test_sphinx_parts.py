"""Sub-images, bracketed and skipped tiles, regrouped features, Q-Former, pixel steps, convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from retinue.convert.consolidated import Consolidated, cut, join, shard_files
from retinue.convert.sphinx_lm import lm_groups
from retinue.core.errors import CheckpointError, ConfigError, RequestError
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.media.accessory import Accessory
from retinue.media.quad import Nine, Quad
from retinue.media.resize import letterbox
from retinue.media.views import StreamSpec
from retinue.model.build import build_model
from retinue.model.encoders.adapt import Adapt
from retinue.model.lm.router import Routing, imbalance
from retinue.model.spec import RetinueConfig
from retinue.ops.grid import empty_tiles
from retinue.ops.pixels import normalize
from retinue.text.train import train_bpe
from retinue.types import Grid

WIDTH = 16


def vision(**spec: Any) -> RetinueConfig:
    """A four-encoder mixture in miniature; keywords replace fields of the spec."""

    def take(name: str, *, prefix: bool = True) -> dict[str, Any]:
        return {"kind": "take", "encoder": name, "layer": 1000, "prefix": prefix}

    vit = {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    query = {"kind": "qformer", "queries": 3, "out": 8, "depth": 2, "heads": 2, "hidden": 8}
    cells = {"kind": "regrid", "repeat": 4, "mean": True, "of": take("convnext", prefix=False)}
    fields = {
        "encoders": {
            "eva": {"kind": "blip2"},
            "convnext": {"kind": "convnext", "size": 32},
            "dinov2": {"kind": "dinov2", "size": 32, "offset": 0.1},
        },
        "connector": {
            "kind": "sequence",
            "parts": [
                {"kind": "linear", "norm": True, "of": {**query, "of": take("eva")}},
                {
                    "kind": "linear",
                    "norm": True,
                    "of": {"kind": "channel", "parts": [cells, take("dinov2")]},
                },
            ],
        },
        "layout": {"kind": "bracket"},
        "image_token_id": -200,
    }
    return RetinueConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 40,
            "hidden_size": WIDTH,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        encoders={
            "eva": {
                "model_type": "blip_2_vision_model",
                "hidden_size": 8,
                "intermediate_size": 8,
                **vit,
            },
            "convnext": {
                "model_type": "convnext",
                "hidden_sizes": [4, 4, 4, 6],
                "depths": [1, 1, 1, 1],
            },
            "dinov2": {"model_type": "dinov2", "hidden_size": 8, **vit, "image_size": 48},
        },
        spec={**fields, **spec},
    )


def tokens_of(config: RetinueConfig, grid: Grid) -> tuple[int, int]:
    """Visual tokens that the specs promise and that the model gives."""
    from retinue.types import Visual

    model = build_model(config, seed=0)
    pixels = torch.randint(0, 256, (grid.num_views, 3, 32, 32), dtype=torch.uint8)
    planned = model.plan.tokens_for(grid)
    visual = Visual(
        pixels={"rgb": pixels},
        grids=[grid],
        budgets=[None],
        spans=torch.tensor([[0, 0, planned]]),
        index=torch.arange(planned),
    )
    words = model.look(visual)
    assert words is not None
    assert words.x_TD.isfinite().all()
    return planned, words.lengths[0]


@pytest.mark.parametrize("across", [1, 2, 3])
def test_specs_count_what_the_model_gives(across: int) -> None:
    grid = Grid(rows=across, cols=across, overview=across > 1, size=(30, 40))
    planned, given = tokens_of(vision(), grid)
    assert planned == given == grid.num_views * (3 + 1 + 16 + 2)


def test_empty_tiles_become_one_vector() -> None:
    """A strip four times as wide as high leaves the first and last row of nine tiles empty."""
    grid = Grid(rows=3, cols=3, overview=True, size=(10, 40))
    assert empty_tiles(grid.size, rows=3, cols=3) == [True] * 3 + [False] * 3 + [True] * 3
    assert not any(empty_tiles((10, 40), rows=2, cols=2))
    assert not any(empty_tiles((10, 29), rows=3, cols=3))
    assert empty_tiles((40, 10), rows=3, cols=3) == [True, False, True] * 3
    config = vision(layout={"kind": "bracket", "skip": True})
    planned, given = tokens_of(config, grid)
    assert planned == given == 4 * 22 + 6


@pytest.mark.parametrize(("policy", "across"), [(Quad(), 2), (Nine(), 3)])
def test_tiles_are_parts_of_one_larger_square(policy: Quad, across: int, draw: Any) -> None:
    picture = draw(50, 30)
    stream = StreamSpec(size=16)
    views, grid = policy.views(picture, stream)
    assert (grid.rows, grid.cols, grid.overview) == (across, across, True)
    assert grid == policy.grid((30, 50), stream)
    square = letterbox(picture, (50, 50), colour=(122, 116, 104))
    large = np.array(square.resize((16 * across,) * 2, Image.Resampling.BICUBIC))
    again = np.vstack(
        [
            np.hstack([views[1 + row * across + col].permute(1, 2, 0) for col in range(across)])
            for row in range(across)
        ]
    )
    assert np.array_equal(again, large)
    small = np.array(square.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(views[0].permute(1, 2, 0).numpy(), small)


def test_half_precision_views_are_near_the_clean_ones(draw: Any) -> None:
    stream = StreamSpec(size=16)
    faithful, grid = Accessory(side=32, across=2).views(draw(40, 40), stream)
    clean, same = Quad().views(draw(40, 40), stream)
    assert grid == same
    levels = normalize(clean, mean=stream.mean, std=stream.std)
    assert torch.equal(faithful[1:], levels[1:]), "tiles are crops of the same square"
    assert (faithful[0] - levels[0]).abs().mean() < 0.2


def test_pixel_steps() -> None:
    levels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    old = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    new = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    wanted = normalize(levels, **new)
    floats = normalize(levels, **old)
    got = Adapt(**old)(floats, final=True, **new)
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert torch.equal(Adapt(**old)(wanted, final=False, **new), wanted), (
        "levels were right at once"
    )
    rounded = Adapt(half=True, size=16)(wanted, final=False, **new)
    assert rounded.dtype == torch.float16
    assert torch.equal(rounded[..., ::2, ::2], wanted.half())


def test_even_routing_costs_one() -> None:
    chosen = torch.arange(8).view(4, 2) % 4
    even = Routing(logits_NE=torch.zeros(4, 4), chosen_NK=chosen)
    lopsided = Routing(
        logits_NE=torch.tensor([[9.0, 9.0, 0.0, 0.0]] * 4), chosen_NK=torch.tensor([[0, 1]] * 4)
    )
    found = imbalance([even, lopsided])
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(2.0, abs=1e-3)
    real = torch.tensor([True, True, False, False])
    assert imbalance([even], real_N=real)[0] == pytest.approx(1.0)


def test_a_blind_model_refuses_pictures() -> None:
    config = vision(encoders={}, connector={"kind": "blind"}, layout={"kind": "plain"})
    config.encoders = {}
    model = build_model(config, seed=0)
    with pytest.raises(RequestError, match="no encoder"):
        model.plan.tokens_for(Grid(size=(8, 8)))


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_cut_and_joined_again(shards: int) -> None:
    shapes = {
        "tok_embeddings.weight": (10, 8),
        "output.weight": (12, 8),
        "layers.0.attention.wq.weight": (8, 4),
        "layers.0.attention.wo.weight": (4, 8),
        "layers.0.attention.wo.bias": (4,),
        "layers.0.feed_forward.w2.weight": (4, 8),
        "layers.0.feed_forward.w2": (24, 4),
        "layers.0.attention.wo.lora_a.weight": (2, 8),
        "layers.0.attention.wo.lora_b.weight": (4, 2),
        "layers.0.attention.wq.lora_b.weight": (8, 2),
        "norm.weight": (4,),
    }
    for name, shape in shapes.items():
        whole = torch.randn(shape)
        experts = 2 if shape[0] == 24 else None
        parts = cut(name, whole, shards=shards, experts=experts)
        kept = [part for part in parts if part is not None]
        assert torch.equal(join(name, kept, experts=experts), whole), name


def test_what_does_not_divide_is_named() -> None:
    with pytest.raises(CheckpointError, match="entries along side 0"):
        cut("output.weight", torch.zeros(10, 2), shards=4, experts=None)


def text_model(folder: Path, **more: Any) -> Path:
    """A small language model as the original stores it."""
    config = {"model_type": "llama", "vocab_size": 330, "hidden_size": 8, "intermediate_size": 24}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, **more}
    made = RetinueConfig(
        text_config=config,
        spec={"connector": {"kind": "blind"}, "image_token_id": -200},
    )
    model = build_model(made, seed=1)
    groups = lm_groups(made.text_config, experts=None)
    state = model.state_dict()
    held = {
        f"llma.{name}": value.contiguous()
        for group in groups
        for name, value in zip(
            group.theirs, group.write([state[n] for n in group.ours]), strict=True
        )
    }
    folder.mkdir()
    torch.save({"model": held}, folder / "consolidated.00-of-01.model.pth")
    args = {"dim": 8, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64}
    (folder / "config.json").write_text(json.dumps(args), encoding="utf-8")
    (folder / "meta.json").write_text('{"llama_type": "llama"}', encoding="utf-8")
    train_bpe(["what is here"], vocab_size=300).save(folder)
    return folder


def test_interleaved_rotation_is_transformers_after_import(tmp_path: Path) -> None:
    """Export and import give the same weights; a missing shard, a wrong size, a type are named."""
    folder = text_model(tmp_path / "model")
    report = convert(folder, tmp_path / "two", to="sphinx", shards=2)
    assert len(report.written) == len(Consolidated(shard_files(folder)))
    one, _ = load(folder)
    two, _ = load(tmp_path / "two")
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    (tmp_path / "two" / "consolidated.01-of-02.model.pth").unlink()
    with pytest.raises(CheckpointError, match="01-of-02"):
        load(tmp_path / "two")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", '{"dim": 8, "n_layers": 2, "n_heads": 4}', "does not fit"),
        ("config.json", '{"colour": 8}', "unknown fields"),
        ("meta.json", '{"llama_type": "llama_new"}', "llama_new"),
        ("meta.json", '{"llama_type": "llama_ens"}', "without encoders"),
    ],
)
def test_bad_folders_are_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    folder = text_model(tmp_path / "model")
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_a_missing_tokenizer_names_its_argument(tmp_path: Path) -> None:
    from retinue.hub.sphinx import open_sphinx

    folder = text_model(tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.rename(tmp_path / path.name)
    with pytest.raises(CheckpointError, match="tokenizer_path"):
        open_sphinx(folder)
    assert open_sphinx(folder, tokenizer_path=tmp_path).tokenizer == tmp_path


def test_a_model_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    from retinue.convert.sphinx_export import llama_type

    with pytest.raises(CheckpointError, match="encoders"):
        llama_type(vision())


def test_connector_rules() -> None:
    shapes = vision()
    bad = dict(shapes.spec["connector"]["parts"][1]["of"]["parts"][0])
    bad["of"] = {**bad["of"], "encoder": "dinov2", "prefix": True}
    config = vision(connector={"kind": "linear", "of": bad})
    with pytest.raises(ConfigError, match="regrid"):
        build_model(config, device="meta").plan.tokens_for(Grid(size=(8, 8)))


@pytest.mark.parametrize(("limit", "fits"), [(22, False), (24, False), (25, True), (None, True)])
def test_room_for_text_beside_a_picture(limit: int | None, fits: bool) -> None:
    """The sum is in the message: 22 tokens are one bracketed view's."""
    from retinue.processor import Processor, ProcessorSpec
    from retinue.train.prepare import check_room

    config = vision()
    spec = ProcessorSpec(views={"kind": "pad"}, streams={"rgb": {"size": 32}}, template="accessory")
    words = train_bpe(["what is here"], vocab_size=300)
    model = build_model(config, device="meta")
    processor = Processor(model.plan, tokenizer=words, spec=spec)
    if fits:
        check_room(processor, max_tokens=limit)
        return
    with pytest.raises(ConfigError, match=f"{limit} - 22 tokens"):
        check_room(processor, max_tokens=limit)


def mixture(**more: Any) -> RetinueConfig:
    """A tiny mixture of four experts without pictures."""
    text = {
        "model_type": "mixtral",
        "vocab_size": 40,
        "hidden_size": WIDTH,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
        "router_aux_loss_coef": 0.5,
    }
    spec = {"connector": {"kind": "blind"}, "image_token_id": -200}
    return RetinueConfig(text_config={**text, **more}, spec=spec)


def test_the_routers_loss_joins_that_of_the_words() -> None:
    """As a mean, with the config's weight; padding counts only if asked for; routers learn."""
    from retinue.ops.collate import collate
    from retinue.train.objectives.moe import Moe, MoeSpec
    from retinue.types import Example

    model = build_model(mixture(), seed=0)
    examples = [
        Example(id=str(n), tokens=list(range(2, n)), labels=list(range(2, n))) for n in (6, 12)
    ]
    batch = collate(examples, pad_id=0, train=True)
    plain = model.run(batch)
    counted = {}
    for padding in (False, True):
        output = Moe(MoeSpec(padding=padding))(model, batch)
        uneven = output.metrics["load_balancing"]
        counted[padding] = float(uneven)
        extra = (output.loss_sum - plain.loss_sum) / output.num_supervised
        assert float(extra.detach()) == pytest.approx(0.5 * float(uneven), rel=1e-4)
    assert counted[False] != counted[True]
    free = Moe(MoeSpec(balance=0.0))(model, batch)
    assert torch.equal(free.loss_sum, plain.loss_sum)
    Moe(MoeSpec())(model, batch).loss_sum.backward()
    gate = model.get_parameter("lm.model.layers.0.mlp.gate.weight")
    assert gate.grad is not None
    assert gate.grad.abs().sum() > 0


def test_a_dense_model_has_no_routers() -> None:
    from retinue.train.objectives.moe import Moe, MoeSpec

    with pytest.raises(ConfigError, match="without experts"):
        Moe(MoeSpec()).check(build_model(vision(), device="meta"))


def test_rounded_rope_is_chosen_at_loading(tmp_path: Path) -> None:
    """Up to position 256 nothing changes; beyond, neighbours share angles."""
    folder = text_model(tmp_path / "model")
    args = json.loads((folder / "config.json").read_text("utf-8")) | {"rope_scaling": 0.5}
    (folder / "config.json").write_text(json.dumps(args), encoding="utf-8")
    exact, _ = load(folder)
    rounded, _ = load(folder, rope="rounded")
    places = torch.arange(600)[None]
    tables = [m.lm.base.rotary_emb(torch.zeros(1), places)[0][0] for m in (exact, rounded)]
    torch.testing.assert_close(tables[0][:257], tables[1][:257], atol=1e-5, rtol=0)
    assert not torch.equal(tables[1][257], tables[0][257])
    assert torch.equal(tables[1][257], tables[1][256])
