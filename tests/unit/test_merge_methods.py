"""Each merge method against its formula written out number by number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.hub.merge import MERGERS
from retinue.hub.merge.base import Part
from retinue.hub.merge.sparse import drop, trim


def made(kind: str, **fields: Any) -> Any:
    return MERGERS.get(kind)(**fields)  # type: ignore[call-arg]


def parts(*pairs: tuple[Tensor, float]) -> list[Part]:
    return [Part(x_T=x, weight=w, stream=f"{n}/x") for n, (x, w) in enumerate(pairs)]


def random(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=source) for _ in range(count)]


def close(found: Tensor, wanted: list[float]) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_linear(normalize: bool) -> None:
    a, b, c = random(3, 4, 5)
    weights = (0.7, 2.0, -0.4)
    total = sum(weights) if normalize else 1.0
    wanted = [
        (weights[0] * x + weights[1] * y + weights[2] * z) / total
        for x, y, z in zip(*(t.flatten().tolist() for t in (a, b, c)), strict=True)
    ]
    given = parts(*zip((a, b, c), weights, strict=True))
    close(made("linear", normalize=normalize).merge(given), wanted)


def test_weights_that_cancel_are_refused() -> None:
    with pytest.raises(ConfigError, match="sum to 0"):
        made("linear").merge(parts(*zip(random(2, 3), (1.0, -1.0), strict=True)))


def test_slerp() -> None:
    a, b = random(2, 3, 4)
    t = 0.25
    x, y = a.flatten().tolist(), b.flatten().tolist()
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    angle = math.acos(dot / math.hypot(*x) / math.hypot(*y))
    wanted = [
        (math.sin((1 - t) * angle) * p + math.sin(t * angle) * q) / math.sin(angle)
        for p, q in zip(x, y, strict=True)
    ]
    close(made("slerp").merge(parts((a, 3.0), (b, 1.0))), wanted)


def test_slerp_of_one_direction_is_a_straight_line() -> None:
    (a,) = random(1, 6)
    for other in (a * 3, torch.zeros(6), -a):
        found = made("slerp").merge(parts((a, 0.5), (other, 0.5)))
        close(found, ((a + other) / 2).tolist())


def test_slerp_keeps_the_length_where_the_mean_shrinks() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    close(made("slerp").merge(parts((a, 1.0), (b, 1.0))), [0.5**0.5, 0.5**0.5])


def test_task_arithmetic() -> None:
    base, a, b = random(3, 2, 3)
    wanted = [
        z + 0.5 * (0.8 * (x - z) - 0.3 * (y - z))
        for z, x, y in zip(*(t.flatten().tolist() for t in (base, a, b)), strict=True)
    ]
    found = made("task", scale=0.5).merge(parts((a, 0.8), (b, -0.3)), base_T=base)
    close(found, wanted)


def test_trim_keeps_the_largest() -> None:
    x = torch.tensor([[0.1, -5.0, 2.0], [-2.0, 0.0, 2.0]])
    assert trim(x, density=0.5).tolist() == [
        [0, -5, 2],
        [-2, 0, 0],
    ]  # the later 2.0 is one too many
    assert trim(x, density=1.0).tolist() == x.tolist()
    assert trim(x, density=0.01).tolist() == torch.zeros(2, 3).tolist()


def test_ties_elects_signs_and_averages_who_agrees() -> None:
    """Four numbers: all agree; the heavier side wins; nobody wins; one alone survives the trim."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    a = base + torch.tensor([2.0, 3.0, 4.0, 0.5])
    b = base + torch.tensor([4.0, -1.0, -4.0, 5.0])
    c = base + torch.tensor([3.0, 1.0, 0.0, 0.0])
    ties = made("ties", density=0.75)  # a loses its 0.5; of c's two zeros one is kept: no matter
    found = ties.merge(parts((a, 1.0), (b, 1.0), (c, 1.0)), base_T=base)
    # b keeps 4, -4, 5 and loses its -1
    close(found, [1 + 3.0, 1 + 2.0, 1 + 0.0, 1 + 5.0])
    found = made("ties", density=1.0).merge(parts((a, 1.0), (b, 4.0), (c, 1.0)), base_T=base)
    # second: 3 - 4 + 1 = 0, so nobody; third: 4 - 16 < 0, so b alone; fourth: 0.5 and 20
    close(found, [1 + (2 + 16 + 3) / 6, 1.0, 1 - 4.0, 1 + 20.5 / 5])
    plain = made("ties", density=1.0, normalize=False, scale=0.5)
    found = plain.merge(parts((a, 1.0), (b, 4.0), (c, 1.0)), base_T=base)
    close(found, [1 + 21 / 2, 1.0, 1 - 16 / 2, 1 + 20.5 / 2])


def kept(delta: Tensor, *, density: float, seed: int) -> list[bool]:
    return [bool(x) for x in drop(torch.ones_like(delta), density=density, seed=seed).flatten()]


def test_drop_is_random_seeded_and_right_on_average() -> None:
    x = torch.ones(200, 100)
    first, again, other = (drop(x, density=0.3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sorted(set(first.flatten().tolist())) == pytest.approx([0, 1 / 0.3])
    assert float(first.mean()) == pytest.approx(1, abs=0.05)  # 20,000 numbers: 5 deviations
    assert torch.equal(drop(x, density=1.0, seed=1), x)


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties"])
def test_dare(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {"0/x": 11, "1/x": 12}
    monkeypatch.setattr(
        "retinue.hub.merge.sparse.stream_seed", lambda seed, purpose, name: seeds[name] + seed
    )
    base, a, b = random(3, 5, 4)
    found = made(kind, density=0.5, seed=3).merge(parts((a, 1.0), (b, 2.0)), base_T=base)
    masks = [kept(base, density=0.5, seed=seed + 3) for seed in seeds.values()]
    assert 0 < sum(masks[0]) < 20
    assert masks[0] != masks[1]
    wanted = []
    for n, (z, x, y) in enumerate(zip(*(t.flatten().tolist() for t in (base, a, b)), strict=True)):
        deltas = [(x - z) / 0.5 * masks[0][n], (y - z) / 0.5 * masks[1][n]]
        total = deltas[0] + 2 * deltas[1]
        if kind == "dare_ties":
            agree = [(d, w) for d, w in zip(deltas, (1, 2), strict=True) if d * total > 0]
            total = sum(d * w for d, w in agree) / max(sum(w for _, w in agree), 1)
        wanted.append(z + total)
    close(found, wanted)


def test_streams_of_dare_differ_by_place_and_seed() -> None:
    base, a = torch.zeros(1000), torch.ones(1000)
    found = [
        made("dare_linear", seed=seed).merge([Part(x_T=a, weight=1.0, stream=stream)], base_T=base)
        for seed, stream in ((0, "0/x"), (0, "0/x"), (1, "0/x"), (0, "1/x"), (0, "0/y"))
    ]
    assert torch.equal(found[0], found[1])
    assert len({tuple(x.tolist()) for x in found}) == 4
