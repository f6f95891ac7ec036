"""Two processes that share every layer compute what one does: losses, gradients, ids, training.

All cases run in one pair of processes.
"""

from __future__ import annotations

from typing import Any

import pytest

from tiny_divided import MODELS, work
from tiny_tensor import on_ranks


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return on_ranks(work)


@pytest.mark.parametrize("name", [*MODELS, "expert", "cross"])
def test_losses_and_gradients_are_those_of_one(name: str, ranks: Any) -> None:
    for found in (rank[name] for rank in ranks):
        assert found["loss"] < 1e-6
        # softmax does not see a shift of all keys: this gradient is rounding alone
        own = {k: v for k, v in found["gradients"].items() if not k.endswith("k_proj.bias")}
        assert max(own.values()) < 1e-5, max(own, key=lambda key: own[key])
        assert found["same"], "full_state is not the model's state"
        assert found["names"]


@pytest.mark.parametrize("name", [*MODELS, "expert", "cross"])
def test_every_projection_is_divided(name: str, ranks: Any) -> None:
    """Local sizes are half; whole matrices of a layer are routers and gated blocks alone."""
    for found in (rank[name] for rank in ranks):
        assert len(found["parts"]) >= 8
        assert set(found["parts"].values()) == {0.5}
        kept = [n for n in found["whole"] if "gated_cross_attn" not in n and ".gate." not in n]
        assert not kept


def test_pictures_reach_second_weights_and_gated_blocks(ranks: Any) -> None:
    for rank in ranks:
        assert any(".visual_mlp." in name for name in rank["expert"]["gradients"])
        assert any(".gated_cross_attn_layer." in name for name in rank["cross"]["gradients"])


@pytest.mark.parametrize("name", MODELS)
def test_decoding_with_a_cache_gives_the_ids_of_one(name: str, ranks: Any) -> None:
    assert all(rank[name]["decoded"] for rank in ranks)


def test_division_is_taken_back(ranks: Any) -> None:
    for rank in ranks:
        assert [rank[name]["undone"] for name in ("phi3", "mpt", "qwen3")] == [True] * 3


@pytest.mark.parametrize("kind", ["training", "adapters"])
def test_five_updates_are_those_of_one(kind: str, ranks: Any) -> None:
    for found in (rank[kind] for rank in ranks):
        one, two = found["runs"]
        assert one[0][0] - one[-1][0] > 0.01, "nothing was learned"
        for (loss, norm), (other, others) in zip(one, two, strict=True):
            assert abs(loss - other) < 1e-5 * loss
            assert abs(norm - others) < 1e-5 * norm
        assert found["weights"] < 1e-4
        assert found["names"]
