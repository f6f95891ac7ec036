"""A small CogVLM, and the folder that the public checkpoints are: names, packed rows, config."""

import json
import shutil
from pathlib import Path

import torch

from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig

IMAGE = -5
D, HEADS, WIDE, LAYERS, VOCAB = 16, 2, 24, 2, 31
TEXT = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
}
EYE = {
    "model_type": "retinue_eva2",
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}


def make():
    """Weights spread widely so that answers differ."""
    from retinue.model.encoders import ENCODERS

    ENCODERS.get("eva2")
    config = RetinueConfig(
        text_config=TEXT,
        encoders={"eva": EYE},
        spec={
            "encoders": {"eva": {"kind": "eva2"}},
            "connector": {
                "kind": "glu",
                "inner": WIDE,
                "of": {"kind": "take", "encoder": "eva", "layer": -1, "prefix": False},
            },
            "layout": {"kind": "bracket"},
            "fusion": {"kind": "expert"},
            "image_token_id": IMAGE,
        },
    )
    made = build_model(config, seed=3).eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            torch.manual_seed(number)
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return made


def write_public(model, folder):
    """Write the model as a public checkpoint: its names, packed projections and fields."""
    from safetensors.torch import save_file

    from retinue.convert.cogvlm import cogvlm_keys

    packed, state = {}, {}
    for name, tensor in model.state_dict().items():
        theirs, rule = cogvlm_keys().match_back(name)
        value = tensor if rule.op is None else rule.op.invert(tensor)
        whole, _, part = theirs.partition("[")
        if part:
            packed.setdefault(whole, {})[part[0]] = value
        else:
            state[whole] = value
    state |= {name: torch.cat([rows[p] for p in "qkv"]) for name, rows in packed.items()}
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    eye = {
        **{key: value for key, value in EYE.items() if key not in ("model_type",)},
        "num_heads": EYE["num_attention_heads"],
        "in_channels": 3,
        "layer_norm_eps": 1e-6,
    }
    config = {key: value for key, value in TEXT.items() if key != "model_type"}
    config |= {"architectures": ["CogVLMForCausalLM"], "vision_config": eye}
    (folder / "config.json").write_text(json.dumps({**config, "template_version": "chat"}))
    copy_words(folder)
    return state


def copy_words(folder):
    """A LLaMA-like tokenizer of 1000 ids into a folder."""
    words = Path(__file__).parent / "golden" / "cerebras-multimodal" / "tokenizer_hf"
    for file in words.glob("*.json"):
        shutil.copy(file, folder)
