"""Small models with gated cross-attention on any language model, and examples for them."""

import torch
from transformers import AutoConfig

from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig
from retinue.types import Example, Grid, Item, Span

IMAGE = 5
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60}
TEXTS = {
    "llama": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "vocab_size": 60},
    "mistral": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
}


def make(kind="llama", *, gate=0.7, fusion=None, **text):
    vision = AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    take = {"kind": "take", "encoder": "eye", "layer": -1}
    perceiver = {
        "kind": "perceiver",
        "depth": 1,
        "latents": 3,
        "heads": 2,
        "head_width": 4,
        "of": take,
    }
    cross = {"kind": "cross", "every": 2, "heads": 2, "head_width": 4, **(fusion or {})}
    config = RetinueConfig(
        text_config=AutoConfig.for_model(kind, **TEXTS[kind], **text),
        encoders={"eye": vision},
        spec={
            "encoders": {"eye": {"kind": "clip"}},
            "connector": perceiver,
            "fusion": cross,
            "image_token_id": IMAGE,
        },
    )
    model = build_model(config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(gate)
    return model.eval()


def example(id, length, places, *, seed):
    """Words with a picture's mark at each of `places`."""
    stream = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, 60, (length,), generator=stream).tolist()
    items, spans = [], []
    for number, place in enumerate(places):
        tokens[place] = IMAGE
        pixels = torch.randn(1, 3, 8, 8, generator=stream)
        items.append(Item(pixels={"rgb": pixels}, grid=Grid(size=(8, 8)), num_tokens=3))
        spans.append(Span(start=place, length=1, item=number))
    return Example(id=id, tokens=tokens, labels=list(tokens), spans=spans, items=items)


def bare(kind, model):
    """The same language model without blocks."""
    config = RetinueConfig.from_dict(model.config.to_dict())
    config.spec = {
        "connector": {"kind": "identity", "of": {"kind": "take", "encoder": "eye"}},
        "encoders": config.spec["encoders"],
        "image_token_id": IMAGE,
    }
    plain = build_model(config).eval()
    state = {name: value for name, value in model.state_dict().items() if name.startswith("lm.")}
    kept = {name: value for name, value in state.items() if "gated_cross_attn" not in name}
    missing, odd = plain.load_state_dict(kept, strict=False)
    assert not odd
    assert not [name for name in missing if name.startswith("lm.")]
    return plain
