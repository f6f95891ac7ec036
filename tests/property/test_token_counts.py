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
    "abstractor": {"kind": "abstractor", "tokens": 4, "hidden": 8, "depth": 1, "of": TAKE_A},
}
ELASTIC: dict[str, Any] = {
    "after": {"kind": "elastic", "scales": [1, 4, 16], "of": {"kind": "mlp", "of": TAKE_A}},
    "before": {"kind": "mlp", "of": {"kind": "elastic", "of": TAKE_A}},
    "over channel": {"kind": "elastic", "of": CONNECTORS["channel"]},
    "over pool": {"kind": "elastic", "of": CONNECTORS["pool"]},
    "outer linear": {"kind": "linear", "of": {"kind": "elastic", "of": CONNECTORS["mlp1"]}},
    "rounded": {"kind": "elastic", "rounding": "original", "of": CONNECTORS["mlp"]},
}
NO_GRID: dict[str, Any] = {
    "class token": {"kind": "linear", "of": {**TAKE_A, "prefix": True}},
    "sequence": {
        "kind": "sequence",
        "parts": [{"kind": "linear", "of": TAKE_A}, {"kind": "mlp", "of": TAKE_B}],
    },
}
ALL = {**CONNECTORS, **ELASTIC, **NO_GRID}


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
        MODELS[key] = build_model(config(ALL[name], layouts[layout]), seed=0)
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(grids(), min_size=1, max_size=4),
    st.sampled_from(sorted(ELASTIC)),
    st.sampled_from(["plain", "newline", "spatial"]),
    st.data(),
)
def test_predicted_tokens_are_given_at_any_budgets(
    items: list[Grid], name: str, layout: str, data: st.DataObject
) -> None:
    """One batch, every item at a budget of its own, under every layout."""
    net = model(name, layout)
    full = net.plan.per_view().length
    known = range(1, full + 1) if name == "rounded" else net.plan.budgets
    choice = st.one_of(st.none(), st.sampled_from(known))
    check(net, items, [data.draw(choice) for _ in items])


@settings(max_examples=30, deadline=None)
@given(st.integers(-3, 40), st.sampled_from(sorted(ELASTIC)))
def test_a_budget_is_met_or_refused(budget: int, name: str) -> None:
    plan = model(name, "plain").plan
    if budget in plan.budgets:
        assert plan.tokens_for(Grid(size=(4, 4)), budget) == budget
    elif name != "rounded" or not 1 <= budget <= max(plan.budgets):
        with pytest.raises(ConfigError, match=r"nearest is \d+"):
            plan.tokens_for(Grid(size=(4, 4)), budget)


def check(net: Retinue, items: list[Grid], budgets: list[int | None] | None = None) -> None:
    budgets = budgets or [None] * len(items)
    views = sum(grid.num_views for grid in items)
    visual = Visual(
        pixels={"rgb": torch.zeros(views, 3, 16, 16, dtype=torch.uint8)},
        grids=items,
        budgets=budgets,
        spans=torch.zeros(len(items), 3, dtype=torch.long),
        index=torch.zeros(0, dtype=torch.long),
    )
    with torch.no_grad():
        words = net.look(visual)
    assert words is not None
    expected = [net.plan.tokens_for(g, b) for g, b in zip(items, budgets, strict=True)]
    assert words.lengths == expected
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
