"""Two processes that share every layer compute what one does: losses, gradients, ids, training.

All cases run in one pair of processes.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from retinue.hub.save import save
from retinue.model.adapters import LoraTarget, add_lora, save_adapter
from tiny import tiny_model
from tiny_divided import MODELS, work
from tiny_tensor import on_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("shared")
    model, processor = tiny_model(seed=2)
    save(model, processor, folder / "model")
    layers = ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"]
    add_lora(model, {f"lm.model.layers.0.{n}": LoraTarget(r=2, alpha=4) for n in layers})
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    save_adapter(model, folder / "adapter")
    return on_ranks(work, folder)


@pytest.mark.parametrize("name", [*MODELS, "expert", "cross"])
def test_losses_and_gradients_are_those_of_one(name: str, ranks: Any) -> None:
    for found in (rank[name] for rank in ranks):
        assert found["loss"] < 1e-6
        assert found["logits"] < 1e-5
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


def test_a_folder_is_read_in_parts_with_its_adapter(ranks: Any) -> None:
    """Each process reads half of every projection; one that only follows reads the layers alone."""
    for found in (rank["opened"] for rank in ranks):
        assert found["logits"] < 1e-5
        assert len(found["parts"]) == 14
        assert set(found["parts"].values()) == {0.5}
        halves = [name.rpartition(".layers.0.")[2] for name in found["adapters"]]
        assert halves == [
            "self_attn.q_proj.lora_B.default.weight",
            "self_attn.o_proj.lora_A.default.weight",
            "mlp.down_proj.lora_A.default.weight",
        ]
        assert not found["bare"]


def test_division_is_taken_back(ranks: Any) -> None:
    for rank in ranks:
        assert [rank[name]["undone"] for name in ("phi3", "mpt-1b", "qwen3")] == [True] * 3


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
