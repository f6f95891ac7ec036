"""The released checkpoints of the five systems: what each is, and what shows that it loads."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from retinue.core.spec import Spec
from retinue.core.yamlio import load_yaml


class Released(Spec):
    """One checkpoint. id: on the hub, or a file's name; parts: what it was made of; licence: as its
    page or its base's names it; load: the command; test: the one that covers its format.

    scores: how published figures name it, its id if that is None.
    """

    id: str
    system: str
    parts: str
    licence: str
    load: str
    test: str
    scores: str | None = None
    note: str | None = None

    def owns(self, model: str) -> bool:
        """Whether a published figure's model is this checkpoint, at whatever budget or shots."""
        name = self.scores or self.id
        return model == name or model.startswith(f"{name}, ")


def released() -> list[Released]:
    """All of them, system by system."""
    path = Path(str(resources.files("retinue") / "hub" / "released.yaml"))
    rows, _ = load_yaml(path)
    return [Released.parse(row, where=f"{path} {row.get('id')}") for row in rows]
