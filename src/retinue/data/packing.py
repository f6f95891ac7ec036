"""First-fit-decreasing: samples into packs under a token budget and a picture budget."""

from __future__ import annotations

from collections.abc import Sequence


def first_fit_decreasing(
    indices: Sequence[int],
    *,
    tokens: Sequence[int],
    views: Sequence[int],
    max_tokens: int,
    max_views: int | None = None,
) -> list[list[int]]:
    """Packs of `indices`, longest first into the first pack with room; each index once.

    tokens and views are looked up by index. A sample that alone exceeds a budget must not come
    here (the plan refuses or shortens it). Johnson 1973: at most 11/9 of the optimum.
    """
    picture_room = max_views if max_views is not None else sum(views[i] for i in indices)
    packs: list[list[int]] = []
    rooms: list[list[int]] = []
    open_packs: list[int] = []
    ranked = sorted(indices, key=lambda i: (-tokens[i], i))
    shortest = tokens[ranked[-1]] if ranked else 0
    for i in ranked:
        assert tokens[i] <= max_tokens
        assert views[i] <= picture_room
        for at, k in enumerate(open_packs):
            room = rooms[k]
            if tokens[i] <= room[0] and views[i] <= room[1]:
                packs[k].append(i)
                room[0] -= tokens[i]
                room[1] -= views[i]
                if room[0] < shortest:
                    del open_packs[at]
                break
        else:
            packs.append([i])
            rooms.append([max_tokens - tokens[i], picture_room - views[i]])
            if rooms[-1][0] >= shortest:
                open_packs.append(len(packs) - 1)
    return packs


def efficiency(packs: Sequence[Sequence[int]], tokens: Sequence[int], *, max_tokens: int) -> float:
    """Share of the packs' room that holds tokens, 0 to 1."""
    if not packs:
        return 1.0
    return sum(tokens[i] for pack in packs for i in pack) / (len(packs) * max_tokens)
