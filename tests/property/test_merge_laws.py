"""Laws of merging over random tensors: a model with itself, one weight of all, order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retinue.hub.merge import MERGERS
from retinue.hub.merge.base import Part

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4)]
WHOLE = {"ties": {"density": 1.0}, "dare_linear": {"density": 1.0}, "dare_ties": {"density": 1.0}}
"""Fields with which a method drops nothing."""

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
kinds = pytest.mark.parametrize("kind", MERGERS.names())


def draw(shape: tuple[int, ...], count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(len(shape) + 10 * count)
    return [torch.randn(shape, generator=source) for _ in range(count)]


def run(kind: str, pairs: list[tuple[Tensor, float]], base: Tensor, **fields: Any) -> Tensor:
    merger: Any = MERGERS.get(kind)(**{**WHOLE.get(kind, {}), **fields})  # type: ignore[call-arg]
    given = [Part(x_T=x, weight=w, stream=f"{n}/x") for n, (x, w) in enumerate(pairs)]
    before = [x.clone() for x, _ in pairs]
    found: Tensor = merger.merge(given, base_T=base)
    assert all(torch.equal(x, old) for (x, _), old in zip(pairs, before, strict=True))
    return found


@shapes
@kinds
def test_a_model_with_itself_is_itself(kind: str, shape: tuple[int, ...]) -> None:
    a, base = draw(shape, 2)
    weights = (0.3, 0.7)
    found = run(kind, [(a, w) for w in weights], base)
    exact = kind in ("linear", "slerp")
    torch.testing.assert_close(found, a, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)


@shapes
@kinds
def test_one_model_alone_comes_out_again(kind: str, shape: tuple[int, ...]) -> None:
    a, base = draw(shape, 2)
    torch.testing.assert_close(run(kind, [(a, 1.0)], base), a, rtol=1e-5, atol=1e-6)


@shapes
@pytest.mark.parametrize("kind", ["task", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_the_base_with_itself_is_the_base(
    kind: str, shape: tuple[int, ...], density: float
) -> None:
    (base,) = draw(shape, 1)
    fields = {} if kind == "task" else {"density": density}
    assert torch.equal(run(kind, [(base, 0.4), (base, 1.3)], base, **fields), base)


@shapes
@pytest.mark.parametrize("kind", ["linear", "task", "ties"])
def test_the_order_of_models_does_not_matter(kind: str, shape: tuple[int, ...]) -> None:
    *models, base = draw(shape, 5)
    pairs = list(zip(models, (0.5, 1.0, 0.25, 2.0), strict=True))
    for fields in ({}, {"density": 0.4}) if kind == "ties" else ({},):
        found = [run(kind, order, base, **fields) for order in (pairs, pairs[::-1])]
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@shapes
def test_slerp_runs_both_ways(shape: tuple[int, ...]) -> None:
    a, b, base = draw(shape, 3)
    there = run("slerp", [(a, 0.2), (b, 0.8)], base)
    torch.testing.assert_close(there, run("slerp", [(b, 0.8), (a, 0.2)], base))
