"""One folder format to another, tensor by tensor, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch

from retinue.core.errors import ConfigError
from retinue.hub.files import SHARD_BYTES
from retinue.hub.load import TemplateChoice
from retinue.hub.sources import Encoders
from retinue.hub.targets import TARGETS
from retinue.hub.targets.base import Asked, ConvertReport, Files, TowerChoice


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: str,
    base: str | Path | None = None,
    encoders: Encoders = None,
    template: TemplateChoice = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tower: TowerChoice = "auto",
    files: Files = "safetensors",
    tokenizer: str | Path | None = None,
    release: str = "2.9",
    exact: bool = False,
    shards: int = 1,
) -> ConvertReport:
    """Write any folder that `load` reads in another format, `to` (`retinue ls targets`).

    Weights keep their bits unless `dtype` asks otherwise; adapters are folded in. tower, for both
    kinds of llava: `auto` writes it into the checkpoint unless the model came with a separate one
    that is unchanged. files: bin writes `pytorch_model.bin`, projector only `mm_projector.bin`.
    tokenizer: a folder, for sources that have none. release, exact: of mm_simple, the format's
    version, and whether to repeat its converter's defects. shards: of sphinx, number of files.
    Raises ConfigError for an unknown target or files that it has not; CheckpointError for what it
    cannot express; EnvError without room.
    """
    target = TARGETS.get(to)
    if files not in target.files:
        having = [name for name in TARGETS if files in TARGETS.get(name).files]
        raise ConfigError(f"{files} files of {to}", rule=f"only {', '.join(having)} have them")
    return target().convert(
        Asked(
            src=src,
            dst=Path(dst),
            base=base,
            encoders=encoders,
            template=template,
            dtype=dtype,
            shard_bytes=shard_bytes,
            tower=tower,
            files=files,
            tokenizer=tokenizer,
            release=release,
            exact=exact,
            shards=shards,
        )
    )
