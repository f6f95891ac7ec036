"""The C-Abstractor beside a plain reference, its shapes, and a tower at another resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from retinue.core.errors import ConfigError
from retinue.model.connectors import CONNECTORS
from retinue.model.connectors.base import build
from retinue.model.encoders import ENCODERS
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features

WIDTH, HIDDEN, OUT = 8, 12, 6
TAKE = {"kind": "take", "encoder": "e"}


def shapes(rows: int, cols: int, *, width: int = WIDTH) -> dict[str, EncoderShape]:
    half = (0.5, 0.5, 0.5)
    shape = EncoderShape(
        width=width,
        grid=(rows, cols),
        prefix=1,
        num_layers=2,
        size=(8 * rows, 8 * cols),
        mean=half,
        std=half,
    )
    return {"e": shape}


def node(grid: tuple[int, int], *, width: int = WIDTH, **fields: Any) -> Any:
    tree = {"kind": "abstractor", "hidden": HIDDEN, "depth": 2, "of": TAKE, **fields}
    torch.manual_seed(0)
    made = build(CONNECTORS.spec_of(tree), shapes(*grid, width=width), OUT)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def seen(grid: tuple[int, int], *, width: int = WIDTH) -> dict[tuple[str, int], Features]:
    torch.manual_seed(1)
    x_NLD = torch.randn(2, 1 + grid[0] * grid[1], width)
    return {("e", -2): Features(x_NLD=x_NLD, grid=grid, prefix=1)}


def reference(weights: dict[str, Tensor], x: Tensor, *, grid: tuple[int, int], side: int) -> Tensor:
    """One picture, (L, D), with loops in the place of modules: Honeybee's names and arithmetic."""

    def norm(name: str, y: Tensor) -> Tensor:
        y = y - y.mean(0)
        y = y / (y.pow(2).mean(0) + 1e-5).sqrt()
        return y * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]

    def point(name: str, y: Tensor) -> Tensor:
        return torch.einsum("oi,irs->ors", weights[name][:, :, 0, 0], y)

    def around(name: str, y: Tensor) -> Tensor:
        rows, cols = y.shape[1:]
        wide = F.pad(y, (1, 1, 1, 1))
        out = torch.zeros_like(y)
        for i in range(3):
            for j in range(3):
                tap = weights[name][:, 0, i, j][:, None, None]
                out += tap * wide[:, i : i + rows, j : j + cols]
        return out

    def block(p: str, y: Tensor) -> Tensor:
        z = F.silu(norm(f"{p}conv1.bn", point(f"{p}conv1.conv.weight", y)))
        z = F.silu(norm(f"{p}conv2.bn", around(f"{p}conv2.conv.weight", z)))
        s = weights[f"{p}se.fc1.weight"][:, :, 0, 0] @ z.mean((1, 2)) + weights[f"{p}se.fc1.bias"]
        s = weights[f"{p}se.fc2.weight"][:, :, 0, 0] @ F.silu(s) + weights[f"{p}se.fc2.bias"]
        z = z * torch.sigmoid(s)[:, None, None]
        z = norm(f"{p}conv3.bn", point(f"{p}conv3.conv.weight", z))
        if f"{p}downsample.conv.weight" in weights:
            y = norm(f"{p}downsample.bn", point(f"{p}downsample.conv.weight", y))
        return F.silu(z + y)

    y = (x + weights["pos_emb"][0]).T.reshape(-1, *grid)
    for name in ("net.0.b1.", "net.0.b2."):
        y = block(name, y)
    cells = []
    for row in range(side):
        for col in range(side):
            top, low = row * grid[0] // side, -(-(row + 1) * grid[0] // side)
            left, right = col * grid[1] // side, -(-(col + 1) * grid[1] // side)
            cells.append(y[:, top:low, left:right].mean((1, 2)))
    y = torch.stack(cells, 1).reshape(-1, side, side)
    for name in ("net.2.b1.", "net.2.b2."):
        y = block(name, y)
    flat = y.flatten(1).T
    flat = flat @ weights["readout.0.weight"].T + weights["readout.0.bias"]
    return F.silu(flat) @ weights["readout.2.weight"].T + weights["readout.2.bias"]


