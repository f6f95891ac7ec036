"""Every variant of SPHINX in miniature: random weights in the original's own kind of folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from retinue.hub.save import save
from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.text.train import train_bpe

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
