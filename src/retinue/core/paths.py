"""Where things lie: caches, run folders, packaged recipes, and what a PATH argument means."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.registry import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class HubId:
    """`owner/name[@revision][:subfolder]`: a repository of the hub, or a folder inside one."""

    owner: str
    name: str
    revision: str | None = None
    subfolder: str | None = None

    @property
    def repo(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.subfolder}" if self.subfolder else "")

    @staticmethod
    def parse(text: str) -> HubId | None:
        """Read a hub id from text alone, touching no disk; None if it is written otherwise."""
        found = _HUB_ID.fullmatch(text)
        if found is None:
            return None
        owner, name, revision, subfolder = found.groups()
        if subfolder is not None:
            subfolder = subfolder.rstrip("/")
            if not subfolder or any(part in ("", ".", "..") for part in subfolder.split("/")):
                return None
        return HubId(owner=owner, name=name, revision=revision, subfolder=subfolder)


_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_HUB_ID = re.compile(rf"({_WORD})/({_WORD})(?:@([A-Za-z0-9][\w./-]*))?(?::([^:@\s]+))?")


def locate(text: str | Path) -> Path | HubId:
    """A PATH argument: an existing local file or folder wins, then a hub id.

    Raises CheckpointError if it is neither.
    """
    path = Path(text).expanduser()
    if path.exists():
        return path
    hub = HubId.parse(str(text)) if isinstance(text, str) else None
    if hub is None:
        raise CheckpointError(
            "does not exist",
            where=str(text),
            rule="PATH is a local folder or owner/name[@revision][:subfolder] on the hub",
        )
    return hub


def cache_dir(*parts: str) -> Path:
    """Folder for what can be made again: $RETINUE_CACHE, or the user's cache. Not created."""
    given = os.environ.get("RETINUE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given) if given else Path(base) / "retinue").joinpath(*parts)


def run_dir(name: str, *, root: str | Path = "runs") -> Path:
    """Folder of the run called `name`, a recipe's name or file: `runs/NAME`. Not created."""
    name = Path(name).stem if name.endswith(".yaml") else name
    return Path(root) / re.sub(r"[^\w.-]+", "-", name).strip("-.")


def recipes() -> dict[str, Path]:
    """Packaged recipes: `llava15-7b/sft` -> file; `_`-files are only there to be included."""
    return {name: path for name, path in _packaged().items() if not path.name.startswith("_")}


def tasks() -> dict[str, Path]:
    """Packaged benchmarks: `pope` -> its YAML file."""
    root = Path(str(resources.files("retinue") / "eval" / "tasks"))
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def _packaged() -> dict[str, Path]:
    root = Path(str(resources.files("retinue") / "recipes"))
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
    }


def find_recipe(text: str) -> Path:
    """The file of a recipe: a local file wins, then a packaged name, with or without `recipe:`.

    Raises ConfigError with the nearest name.
    """
    name = text.removeprefix("recipe:")
    local = Path(name).expanduser()
    if not text.startswith("recipe:") and local.is_file():
        return local
    known = _packaged()
    key = name.removesuffix(".yaml")
    if key in known:
        return known[key]
    hint = nearest(key, list(recipes()))
    raise ConfigError(
        "there is no such recipe" + (f"; did you mean {hint!r}?" if hint else ""),
        where=text,
        rule="a recipe is a YAML file or a name of `retinue ls recipes`",
    )
