"""What the environment says of a launch: torchrun's variables, or SLURM's where they are absent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from retinue.core.errors import ConfigError, EnvError
from retinue.core.log import get_logger, rank

FIRST_PORT, PORTS = 20000, 20000
"""SLURM gives no port: the job's number chooses one, so that two jobs on a machine differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """This process among those of a launch. local: its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    address: str = "127.0.0.1"
    port: int = 29500

    @property
    def variables(self) -> dict[str, str]:
        """The same as torchrun would say it."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def launch_of(environment: Mapping[str, str]) -> Launch:
    """The launch that an environment describes; one process where it says nothing.

    Raises ConfigError for values that are no numbers, and for a rank that is none of the launch.
    """
    if "WORLD_SIZE" in environment or "RANK" in environment:
        found = _torchrun(environment)
    elif _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") > 1:
        found = _slurm(environment)
    else:
        return Launch()
    if not 0 <= found.rank < found.size:
        raise ConfigError(
            f"this process is number {found.rank} of {found.size}",
            where="RANK, WORLD_SIZE" if "RANK" in environment else "SLURM_PROCID, SLURM_NTASKS",
            rule="numbers run from 0 to the number of processes less one",
            fix="start through torchrun or srun, or unset these variables",
        )
    return found


def adopt(environment: MutableMapping[str, str] | None = None) -> Launch:
    """As `launch_of`, and write SLURM's launch down as torchrun's variables, which torch reads."""
    environment = os.environ if environment is None else environment
    found = launch_of(environment)
    if found.size > 1 and "WORLD_SIZE" not in environment:
        for name, value in found.variables.items():
            environment.setdefault(name, value)
        get_logger().info(
            f"process {found.rank} of {found.size} (SLURM), meeting at {found.address}:{found.port}"
        )
    return found


def _torchrun(environment: Mapping[str, str]) -> Launch:
    rank = _number(environment, "RANK", default=0)
    return Launch(
        rank=rank,
        size=_number(environment, "WORLD_SIZE", default=1),
        local=_number(environment, "LOCAL_RANK", "SLURM_LOCALID", default=rank),
        address=environment.get("MASTER_ADDR", "127.0.0.1"),
        port=_number(environment, "MASTER_PORT", default=29500),
    )


def _slurm(environment: Mapping[str, str]) -> Launch:
    nodes = (
        environment.get("SLURM_STEP_NODELIST")
        or environment.get("SLURM_NODELIST")
        or environment.get("SLURM_JOB_NODELIST")
        or "127.0.0.1"
    )
    job = _number(environment, "SLURM_JOB_ID", "SLURM_JOBID", default=0)
    return Launch(
        rank=_number(environment, "SLURM_PROCID"),
        size=_number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
        local=_number(environment, "SLURM_LOCALID", default=0),
        address=environment.get("MASTER_ADDR") or first_host(nodes),
        port=_number(environment, "MASTER_PORT", default=FIRST_PORT + job % PORTS),
    )


def first_host(nodes: str) -> str:
    """`gpu-[03-05,9],login` -> `gpu-03`: the first name of SLURM's compressed list."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes.strip())
    assert found is not None
    return "".join(part or "" for part in found.groups())


def _number(environment: Mapping[str, str], *names: str, default: int = 0) -> int:
    for name in names:
        if text := environment.get(name, "").strip():
            if not re.fullmatch(r"-?\d+", text):
                raise ConfigError(
                    f"{text!r} is no number", where=name, rule="a launch gives whole numbers"
                )
            return int(text)
    return default


DISTRIBUTED = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")


def peers_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the launch is gone, or cannot be met."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & set(DISTRIBUTED):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def alone(error: BaseException) -> EnvError:
    """What the user is told where `peers_lost`."""
    found = re.search(r"(Connection \w+ by peer|[Tt]imed? ?out[^.\n]*)", str(error))
    return EnvError(
        "another process of this launch has ended or cannot be met",
        where=f"process {rank()}",
        rule=found[1] if found else None,
        fix="see what it said; the same command goes on from the last checkpoint",
    )