@pytest.mark.parametrize(
    ("grid", "side", "width"), [((6, 6), 3, WIDTH), ((7, 5), 3, WIDTH), ((4, 4), 4, HIDDEN)]
)
def test_against_the_reference(grid: tuple[int, int], side: int, width: int) -> None:
    made = node(grid, width=width, tokens=side * side)
    given = seen(grid, width=width)
    found = made.encode(given)
    assert found.grid == (side, side)
    weights = dict(made.named_parameters())
    for number, x_LD in enumerate(given["e", -2].x_NLD):
        wanted = reference(weights, x_LD[1:], grid=grid, side=side)
        torch.testing.assert_close(found.x_NLD[number], wanted, atol=1e-5, rtol=1e-5)


def test_mm1s_sizes() -> None:
    """27 x 27 patches of 378 pixels become 144 tokens, whatever the width."""
    spec = CONNECTORS.spec_of({"kind": "abstractor", "of": TAKE})
    count = spec.num_tokens(shapes(27, 27), None)
    assert (count.length, count.grid, spec.width(shapes(27, 27), 48)) == (144, (12, 12), 48)
    assert (spec.depth, spec.hidden, spec.mlp_depth) == (3, 1024, 2)


def test_the_recipes_own_tower_gives_144_at_378_pixels() -> None:
    """DFN-5B's ViT-H is made for 224 pixels; sixteen pictures leave room for words in a row."""
    from retinue.cli.run_spec import compose_run
    from retinue.model.spec import Plan, RetinueConfig
    from retinue.types import Grid

    spec = compose_run("mm1-7b/pretrain")[1]
    tower = CLIPVisionConfig(
        hidden_size=1280,
        num_hidden_layers=32,
        num_attention_heads=16,
        intermediate_size=5120,
        image_size=224,
        patch_size=14,
    )
    named = {key: value for key, value in spec.model["encoders"]["clip"].items() if key != "from"}
    parts = {"encoders": {"clip": named}, "connector": spec.model["connector"]}
    plan = Plan(RetinueConfig({"model_type": "llama", "hidden_size": 64}, {"clip": tower}, parts))
    assert plan.shapes["clip"].size == (378, 378)
    assert plan.shapes["clip"].grid == (27, 27)
    tokens = plan.tokens_for(Grid(size=(480, 640)))
    assert tokens == 144
    assert spec.data.max_views is not None
    assert spec.data.max_tokens is not None
    assert spec.data.max_views * tokens == 2304 < spec.data.max_tokens


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"145 is no square; use 144 or 169"):
        CONNECTORS.spec_of({"kind": "abstractor", "tokens": 145, "of": TAKE})
    spec = CONNECTORS.spec_of({"kind": "abstractor", "of": {**TAKE, "prefix": True}})
    with pytest.raises(ConfigError, match="without a plain grid"):
        spec.num_tokens(shapes(27, 27), None)
    spec = CONNECTORS.spec_of({"kind": "abstractor", "of": TAKE})
    with pytest.raises(ConfigError, match="always gives 144"):
        spec.num_tokens(shapes(27, 27), 36)


def test_without_places_and_deeper() -> None:
    made = node((4, 4), tokens=4, places=False, mlp_depth=3, out=5, depth=1)
    assert "pos_emb" not in dict(made.named_parameters())
    assert made.encode(seen((4, 4))).x_NLD.shape == (2, 4, 5)
    assert made.readout[4].weight.shape == (5, 5)


# ---------------------------------------------------------------- the tower at another resolution


def tower(size: int | None) -> tuple[Any, CLIPVisionConfig]:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    spec = ENCODERS.spec_of({"kind": "clip", **({"size": size} if size else {})})
    torch.manual_seed(0)
    return ENCODERS.get("clip")(spec, config).eval(), config


@pytest.mark.parametrize("size", [42, 35, 21])
def test_positions_are_interpolated(size: int) -> None:
    made, config = tower(size)
    assert made.shape.grid == (size // 7, size // 7)
    assert made.shape.size == (size, size)
    theirs = CLIPVisionModel(config).eval()
    theirs.load_state_dict(made.net.state_dict())
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = made(pixels, layers=(-1,))[-1].x_NLD
        wanted = theirs(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(found, wanted)


def test_the_configs_own_size_changes_nothing() -> None:
    plain, _ = tower(None)
    same, _ = tower(28)
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        pair = [made(pixels, layers=(-2,))[-2].x_NLD for made in (plain, same)]
    assert torch.equal(*pair)


def test_a_size_that_is_no_multiple_of_the_patch() -> None:
    with pytest.raises(ConfigError, match="a multiple of the patch, 7"):
        tower(40)
