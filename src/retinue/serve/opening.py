"""From the paths that a server is given to models with engines, and to adapters on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retinue.core.errors import ConfigError
from retinue.hub.adapters import attach
from retinue.hub.resolve import resolve
from retinue.hub.sources import open_folder
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.serve.adapters import Put
from retinue.serve.engine import EngineSpec
from retinue.serve.fetch import Fetcher
from retinue.serve.service import ServeSpec, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How this server opens models. load: reads one, on the device and in the dtype it serves in.

    base: what a folder without a language model stands on.
    """

    load: Callable[[str], tuple[Retinue, Processor]]
    engine: EngineSpec
    spec: ServeSpec
    base: str | Path | None = None
    fetcher: Fetcher | None = None

    def service(self, path: str, name: str) -> Service:
        """A model that is ready to be started. Raises RetinueError."""
        model, processor = self.load(path)
        return Service(
            model,
            processor,
            name=name,
            engine=self.engine,
            spec=self.spec,
            fetcher=self.fetcher,
            path=path,
        )

    def attach(self, service: Service, folder: str) -> Put:
        """What puts an adapter's folder into a served model. Raises RetinueError."""
        place = resolve(folder)
        opened = open_folder(service.path, base=self.base)

        def put(model: Retinue, key: str) -> None:
            attach(model, place, opened=opened, name=key, device=model.device)

        return put


def own_name(path: str) -> str:
    """A model's name in the API where none is given: the last part of its path."""
    return Path(path).expanduser().resolve().name


def named_paths(paths: list[str], name: str | None) -> dict[str, str]:
    """Name -> path of every model: `NAME=PATH`, or the path's last part.

    Raises ConfigError for two models of one name, or one name for several.
    """
    if name is not None and len(paths) > 1:
        raise ConfigError("--name is for one model", fix="write NAME=PATH for each of several")
    found: dict[str, str] = {}
    for entry in paths:
        given, mark, path = entry.partition("=")
        if not mark or not given or Path(entry).expanduser().exists():
            given, path = name or own_name(entry), entry
        if given in found:
            raise ConfigError(
                f"two models are called {given!r}",
                where=f"{found[given]} and {path}",
                fix="write NAME=PATH",
            )
        found[given] = path
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlace:
    """An adapter that requests may pick: of which model, under which name, from which folder."""

    model: str
    name: str
    folder: str


def adapter_places(entries: list[str], models: list[str]) -> tuple[list[str], list[AdapterPlace]]:
    """(folders that are always on, adapters to be picked) of `--adapter`'s values.

    `FOLDER` is always on; `NAME=FOLDER` is picked by request; `MODEL:NAME=FOLDER` says of which of
    several models. Raises ConfigError for a model that is not served.
    """
    always, picked = [], []
    for entry in entries:
        name, mark, folder = entry.partition("=")
        if not mark or not name or Path(entry).expanduser().exists():
            always.append(entry)
            continue
        model, colon, own = name.rpartition(":")
        model, name = (model, own) if colon else (models[0], name)
        if model not in models or (not colon and len(models) > 1):
            raise ConfigError(
                f"--adapter {entry}",
                rule=f"the models are {', '.join(models)}",
                fix="write MODEL:NAME=FOLDER",
            )
        picked.append(AdapterPlace(model=model, name=name, folder=folder))
    if always and len(models) > 1:
        raise ConfigError(
            f"--adapter {always[0]} is always on, and there are several models",
            fix="write MODEL:NAME=FOLDER, and let requests pick it",
        )
    return always, picked
