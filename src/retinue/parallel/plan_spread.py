"""Which device holds which layer, where one device is too small for a model: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence

from retinue.core.errors import EnvError

RESERVE = 0.15
"""Share of a device's free memory that stays free for keys, values and activations."""
STEPS = 40
"""Halvings in the search for the evenest filling."""


def spread_layers(layers: Sequence[int], *, rest: int, room: Sequence[int]) -> list[int]:
    """For each layer, in order, the number of its device.

    layers: bytes of each; rest: bytes of everything else, which stays on the first device; room:
    free bytes of each device. The fewest devices that suffice are taken, and filled as evenly, by
    their room, as layers on end can be. Raises EnvError, with the sum, where all are too small.
    """
    for count in range(1, len(room) + 1):
        if _filled(layers, rest=rest, room=room[:count], share=1 - RESERVE) is None:
            continue
        low, high = 0.0, 1 - RESERVE
        for _ in range(STEPS):
            middle = (low + high) / 2
            if _filled(layers, rest=rest, room=room[:count], share=middle) is None:
                low = middle
            else:
                high = middle
        found = _filled(layers, rest=rest, room=room[:count], share=high)
        assert found is not None
        return found
    need, free = rest + sum(layers), sum(room)
    raise EnvError(
        f"{gigabytes(need)} of weights for {len(room)} device{'s' * (len(room) != 1)} with "
        f"{' + '.join(map(gigabytes, room))} = {gigabytes(free)} free",
        rule=f"{RESERVE:.0%} of each are kept for keys, values and activations, a layer is not cut "
        f"and {gigabytes(rest)} outside the layers stay on the first",
        fix="--quant int4, --dtype bf16, --device cpu, or more or larger devices",
    )


def _filled(
    layers: Sequence[int], *, rest: int, room: Sequence[int], share: float
) -> list[int] | None:
    """Layers put on one device after the other up to a share of its room; None if some are left."""
    places: list[int] = []
    device, used = 0, rest
    if used > room[0] * share:
        return None
    for size in layers:
        while used + size > room[device] * share:
            device, used = device + 1, 0
            if device == len(room):
                return None
        used += size
        places.append(device)
    return places


def gigabytes(number: int) -> str:
    """`13.5 GB`."""
    return f"{number / 1e9:.1f} GB"
