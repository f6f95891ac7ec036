"""How other processes that share the layers follow the engine's cache (`parallel.tensor_lead`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retinue.model.lm.causal import CausalLM
from retinue.serve.mirror import Mirror
from retinue.serve.pool import Pool, StepCache
from retinue.serve.request import Running


@dataclass(slots=True)
class Stand:
    """What a follower knows of a request: `Mirror` asks no more."""

    computed: int
    table: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecipe:
    """A step's rows: (who, cached tokens, new ones, blocks) each, in the engine's order.

    pool: its name, number of blocks and their size; mirror: number of the `Mirror` that holds rows
    that decode, None for a step that reads prompts.
    """

    rows: tuple[tuple[int, int, int, tuple[int, ...]], ...]
    pool: tuple[int, int, int]
    mirror: int | None

    def cache(self, lm: CausalLM, kept: dict[Any, Any]) -> StepCache:
        """The same view of this process's pool."""
        device = next(lm.parameters()).device
        key, blocks, size = self.pool
        pool: Pool = kept.setdefault(("pool", key), Pool(blocks, size=size))
        if self.mirror is None:
            return StepCache(
                pool,
                tables=[table for *_, table in self.rows],
                starts=[start for _, start, _, _ in self.rows],
                counts=[count for _, _, count, _ in self.rows],
                device=device,
            )
        place = ("mirror", key)
        number, mirror, stands = kept.get(place, (None, None, {}))
        if number != self.mirror:
            mirror, stands = Mirror(pool, device=device), {}
        rows = []
        for who, start, _, table in self.rows:
            stand = stands.setdefault(who, Stand(start, []))
            stand.computed, stand.table = start, list(table)
            rows.append(stand)
        mirror.arrange(rows)
        inside = {id(one) for one in mirror.order}
        stands = {who: stand for who, stand in stands.items() if id(stand) in inside}
        kept[place] = (self.mirror, mirror, stands)
        found: StepCache = mirror
        return found


def recipe_of(
    shares: Sequence[tuple[Running, int]], pool: Pool, *, mirror: Mirror | None
) -> StepRecipe:
    """What followers must know of a step, before its cache is made."""
    return StepRecipe(
        rows=tuple((id(one), one.computed, count, tuple(one.table)) for one, count in shares),
        pool=(id(pool), pool.slots // pool.size, pool.size),
        mirror=None if mirror is None else mirror.number,
    )
