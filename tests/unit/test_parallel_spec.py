"""What a launch and the `parallel:` section say: torchrun's variables, SLURM's, degrees, names."""

from __future__ import annotations

from typing import Any

import pytest

from retinue.cli.launch import declared, replicas
from retinue.cli.run_spec import compose_run
from retinue.core.errors import ConfigError
from retinue.parallel.launch import Launch, adopt, alone, first_host, launch_of, peers_lost
from retinue.parallel.spec import ParallelSpec

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "gpu-[03-05,9],login",
    "SLURM_JOB_ID": "1234567",
}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29511",
}


def test_one_process_where_nothing_is_said() -> None:
    assert launch_of({}) == Launch()
    assert launch_of({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}).size == 1


def test_torchruns_variables() -> None:
    found = launch_of(TORCHRUN)
    assert (found.rank, found.size, found.local) == (1, 2, 0)
    assert (found.address, found.port) == ("10.0.0.1", 29511)
    assert found.variables == TORCHRUN


def test_slurms_variables_where_torchruns_are_absent() -> None:
    found = launch_of(SLURM)
    assert (found.rank, found.size, found.local, found.address) == (5, 8, 1, "gpu-03")
    assert 20000 <= found.port < 40000
    assert launch_of({**SLURM, "SLURM_PROCID": "2"}).port == found.port
    assert launch_of({**SLURM, **TORCHRUN}) == launch_of(TORCHRUN)
    step = launch_of({**SLURM, "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NODELIST": "gpu-05"})
    assert (step.size, step.address) == (6, "gpu-05")
    told = launch_of({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1"})
    assert (told.address, told.port) == ("head", 1)


def test_slurms_launch_is_written_down_for_torch() -> None:
    environment = dict(SLURM)
    found = adopt(environment)
    assert {name: environment[name] for name in TORCHRUN} == found.variables
    assert launch_of(environment) == found
    alone_, before = dict(TORCHRUN), dict(TORCHRUN)
    adopt(alone_)
    assert alone_ == before


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("a,b", "a"), ("n[1-2]x,b", "n1x"), ("gpu[07,9]", "gpu07"), ("a-b-3", "a-b-3")],
)
def test_the_first_of_a_list_of_nodes(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "number 2 of 2"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "'first' is no number"),
        ({**SLURM, "SLURM_PROCID": "8"}, "SLURM_PROCID"),
    ],
)
def test_odd_variables_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        launch_of(environment)


@pytest.mark.parametrize(
    ("fields", "processes", "degrees"),
    [
        ({}, 4, (4, 1)),
        ({"tensor": 2}, 4, (2, 2)),
        ({"tensor": 2, "data": 3}, 6, (3, 2)),
        ({"tensor": 4}, 4, (1, 4)),
    ],
)
def test_degrees(fields: dict[str, Any], processes: int, degrees: tuple[int, int]) -> None:
    assert ParallelSpec.parse(fields).degrees(processes) == degrees


@pytest.mark.parametrize(
    ("fields", "processes", "said"),
    [
        ({"tensor": 2}, 3, r"3 / 2 = 1.5 data groups"),
        ({"tensor": 2}, 1, r"start 2 processes"),
        ({"data": 4}, 2, r"data 4 x tensor 1 does not give 2 processes"),
    ],
)
def test_degrees_that_do_not_fit(fields: dict[str, Any], processes: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ParallelSpec.parse(fields).degrees(processes)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("sdp", "keep"), ("fsdp", "reshard"), ("keep", "keep"), ("none", "none")],
)
def test_others_names_of_sharding(theirs: str, ours: str) -> None:
    assert ParallelSpec.parse({"shard": theirs}).shard == ours
    with pytest.raises(ConfigError, match="shard"):
        ParallelSpec.parse({"shard": f"{theirs}-odd"})


def test_processes_that_a_recipe_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert declared(ParallelSpec()) == 1
    assert declared(ParallelSpec(tensor=2)) == 2
    assert declared(ParallelSpec(tensor=2, data=3)) == 6
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert declared(ParallelSpec(tensor=2)) == 1
    with pytest.raises(ConfigError, match="torchrun or srun say how many"), replicas(2, []):
        pass


def test_weights_in_bf16_need_products_in_bf16() -> None:
    recipe = "llava15-7b/sft"
    compose_run(recipe, ["parallel.gather=bf16"])
    with pytest.raises(ConfigError, match=r"needs train\.precision=bf16"):
        compose_run(recipe, ["parallel.gather=bf16", "train.precision=fp32"])


def test_a_lost_process_is_told_in_one_line() -> None:
    error = RuntimeError("[/x/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1. GLHF!")
    assert peers_lost(error)
    assert not peers_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    line = str(alone(error))
    assert "another process of this launch has ended" in line
    assert "(Connection closed by peer)" in line
