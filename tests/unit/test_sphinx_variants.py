"""Every variant of SPHINX from a tiny folder of its own: probed by contents, seen, answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from retinue.hub.load import load
from retinue.types import Grid, Media, Message, Sample, Text, Visual
from tiny_sphinx import tiny

WORDS = {
    "llama_ens": 291,
    "llama_ens5": 1455,
    "llama_ens_light": 259,
    "llama_ens5_light": 1295,
    "mixtral_sparse_ens": 291,
    "mixtral_sparse_ens5": 1455,
    "llama_ens10": 2910,
    "llama_ens5p2": 687,
    "llama_qformerv2": 34,
}
"""Image tokens of each, with start and end: SPHINX's own counts."""


@pytest.mark.parametrize("name", list(WORDS))
@torch.no_grad()
def test_variant_loads_from_its_own_folder(name: str, tmp_path: Path, draw: Any) -> None:
    made, folder = tiny(name, tmp_path)
    assert json.loads((folder / "meta.json").read_text("utf-8")) == {"llama_type": name}
    anywhere = folder.rename(tmp_path / "a-folder-of-any-name")
    model, processor = load(anywhere)
    assert model.plan.spec == made.plan.spec
    state = made.state_dict()
    for key, value in model.state_dict().items():
        if "rotary" not in key:
            torch.testing.assert_close(value, state[key], msg=key)
    picture = draw(40, 30)
    ask = Sample(id="1", messages=(
        Message(role="user", parts=(Media(source=picture), Text(text="what is here"))),
    ))  # fmt: skip
    batch = processor([ask])
    (grid,) = batch.visual.grids
    assert model.plan.tokens_for(grid) == len(batch.visual.index) == WORDS[name]
    seen = model.look(batch.visual)
    assert seen.lengths == [WORDS[name]]
    assert seen.x_TD.isfinite().all()
    assert model.run(batch).logits.isfinite().all()


@torch.no_grad()
def test_halved_tiles_are_the_mean_of_neighbours(tmp_path: Path) -> None:
    """Projected after halving: by hand, tile by tile, from the encoders' features."""
    made, _ = tiny("llama_ens5p2", tmp_path)
    model = made.eval()
    grid = Grid(rows=2, cols=2, overview=True, size=(448, 448))
    pixels = torch.rand(5, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    visual = Visual(pixels={"rgb": pixels}, grids=[grid], budgets=[None],
                    spans=torch.tensor([[0, 0, 687]]), index=torch.arange(687))  # fmt: skip
    found = model.look(visual).x_TD
    node = model.connector.parts[1]
    mixed = node.of.of.encode(model.encode(visual)).x_NLD
    tile = mixed[3, 1:].unflatten(0, (16, 16)).permute(2, 0, 1)[None]
    half = torch.nn.functional.interpolate(tile, scale_factor=0.5, mode="bilinear")
    coarse = torch.cat([mixed[3, :1], half[0].flatten(1).T])
    wanted = node.norm(node.net(coarse))
    begin = 291 + 2 * 99 + 1 + 32
    torch.testing.assert_close(found[begin : begin + 65], wanted, atol=1e-5, rtol=0)
