"""Every variant of SPHINX from a tiny folder of its own: probed by contents, seen, answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from retinue.convert.sphinx import (
    FORMAT,
    IMAGE_ID,
    VARIANTS,
    connector,
    encoder_specs,
    layout,
    pictures,
)
from retinue.convert.translation import FOREIGN
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.text.train import train_bpe
from retinue.types import Grid, Media, Message, Sample, Text, Visual

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

VIT = {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
QUERY = {"depth": 2, "heads": 2, "hidden": 8, "every": 2}


class Names(dict[str, tuple[int, ...]]):
    """Shapes of parameters that the connector and layout are read off."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name]


def tiny(name: str, folder: Path) -> tuple[Any, Path]:
    """A model of random weights in a variant's form, and its folder as the original stores it."""
    sizes, sparse = VARIANTS[name], name.startswith("mixtral")
    encoders: dict[str, Any] = {
        "eva": {"model_type": "blip_2_vision_model", "hidden_size": 8, "intermediate_size": 8,
                "image_size": 224, "qkv_bias": True, "layer_norm_eps": 1e-6, **VIT},
        "clip": {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8,
                 "image_size": 224, "hidden_act": "gelu", **VIT},
        "convnext": {"model_type": "convnext", "hidden_sizes": [4, 4, 4, 6], "num_stages": 4,
                     "depths": [1, 1, 1, 1], "patch_size": 4, "block_norm_eps": 1e-5},
        "dinov2": {"model_type": "dinov2", "hidden_size": 8, "image_size": 224, **VIT,
                   "use_swiglu_ffn": True},
    }  # fmt: skip
    kept = ["convnext", "dinov2"] if name.endswith("light") else list(encoders)
    encoders = {k: encoders[k] for k in (["eva"] if name == "llama_qformerv2" else kept)}
    held = Names({"start_img": (1, 1, 16), "visual_proj.0.weight": (16, 22)})
    if "eva" in encoders:
        held |= {"qformer.query_tokens": (1, 32, 8), "qformer_proj.0.weight": (16, 8),
                 "qformer.qformer.encoder.layer.0.intermediate_query.dense.weight": (8, 8),
                 "qformer.qformer.encoder.layer.1.x": (1,)}  # fmt: skip
    if name == "llama_qformerv2":
        del held["visual_proj.0.weight"]
    weights: Any = held
    config = RetinueConfig(
        text_config={"model_type": "mixtral" if sparse else "llama", "vocab_size": 300,
                     "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "num_key_value_heads": 2,
                     "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
                     **({"num_local_experts": 4, "num_experts_per_tok": 2} if sparse else {})},
        encoders=encoders,
        spec={
            "encoders": encoder_specs(encoders, sizes),
            "connector": connector(weights, encoders, sizes, {"qformer": QUERY}),
            "layout": layout(weights, sizes),
            "image_token_id": IMAGE_ID,
        },
        **{FOREIGN: {"format": FORMAT, "llama_type": name, "config": {}}},
    )  # fmt: skip
    model = build_model(config, seed=1)
    spec = ProcessorSpec(template="accessory", labels="accessory", **pictures(sizes))
    words = train_bpe(["what is here"], vocab_size=300)
    save(model, Processor(model.plan, tokenizer=words, spec=spec), folder / "ours")
    convert(folder / "ours", folder / name, to="sphinx", shards=2)
    return model, folder / name


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
