"""Muon beside AdamW: who moves by which, and a state that survives a round trip."""

from __future__ import annotations

import copy

import torch
from torch import nn

from retinue.train.muon import GatheredMuon, Together, hidden_matrix, with_muon
from retinue.train.state import load_optimizer_state, optimizer_state


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)))


def optimizer(model: nn.Module) -> Together:
    named = [(name, p) for name, p in model.named_parameters()]
    groups = []
    for decay, matrices in ((0.1, True), (0.0, False)):
        kept = [(f"a.{n}", p) for n, p in named if (p.dim() == 2) == matrices]
        groups.append(
            {
                "params": [p for _, p in kept],
                "names": [n for n, _ in kept],
                "weight_decay": decay,
                "lr": 0.1,
                "base_lr": 0.1,
            }
        )
    made = with_muon(groups, lr=0.1, betas=(0.9, 0.95), eps=1e-8)
    assert isinstance(made, Together)
    return made


def update(model: nn.Module, made: Together, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(5, 4)).square().sum().backward()
    made.step()
    made.zero_grad()


def test_matrices_of_numbered_layers_are_muons() -> None:
    matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    assert hidden_matrix("lm.model.layers.0.mlp.up_proj.weight", matrix)
    assert not hidden_matrix("lm.model.layers.0.input_layernorm.weight", vector)
    assert not hidden_matrix("lm.model.embed_tokens.weight", matrix)
    assert not hidden_matrix("lm.model.layers.0.q_proj.lora_A.default.weight", matrix)


def test_a_muon_step_is_orthogonal_and_a_bias_step_is_adams() -> None:
    model = net()
    made = optimizer(model)
    before = copy.deepcopy(model.state_dict())
    update(model, made, 1)
    moved = before["0.bias"] - model[0].bias.detach()
    torch.testing.assert_close(moved.abs(), torch.full((6,), 0.1), atol=1e-3, rtol=0)
    names = [n for g in made.parts[1].param_groups for n in g["names"]]
    assert names == ["a.0.weight", "a.1.0.weight", "a.1.1.weight"]
    step = (before["1.0.weight"] * (1 - 0.1 * 0.1) - model[1][0].weight.detach()) / 0.1
    singular = torch.linalg.svdvals(step)
    # Newton-Schulz brings all singular values near one common value
    assert float(singular.max() / singular.median()) < 2


def test_state_round_trip_continues_bit_for_bit() -> None:
    model = net()
    made = optimizer(model)
    update(model, made, 1)
    saved = copy.deepcopy((model.state_dict(), optimizer_state(made)))
    update(model, made, 2)
    again = net()
    again.load_state_dict(saved[0])
    other = optimizer(again)
    load_optimizer_state(other, saved[1])
    update(again, other, 2)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_many_matrices_at_once_move_as_torchs_muon_moves_each() -> None:
    torch.manual_seed(0)
    shapes = [(6, 8), (8, 6), (6, 8), (6, 8), (4, 4), (8, 6)]
    start = [torch.randn(*shape) for shape in shapes]
    options = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.95}
    sides = []
    for kind in (torch.optim.Muon, GatheredMuon):
        matrices = [nn.Parameter(value.clone()) for value in start]
        made = kind(matrices, adjust_lr_fn="match_rms_adamw", **options)
        generator = torch.Generator().manual_seed(1)
        for step in range(3):
            for number, matrix in enumerate(matrices):
                matrix.grad = torch.randn(matrix.shape, generator=generator)
                if (step, number) == (1, 2):
                    matrix.grad = None
            made.step()
        sides.append(matrices)
    for theirs, ours in zip(*sides, strict=True):
        # bfloat16 products of one or of many matrices may round another way
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
