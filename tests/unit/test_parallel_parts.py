"""Parts of sharding: FSDP2 taken off again, Muon of a shared matrix, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from retinue.core.errors import ConfigError
from retinue.train.muon import GatheredMuon
from retinue.train.objectives.elastic import Elastic, ElasticSpec
from retinue.train.optim import OptimSpec, make_optimizer
from tiny_ranks import together


def on_mesh(rank: int) -> dict[str, Any]:
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    from retinue.model.freeze import apply_rules
    from retinue.parallel.grid import Grid
    from retinue.parallel.mesh import DATA, join
    from retinue.parallel.spec import ParallelSpec
    from retinue.parallel.unwrap import unwrap
    from tiny_train import tiny_model

    device = torch.device("cpu")
    join(device)
    grid = Grid(ParallelSpec(shard="reshard"), device=device)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    before = {key for module in net.modules() for key in vars(module)}
    hooks = [len(m._forward_hooks) + len(m._state_dict_pre_hooks) for m in net.modules()]
    fully_shard(net[0], mesh=grid.mesh[DATA])
    fully_shard(net, mesh=grid.mesh[DATA])
    wrapped = [isinstance(module, FSDPModule) for module in net.modules()]
    net(torch.ones(2, 4)).sum().backward()
    net.zero_grad()
    for module in (net[0], net):
        module.reshard()
        unwrap(module)
    found: dict[str, Any] = {
        "wrapped": wrapped,
        "kinds": [type(module).__name__ for module in net.modules()],
        "left": {key for module in net.modules() for key in vars(module)} - before,
        "hooks": [len(m._forward_hooks) + len(m._state_dict_pre_hooks) for m in net.modules()]
        == hooks,
        "divided": [isinstance(p, DTensor) for p in net.parameters()],
    }
    for layer in (net[0], net[2]):
        for name, parameter in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(parameter.full_tensor()))
    fully_shard(net, mesh=grid.mesh[DATA])  # may be done again
    model = tiny_model()
    table = apply_rules(model, {"lm.**": "full"}, lr=1e-3)
    bytes_before = stored(model)
    grid.divide(model)
    with grid.plain(model):
        found["bytes"] = rank > 0 or stored(model) == bytes_before
    found["divided again"] = all(isinstance(p, DTensor) for p in model.parameters())
    full = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    moments = {name: {"exp_avg": value, "step": torch.tensor(3.0)} for name, value in full.items()}
    shared = grid.like(model, moments)
    found["parts"] = all(isinstance(one["exp_avg"], DTensor) for one in shared.values())
    back = grid.whole(model, shared)
    found["moments"] = rank > 0 or all(
        torch.equal(back[name]["exp_avg"], value) and back[name]["step"] == 3
        for name, value in full.items()
    )
    refused = {}
    for name, ask in (
        ("8 bits", lambda: make_optimizer(model, table, spec=OptimSpec(kind="adamw8bit", lr=1.0))),
        ("accumulated", lambda: grid.check(Elastic(ElasticSpec(form="accumulated")))),
    ):
        try:
            ask()
        except ConfigError as error:
            refused[name] = str(error)
    torch.manual_seed(0)
    whole, grad = torch.randn(6, 5), torch.randn(6, 5)
    pieces = nn.Linear(5, 6, bias=False)
    pieces.weight.data = whole.clone()
    fully_shard(pieces, mesh=grid.mesh[DATA])
    matrix = pieces.weight
    first, second = muons(nn.Parameter(whole.clone())), muons(matrix)
    for step in range(2):
        first[0].grad = grad * (1 + step)
        part = (grad * (1 + step)).chunk(2)[rank]
        second[0].grad = DTensor.from_local(part, grid.mesh[DATA], matrix.placements)
        first[1].step()
        second[1].step()
    assert isinstance(second[0], DTensor)
    found["muon"] = torch.equal(second[0].full_tensor(), first[0])
    return {**found, "refused": refused}


def stored(model: nn.Module) -> bytes:
    """What a weights file would hold."""
    return save({name: value.contiguous() for name, value in model.state_dict().items()})


def muons(parameter: nn.Parameter) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    kind = GatheredMuon if hasattr(parameter, "device_mesh") else torch.optim.Muon
    return parameter, kind([parameter], lr=0.1, adjust_lr_fn="match_rms_adamw")


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return together(2, on_mesh)


def test_fsdp_is_taken_off_again(ranks: Any) -> None:
    for found in ranks:
        assert found["wrapped"] == [True, True, False, False]
        assert found["kinds"] == ["Sequential", "Linear", "ReLU", "Linear"]
        assert found["left"] == set()
        assert found["hooks"]
        assert all(found["divided"])


def test_files_of_a_divided_model_are_those_of_a_whole_one(ranks: Any) -> None:
    """Bit by bit, and so are moments that are laid out and gathered again."""
    for found in ranks:
        assert found["bytes"]
        assert found["divided again"]
        assert found["parts"]
        assert found["moments"]


def test_muon_of_a_shared_matrix_is_torchs_of_the_whole(ranks: Any) -> None:
    assert all(found["muon"] for found in ranks)


def test_what_cannot_be_shared_is_refused(ranks: Any) -> None:
    for found in ranks:
        assert "use adamw, whose moments are divided" in found["refused"]["8 bits"]
        assert "set objective.form=packed" in found["refused"]["accumulated"]
