"""Two processes that divide weights, gradients and moments train as one process does.

All cases run in one pair of processes; pictures are dealt unevenly (see `tiny_sharded`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_ranks import together
from tiny_sharded import BF16, CASES, all_cases, train

SHARDED = [name for name, case in CASES.items() if case["parallel"]["shard"] != "none"]
COUNT = 2


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Any]]]:
    return together(COUNT, all_cases)


@pytest.fixture(scope="module", params=CASES)
def both(request: Any, ranks: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process and what each of two found."""
    return train(CASES[request.param], alone=True), [rank[request.param] for rank in ranks]


def test_logits_losses_and_norms_are_those_of_one(both: Any) -> None:
    one, found = both
    for rank in found:
        torch.testing.assert_close(rank["logits"], one["logits"], atol=1e-5, rtol=0)
        for mine, theirs in zip(rank["updates"], one["updates"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-5)
        assert rank["validation"] == pytest.approx(one["validation"], abs=1e-5)


def test_weights_are_those_of_one_in_every_process(both: Any) -> None:
    one, found = both
    for rank in found:
        assert list(rank["weights"]) == list(one["weights"])
        for name, value in one["weights"].items():
            torch.testing.assert_close(rank["weights"][name], value, atol=1e-4, rtol=0, msg=name)
            assert torch.equal(rank["weights"][name], found[0]["weights"][name])


def test_the_first_process_gets_whole_moments(both: Any) -> None:
    one, found = both
    assert list(found[0]["moments"]) == list(one["moments"])
    for name, state in one["moments"].items():
        for key, value in state.items():
            torch.testing.assert_close(
                found[0]["moments"][name][key], value, atol=1e-4, rtol=1e-3, msg=f"{name} {key}"
            )


def test_the_same_parameters_go_without_gradient(both: Any) -> None:
    """Also where a process had none and filled in zeros: nobody's gradient stays none."""
    one, found = both
    assert any(one["untouched"][3])  # no picture anywhere
    for rank in found:
        assert rank["untouched"] == one["untouched"]


def test_the_model_is_itself_again(both: Any) -> None:
    one, found = both
    for rank in found:
        assert rank["kinds"] == one["kinds"]


def test_weights_that_travel_in_bf16_train_alike(ranks: Any) -> None:
    """Norms' weights and the states between layers are rounded as well: three digits."""
    one = train(BF16, alone=True)
    for rank in ranks:
        found = rank["bf16"]
        for mine, theirs in zip(found["updates"], one["updates"], strict=True):
            assert mine == pytest.approx(theirs, abs=5e-3, rel=2e-2)
        assert found["untouched"] == one["untouched"]
        assert {value.dtype for value in found["weights"].values()} == {torch.float32}


@pytest.mark.parametrize("name", SHARDED)
def test_every_parameter_is_divided(name: str, ranks: Any) -> None:
    """Local sizes are 1 / N along the first dimension; what N does not divide differs by a row."""
    for number, rank in enumerate(ranks):
        shapes = rank[name]["shapes"]
        assert len(shapes) > 20
        for path, (whole, local) in shapes.items():
            most = -(-whole[0] // COUNT)
            expected = min(most, max(0, whole[0] - number * most))
            assert local == (expected, *whole[1:]), path
