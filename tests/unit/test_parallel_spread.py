"""Layers over several devices: the arithmetic, what is moved, and a model on two of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retinue.core.errors import EnvError
from retinue.decode.chat import Chat
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.parallel.plan_spread import spread_layers
from retinue.parallel.spread import Carrier, SpreadLM
from retinue.serve.engine import Engine
from tiny import ask, picture, tiny_model
from tiny_serve import fused, serve

GB = 10**9


def test_one_device_takes_all_that_fits() -> None:
    assert spread_layers([GB] * 8, rest=GB, room=[11 * GB, 24 * GB]) == [0] * 8


def test_as_few_devices_as_suffice_filled_evenly() -> None:
    places = spread_layers([GB] * 12, rest=2 * GB, room=[10 * GB, 10 * GB, 10 * GB])
    assert places == [0] * 5 + [1] * 7  # 7 GB each: what is no layer is on the first
    assert spread_layers([GB] * 12, rest=0, room=[6 * GB, 12 * GB]) == [0] * 4 + [1] * 8
    assert spread_layers([GB] * 12, rest=GB, room=[6 * GB] * 3) == [0] * 4 + [1] * 5 + [2] * 3


@pytest.mark.parametrize("room", [[3 * GB], [3 * GB, 3 * GB], [GB // 2, 90 * GB]])
def test_too_little_room_is_refused_with_the_sum(room: list[int]) -> None:
    with pytest.raises(EnvError, match=r"7\.0 GB of weights for \d device.* free"):
        spread_layers([GB] * 6, rest=GB, room=room)


def test_a_layer_is_never_cut() -> None:
    with pytest.raises(EnvError, match="a layer is not cut"):
        spread_layers([5 * GB] * 3, rest=0, room=[9 * GB, 9 * GB])


@dataclass(frozen=True)
class Given:
    x: torch.Tensor
    other: int


def test_what_layers_are_given_is_moved_once_for_each_device() -> None:
    """`meta` stands for a second device."""
    home, away = torch.device("cpu"), torch.device("meta")
    carrier = Carrier(home)
    given, held = Given(torch.ones(2), 3), {"written": torch.ones(1)}
    first = carrier.carry(given, away)
    assert first.x.device == away
    assert first.other == 3
    assert carrier.carry(given, away) is first
    assert carrier.carry(given, home) is given
    assert carrier.carry(held, away) is held
    pair = carrier.carry((torch.ones(1), torch.ones(2)), away)
    assert [one.device for one in pair] == [away, away]
    layer = nn.Identity()
    carrier.bring_home(layer)
    layer(torch.ones(1))
    assert not carrier.moved


def room_for(model: Any, *, share: float) -> list[tuple[torch.device, int]]:
    """Two devices, each with room for a share of the model; for torch both are the CPU."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return [(torch.device("cpu", number), int(size * share)) for number in range(2)]


def test_a_model_on_two_devices_answers_as_on_one(tmp_path: Path) -> None:
    model, processor = tiny_model(seed=3, layers=4, intermediate_size=256)
    save(model, processor, tmp_path / "model")
    room = room_for(model, share=0.8)
    spread, _ = load(tmp_path / "model", device=room[0][0], room=room)
    assert type(spread.lm) is SpreadLM
    params = SamplingParams(max_new_tokens=8)
    for sample in ("what colour?", "how many?"):
        said = [
            "".join(Chat(one, processor, params=params).ask(sample, images=[picture(1)]))
            for one in (model, spread)
        ]
        assert said[0] == said[1]
    asked = [(ask(f"{n}", f"how many {n}?", picture(n)), params, None) for n in range(3)]
    engines = [serve(Engine(one, processor), asked) for one in (model, spread)]
    assert [a.tokens for a in engines[0].values()] == [a.tokens for a in engines[1].values()]


def test_enough_room_changes_nothing(tmp_path: Path) -> None:
    model, processor = tiny_model(seed=3)
    save(model, processor, tmp_path / "model")
    whole, _ = load(tmp_path / "model", room=room_for(model, share=2.0))
    assert type(whole.lm) is type(model.lm)


def test_cross_attention_stays_together(tmp_path: Path) -> None:
    model, processor = fused({"kind": "cross", "heads": 2, "head_width": 8}, layers=6)
    save(model, processor, tmp_path / "model")
    with pytest.raises(EnvError, match="fusion Cross keeps its layers together"):
        load(tmp_path / "model", room=room_for(model, share=1.0))
