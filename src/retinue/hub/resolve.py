"""PATH arguments: a local folder, or `owner/name[@revision][:subfolder]` fetched from the hub."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from retinue.core.errors import CheckpointError, EnvError
from retinue.core.log import get_logger
from retinue.core.paths import HubId, locate

SMALL = ("*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt", "spiece.model")
SIDE = (
    "mm_projector.bin",
    "non_lora_trainables.bin",
    "adapter_model.*",
    "adapter/*",
    "adapter/*/*",
)
SAFE = ("model.safetensors", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "consolidated.*.pth")

TRANSPORTS = ("httpx", "httpcore", "requests", "urllib3")
TIMEOUT_S = 10.0


def resolve(path: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a PATH; a hub id is downloaded into the hub's cache first.

    weights: False fetches only configs and tokenizer. Downloads resume and are cached; HF_ENDPOINT
    and HF_HUB_OFFLINE are honoured. Raises CheckpointError for a path or repository that does not
    exist, EnvError when the hub cannot be reached and the cache does not have it.
    """
    found = locate(path)
    return found if isinstance(found, Path) else fetch(found, weights=weights)


def fetch(hub: HubId, *, weights: bool = True) -> Path:
    """The local copy of a hub folder, only the files that loading needs."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hf

    try:
        # Unlike the file listing, this request is not retried: being offline shows at once.
        info = HfApi().model_info(hub.repo, revision=hub.revision, timeout=TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or []]
        files = needed(names, subfolder=hub.subfolder, weights=weights)
        if not files:
            raise CheckpointError(
                f"no config or weights under {hub.subfolder or 'the top folder'}",
                where=str(hub),
                rule=f"the repository holds {len(names)} other files",
                fix="name the folder as owner/name:subfolder",
            )
        root = snapshot_download(hub.repo, revision=hub.revision, allow_patterns=files)
    except hf.GatedRepoError as error:
        raise EnvError(
            "access to it must be granted first", where=str(hub), fix="ask on its page, then log in"
        ) from error
    except (hf.RepositoryNotFoundError, hf.RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, hf.RevisionNotFoundError) else "repository"
        raise CheckpointError(
            f"the hub has no such {what}, and there is no such local folder",
            where=str(hub),
            fix="check the spelling of owner/name[@revision][:subfolder]",
        ) from error
    except (OSError, hf.HfHubHTTPError, hf.OfflineModeIsEnabled) as error:
        return _cached(hub, error)
    except Exception as error:
        # The client's transport (httpx, by whichever name it is vendored) has its own errors.
        if not type(error).__module__.startswith(TRANSPORTS):
            raise
        return _cached(hub, error)
    return Path(root, *(hub.subfolder or "").split("/"))


def _cached(hub: HubId, error: Exception) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    prefix = f"{hub.subfolder}/" if hub.subfolder else ""
    line = str(error).strip().splitlines() or [type(error).__name__]
    try:
        # Only these are asked for: the cache never holds the files that loading does not need.
        root = snapshot_download(
            hub.repo,
            revision=hub.revision,
            local_files_only=True,
            allow_patterns=[prefix + name for name in ("config.json", "adapter_config.json")],
        )
        folder = Path(root, *(hub.subfolder or "").split("/"))
    except (LocalEntryNotFoundError, OSError):
        folder = None
    if folder is None or not any(folder.glob("*.json")):
        raise EnvError(
            "the hub cannot be reached and the cache does not have it",
            where=str(hub),
            rule=f"{type(error).__name__}: {line[0]:.160}",
            fix="check the network (HF_ENDPOINT, HF_HUB_OFFLINE), or give a local folder",
        ) from error
    get_logger().info(f"{hub}: hub not reachable, using the cached copy")
    return folder


def needed(names: list[str], *, subfolder: str | None, weights: bool) -> list[str]:
    """Which of a repository's files loading one folder takes; safetensors before pickles."""
    prefix = f"{subfolder}/" if subfolder else ""
    here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    patterns = list(SMALL)
    if weights:
        safe = any(_matches(name, SAFE) for name in here)
        patterns += [*SIDE, *(SAFE if safe else PICKLED)]
    wanted = [n for n in here if _matches(n, patterns)]
    if weights and safe:
        wanted = [name for name in wanted if name != "pytorch_model.bin.index.json"]
    return [prefix + name for name in wanted]


def _matches(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
        for pattern in patterns
    )
