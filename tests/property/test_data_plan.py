"""Plans and mixtures: every sample once per ratio, budgets kept, pure functions of their inputs."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.core.errors import ConfigError, DataError
from retinue.data.index import LengthIndex
from retinue.data.mixture import Mixture, Source, by_share
from retinue.data.packing import efficiency, first_fit_decreasing
from retinue.data.plan import EpochPlan, Schedule, plan_epoch
from retinue.data.sampler import SAMPLERS, Sizes
from retinue.data.spec import DataSpec

SOURCES = [{"path": "x"}]


def sizes_of(tokens: list[int]) -> Sizes:
    return Sizes(
        tokens=tokens,
        views=[t % 3 for t in tokens],
        words=[t // 2 + 1 for t in tokens],
        types=[None] * len(tokens),
    )


def mixture(*parts: tuple[int, float]) -> Mixture:
    return Mixture(
        [
            Source(
                name=f"{k}",
                format=SimpleNamespace(),  # type: ignore[arg-type]
                index=LengthIndex(
                    ids=[f"{k}-{i}" for i in range(n)], tokens=[1] * n, views=[0] * n, words=[1] * n
                ),
                rows=range(n),
                ratio=ratio,
            )
            for k, (n, ratio) in enumerate(parts)
        ]
    )


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=70)
samplers = st.sampled_from(sorted(SAMPLERS))
packings = st.sampled_from(["none", "step", "window"])


@settings(max_examples=80, deadline=None)
@given(lengths, samplers, packings, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_every_sample_once_and_budgets_kept(
    tokens: list[int], sampler: str, packing: str, micro: int, per_step: int, epoch: int
) -> None:
    sizes = sizes_of(tokens)
    spec = DataSpec(
        sources=SOURCES, sampler=sampler, packing=packing, max_tokens=64, max_views=5, window=16
    )

    def plan(epoch: int) -> EpochPlan:
        return plan_epoch(
            sizes,
            range(len(tokens)),
            spec=spec,
            epoch=epoch,
            global_batch=micro * per_step,
            micro_batch=micro,
        )

    made = plan(epoch)
    assert made == plan(epoch)
    flat = [i for step in made.steps for pack in step for i in pack]
    assert sorted(flat) == list(range(len(tokens)))
    for step in made.steps:
        assert all(step)
        count = len(step) if packing == "window" else sum(map(len, step))
        assert count == micro * per_step or step is made.steps[-1]
        for pack in step:
            if packing == "none":
                assert len(pack) <= micro
            else:
                assert sum(tokens[i] for i in pack) <= 64
                assert sum(sizes.views[i] for i in pack) <= 5


@settings(max_examples=60, deadline=None)
@given(lengths, packings, st.integers(1, 5), st.integers(1, 5))
def test_ranks_share_a_step_whatever_their_number(
    tokens: list[int], packing: str, per_step: int, world: int
) -> None:
    spec = DataSpec(sources=SOURCES, packing=packing, max_tokens=64)
    plan = plan_epoch(
        sizes_of(tokens), range(len(tokens)), spec=spec, epoch=0, global_batch=per_step
    )
    for step, micro in enumerate(plan.steps):
        shares = [plan.shard(step, rank=rank, world=world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        real = [i for share in shares for one in share if not one.filler for i in one.samples]
        assert sorted(real) == sorted(i for pack in micro for i in pack)
        if len(micro) % world == 0:
            assert [list(one.samples) for one in shares[0]] == micro[::world]


def test_epochs_differ_and_seeds_differ() -> None:
    sizes = sizes_of(list(range(1, 60)))

    def steps(sampler: str, epoch: int, seed: int = 0) -> list[list[list[int]]]:
        spec = DataSpec(sources=SOURCES, sampler=sampler, seed=seed)
        return plan_epoch(
            sizes, range(59), spec=spec, epoch=epoch, global_batch=4, micro_batch=2
        ).steps

    for sampler in SAMPLERS:
        if sampler in ("sequential", "accessory-sorted"):
            assert steps(sampler, 0) == steps(sampler, 1)
            continue
        assert steps(sampler, 0) != steps(sampler, 1)
        assert steps(sampler, 0) != steps(sampler, 0, seed=1)


def test_length_sampler_makes_steps_of_similar_length() -> None:
    tokens = [(37 * i) % 101 + 1 for i in range(100)]

    def waste(sampler: str) -> float:
        spec = DataSpec(sources=SOURCES, sampler=sampler)
        plan = plan_epoch(sizes_of(tokens), range(100), spec=spec, epoch=0, global_batch=4)
        return sum(max(tokens[m[0]] for m in s) * len(s) for s in plan.steps) / sum(tokens)

    assert waste("length") < 1.05 < waste("shuffle")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 3.5)), min_size=1, max_size=3),
    st.integers(0, 4),
)
def test_ratios(parts: list[tuple[int, float]], epoch: int) -> None:
    mix = mixture(*parts)
    chosen = mix.epoch(epoch)
    assert chosen == mix.epoch(epoch)
    counts = Counter(chosen)
    first = 0
    for n, ratio in parts:
        visits = [counts[i] for i in range(first, first + n)]
        assert abs(sum(visits) - ratio * n) <= 1
        assert max(visits) - min(visits) <= 1
        first += n


def test_half_a_source_is_the_other_half_next_epoch() -> None:
    mix = mixture((10, 0.5), (4, 2.0))
    first, second = mix.epoch(0), mix.epoch(1)
    halves = [{i for i in chosen if i < 10} for chosen in (first, second)]
    assert halves[0] | halves[1] == set(range(10))
    assert [len(half) for half in halves] == [5, 5]
    assert [i for i in first if i >= 10] == sorted([10, 11, 12, 13] * 2)
    assert mix.epoch(0, seed=1) != first


@settings(max_examples=60, deadline=None)
@given(lengths)
def test_first_fit_decreasing_is_tight(tokens: list[int]) -> None:
    packs = first_fit_decreasing(
        range(len(tokens)), tokens=tokens, views=[0] * len(tokens), max_tokens=64
    )
    assert sorted(i for pack in packs for i in pack) == list(range(len(tokens)))
    totals = [sum(tokens[i] for i in pack) for pack in packs]
    assert max(totals) <= 64
    assert sum(total <= 32 for total in totals) <= 1
    assert efficiency(packs, tokens, max_tokens=64) == sum(tokens) / (64 * len(packs))


@pytest.mark.parametrize(("overlong", "kept"), [("truncate", 3), ("skip", 2)])
def test_overlong_samples(overlong: str, kept: int) -> None:
    spec = DataSpec(
        sources=SOURCES, packing="window", max_tokens=50, max_views=9, overlong=overlong
    )
    plan = plan_epoch(sizes_of([10, 80, 20]), range(3), spec=spec, epoch=0, global_batch=1)
    assert sum(len(pack) for step in plan.steps for pack in step) == kept
    assert plan.overlong == ([] if overlong == "truncate" else [1])


def test_overlong_and_indivisible_are_refused_with_the_numbers() -> None:
    sizes = sizes_of([10, 80, 20])
    strict = DataSpec(sources=SOURCES, max_tokens=50, overlong="error")
    with pytest.raises(DataError, match=r"1 samples exceed .* 80 tokens .*max_tokens 50.*truncate"):
        plan_epoch(sizes, range(3), spec=strict, epoch=0, global_batch=1)
    few = DataSpec(sources=SOURCES, max_views=1)
    with pytest.raises(DataError, match=r"2 samples exceed .* max_views 1"):
        plan_epoch(sizes, range(3), spec=few, epoch=0, global_batch=1)
    with pytest.raises(ConfigError, match=r"global_batch 6 is no multiple .*6 / 4 = 1.50.*use .*8"):
        plan_epoch(
            sizes, range(3), spec=DataSpec(sources=SOURCES), epoch=0, global_batch=6, micro_batch=4
        )


def test_schedule_counts_global_steps_over_epochs() -> None:
    spec = DataSpec(sources=SOURCES, drop_last=True)
    sizes = sizes_of(list(range(1, 12)))
    schedule = Schedule(
        lambda epoch: plan_epoch(sizes, range(11), spec=spec, epoch=epoch, global_batch=3)
    )
    assert [schedule.locate(step) for step in (0, 2, 3, 7)] == [(0, 0), (0, 2), (1, 0), (2, 1)]
    assert (schedule.num_steps(2), schedule.num_steps(2.34)) == (6, 7)
    assert schedule.shard(3) == schedule.epoch(1).shard(0)
    empty = Schedule(
        lambda epoch: plan_epoch(sizes, range(11), spec=spec, epoch=epoch, global_batch=12)
    )
    with pytest.raises(DataError, match=r"epoch 0 has no step .*lower global_batch"):
        empty.locate(0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 90), min_size=1, max_size=50), st.floats(0.05, 1.0)),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 3),
)
def test_shares_are_of_tokens_and_no_record_is_left_out(
    parts: list[tuple[list[int], float]], epoch: int
) -> None:
    sources = [
        Source(
            name=str(k),
            format=SimpleNamespace(),  # type: ignore[arg-type]
            index=LengthIndex(
                ids=[f"{k}-{i}" for i in range(len(tokens))],
                tokens=tokens,
                views=[0] * len(tokens),
                words=tokens,
            ),
            rows=range(len(tokens)),
        )
        for k, (tokens, _) in enumerate(parts)
    ]
    made = by_share(sources, [share for _, share in parts])
    visits = Counter(Mixture(made).epoch(epoch))
    assert all(visits[i] for i in range(sum(len(tokens) for tokens, _ in parts)))
    held = [ratio.ratio * sum(tokens) for ratio, (tokens, _) in zip(made, parts, strict=True)]
    for tokens, (_, share) in zip(held, parts, strict=True):
        assert tokens / sum(held) == pytest.approx(share / sum(s for _, s in parts))
    assert min(one.ratio for one in made) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "sources",
    [
        [{"path": "a", "share": 0.5}, {"path": "b"}],
        [{"path": "a", "share": 0.5, "ratio": 2.0}, {"path": "b", "share": 0.5}],
    ],
)
def test_shares_stand_alone(sources: list[dict[str, object]]) -> None:
    with pytest.raises(ConfigError, match="give every source a share"):
        DataSpec.parse({"sources": sources}, where="data")
