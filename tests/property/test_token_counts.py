"""The number of visual tokens that specs predict is the number that modules give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig

from retinue.core.errors import ConfigError
from retinue.model.build import build_model
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan, RetinueConfig
from retinue.types import Grid, Visual

TAKE_A = {"kind": "take", "encoder": "a"}
TAKE_B = {"kind": "take", "encoder": "b"}
CONNECTORS: dict[str, Any] = {
    "mlp": {"kind": "mlp", "of": TAKE_A},
    "mlp1": {"kind": "mlp", "depth": 1, "of": TAKE_A},
    "linear": {"kind": "linear", "of": TAKE_A},
    "pool": {"kind": "linear", "of": {"kind": "pool", "stride": 2, "of": TAKE_A}},
    "channel": {"kind": "mlp", "of": {"kind": "channel", "parts": [TAKE_A, TAKE_B]}},
    "identity": {"kind": "identity", "of": {"kind": "linear", "of": TAKE_A}},
}
NO_GRID: dict[str, Any] = {
    "class token": {"kind": "linear", "of": {**TAKE_A, "prefix": True}},
    "sequence": {
        "kind": "sequence",
        "parts": [{"kind": "linear", "of": TAKE_A}, {"kind": "mlp", "of": TAKE_B}],
    },
}


def config(connector: dict[str, Any], layout: dict[str, Any]) -> RetinueConfig:
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    sizes = {"intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoders = {
        name: CLIPVisionConfig(hidden_size=width, image_size=16, patch_size=4, **sizes)
        for name, width in (("a", 8), ("b", 12))
    }
    spec = {
        "encoders": {"a": {"kind": "clip"}, "b": {"kind": "clip"}},
        "connector": connector,
        "layout": layout,
        "image_token_id": 40,
    }
    return RetinueConfig(text, encoders, spec)


MODELS: dict[str, Retinue] = {}


def model(name: str, layout: str) -> Retinue:
    key = f"{name}/{layout}"
    if key not in MODELS:
        layouts = {
            "plain": {"kind": "plain"},
            "newline": {"kind": "newline"},
            "spatial": {"kind": "newline", "unpad": False, "newline": False},
        }
        MODELS[key] = build_model(config({**CONNECTORS, **NO_GRID}[name], layouts[layout]), seed=0)
    return MODELS[key]


def grids() -> st.SearchStrategy[Grid]:
    side = st.integers(1, 3)
    pixels = st.integers(1, 900)
    tiled = st.builds(
        lambda rows, cols, h, w: Grid(rows=rows, cols=cols, overview=True, size=(h, w)),
        side,
        side,
        pixels,
        pixels,
    )
    single = st.builds(lambda h, w: Grid(size=(h, w)), pixels, pixels)
    return st.one_of(tiled, single)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(grids(), min_size=1, max_size=3),
    st.sampled_from(sorted(CONNECTORS)),
    st.sampled_from(["plain", "newline", "spatial"]),
)
def test_predicted_tokens_are_given(items: list[Grid], name: str, layout: str) -> None:
    check(model(name, layout), items)


@settings(max_examples=10, deadline=None)
@given(st.lists(grids(), min_size=1, max_size=3), st.sampled_from(sorted(NO_GRID)))
def test_tokens_without_a_grid(items: list[Grid], name: str) -> None:
    check(model(name, "plain"), items)


def check(net: Retinue, items: list[Grid]) -> None:
    views = sum(grid.num_views for grid in items)
    visual = Visual(
        pixels={"rgb": torch.zeros(views, 3, 16, 16, dtype=torch.uint8)},
        grids=items,
        budgets=[None] * len(items),
        spans=torch.zeros(len(items), 3, dtype=torch.long),
        index=torch.zeros(0, dtype=torch.long),
    )
    with torch.no_grad():
        words = net.look(visual)
    assert words is not None
    assert words.lengths == [net.plan.tokens_for(grid) for grid in items]
    assert len(words.x_TD) == sum(words.lengths)


@pytest.mark.parametrize("layout", ["newline"])
@pytest.mark.parametrize("name", sorted(NO_GRID))
def test_layout_that_needs_a_grid_refuses_at_spec_time(name: str, layout: str) -> None:
    plan = Plan(config(NO_GRID[name], {"kind": layout}))
    with pytest.raises(ConfigError, match="bare grid"):
        plan.tokens_for(Grid(rows=2, cols=2, overview=True, size=(9, 9)))


def test_budget_that_cannot_be_met_is_refused_with_the_number() -> None:
    plan = Plan(config(CONNECTORS["mlp"], {"kind": "plain"}))
    assert plan.tokens_for(Grid(size=(4, 4)), budget=16) == 16
    with pytest.raises(ConfigError, match="always gives 16"):
        plan.tokens_for(Grid(size=(4, 4)), budget=4)


def test_unknown_encoder_in_the_tree_is_named() -> None:
    with pytest.raises(ConfigError, match="'c'"):
        Plan(config({"kind": "linear", "of": {"kind": "take", "encoder": "c"}}, {"kind": "plain"}))


def test_channel_of_different_grids_is_refused() -> None:
    pooled = {"kind": "pool", "stride": 2, "of": TAKE_B}
    plan = Plan(config({"kind": "channel", "parts": [TAKE_A, pooled]}, {"kind": "plain"}))
    with pytest.raises(ConfigError, match="same place"):
        plan.tokens_for(Grid(size=(4, 4)))
