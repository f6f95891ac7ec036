"""Where an original LLaVA's vision tower comes from: an override, a folder, the hub, itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retinue.convert.llava import ENCODER
from retinue.convert.towers import carried_tower, open_tower
from retinue.convert.translation import Tower
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.core.paths import HubId
from retinue.hub.resolve import fetch, resolve


def find_tower(
    config: Mapping[str, Any],
    *,
    beside: Sequence[Path],
    encoders: Mapping[str, str | Path] | None,
    carried: bool,
    frozen: bool = False,
) -> Tower:
    """The tower that a LLaVA config names.

    encoders: {name: PATH} overrides; beside: folders of the checkpoint and its base, whose parents
    a relative name may start from, as may the working folder; carried: the checkpoint holds the
    weights, which win over the tower's own unless it is frozen and its own are on this machine: of
    a tower that it did not train, the original writes a copy and never reads it. Raises
    CheckpointError if it is nowhere.
    """
    name = str(config.get("mm_vision_tower") or config.get("vision_tower") or "")
    given = override(encoders)
    if given is not None:
        return _open(resolve(given), str(given), carried=carried, frozen=frozen)
    if not name:
        raise CheckpointError(
            "its config names no mm_vision_tower", where=str(beside[0]), fix=NAME_ONE
        )
    places = [root / name for folder in beside for root in (folder, folder.parent)]
    for place in [*places, Path(name)]:
        if (place / "config.json").exists():
            return _open(place, str(place), carried=carried, frozen=frozen)
    published = carried_tower(name, Weights([])) if carried else None
    if published is not None:
        return published
    hub = HubId.parse(name)
    if hub is None:
        raise CheckpointError(
            f"its vision tower {name!r} is not found",
            where=str(beside[0]),
            rule="looked beside the checkpoint, in the working folder, and it is no hub id",
            fix=NAME_ONE,
        )
    return _open(fetch(hub, weights=not carried), str(hub), carried=carried)


NAME_ONE = "name it: encoders={'clip': PATH}, or --encoder clip=PATH"


def override(encoders: Mapping[str, str | Path] | None) -> str | Path | None:
    """The override for the one tower. Raises CheckpointError for a name it does not have."""
    if not encoders:
        return None
    if ENCODER not in encoders or len(encoders) > 1:
        raise CheckpointError(
            f"no encoder {', '.join(sorted(set(encoders) - {ENCODER}))}",
            rule=f"an imported LLaVA has one encoder, called {ENCODER!r}",
            fix=f"--encoder {ENCODER}=PATH",
        )
    return encoders[ENCODER]


def _open(folder: Path, source: str, *, carried: bool, frozen: bool = False) -> Tower:
    tower = open_tower(folder, source=source)
    if not carried or (frozen and tower.weights.files):
        return tower
    return replace(tower, weights=Weights([]), source=f"the checkpoint (sizes from {source})")
