"""A small model of every kind that the engine must answer for, with its processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from retinue.hub.elastic import make_elastic
from retinue.model.adapters import LoraTarget, add_lora, linears
from retinue.model.build import build_model
from retinue.model.encoders import ENCODERS
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.quant.swap import quantize
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.text.train import train_bpe
from tiny import LINES

Made = tuple[Retinue, Processor]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LMS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 12},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Gemma": {},
    "Gemma2": {"sliding_window": 12, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "Gemma3Text": {"sliding_window": 12},
    "Phi": {},
    "Phi3": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTNeoX": {},
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    "Cohere": {"logit_scale": 0.5},
    "Granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "Olmo2": {},
    "Mpt": {"hidden_size": 36, "num_attention_heads": 6},
}
DYNAMIC = {
    "max_position_embeddings": 24,
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
}
LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
CROSS = {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1}


def take(encoder: str = "eye", *, layer: int = -1, prefix: bool = True) -> dict[str, Any]:
    return {"kind": "take", "encoder": encoder, "layer": layer, "prefix": prefix}


def perceiver() -> dict[str, Any]:
    return {
        "kind": "perceiver",
        "depth": 1,
        "latents": 3,
        "heads": 2,
        "head_width": 4,
        "of": take(),
    }


def family(
    lm: str = "Llama",
    *,
    encoders: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    views: dict[str, Any] | None = None,
    side: int = 16,
    noise: float = 0.1,
    **text: Any,
) -> Made:
    """A model whose parameters all say something; spec: fields over those of a plain LLaVA."""
    tokenizer = train_bpe(LINES, vocab_size=320)
    fields = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 160,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        **LMS[lm],
        **text,
    }
    eyes = {"eye": PatchesConfig(hidden_size=24, image_size=side)} | (encoders or {})
    kinds = {name: _kind(config) for name, config in eyes.items()}
    whole = {
        "encoders": kinds,
        "connector": {"kind": "mlp", "of": take()},
        "image_token_id": tokenizer.image_id,
        **(spec or {}),
    }
    config = RetinueConfig(getattr(transformers, f"{lm}Config")(**fields), eyes, whole)
    model = build_model(config, seed=1).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
            if name.endswith("_gate") and parameter.numel() == 1:
                parameter.fill_(0.7)
    settings = {
        "views": views or {"kind": "squash"},
        "streams": {"rgb": {"size": side, "mean": [0.5] * 3, "std": [0.5] * 3}},
        "template": {"name": "vicuna_v1", "system": ""},
    }
    return model, Processor(Plan(config), tokenizer=tokenizer, spec=ProcessorSpec.parse(settings))


def _kind(config: Any) -> dict[str, Any]:
    found = {"retinue_patches": "patches", "clip_vision_model": "clip", "retinue_eva2": "eva2"}
    return {"kind": found.get(config.model_type, config.model_type)}


def clip(side: int = 16) -> Any:
    return AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=8,
    )


def elastic() -> Made:
    model, processor = family(side=32)
    make_elastic(model, processor, scales=[1, 4, 16])
    return model, processor


def cogvlm() -> Made:
    ENCODERS.get("eva2")
    eye = AutoConfig.for_model(
        "retinue_eva2",
        image_size=16,
        patch_size=8,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
    )
    spec = {
        "connector": {"kind": "glu", "inner": 24, "of": take(prefix=False)},
        "layout": {"kind": "bracket"},
        "fusion": {"kind": "expert"},
    }
    return family(encoders={"eye": eye}, spec=spec)


def adapted() -> Made:
    """LoRA that is always on, unmerged."""
    model, processor = family()
    add_lora(model, {n: LoraTarget(r=2, alpha=8) for n, _ in linears(model) if "mlp" in n})
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval(), processor


def quantized(kind: str) -> Made:
    model, processor = family(hidden_size=64, intermediate_size=128, head_dim=16)
    quantize(model, kind=kind)
    return model, processor


def two_eyes(joined: str) -> Made:
    parts = [take(), take("other", layer=0)]
    if joined == "sequence":
        connector: dict[str, Any] = {
            "kind": "sequence",
            "parts": [{"kind": "mlp", "of": part} for part in parts],
        }
    else:
        connector = {"kind": "mlp", "of": {"kind": "channel", "parts": parts}}
    other = PatchesConfig(hidden_size=16, image_size=16)
    return family(encoders={"other": other}, spec={"connector": connector})


FAMILIES: dict[str, Callable[[], Made]] = {
    **{f"splice, {lm}": lambda lm=lm: family(lm) for lm in LMS},  # type: ignore[misc]
    "splice, without a twin": lambda: family(hidden_act="gelu"),
    "splice, class token kept": lambda: family(encoders={"eye": clip()}),
    "splice, tiles and line ends": lambda: family(
        spec={"layout": {"kind": "newline"}},
        views={"kind": "anyres", "pinpoints": [[16, 32], [32, 16], [32, 32]]},
    ),
    "splice, bracketed quarters": lambda: family(
        spec={"layout": {"kind": "bracket"}}, views={"kind": "quad"}
    ),
    "splice, resampled": lambda: family(spec={"connector": {"kind": "mlp", "of": perceiver()}}),
    "splice, elastic": elastic,
    "two encoders in length": lambda: two_eyes("sequence"),
    "two encoders in width": lambda: two_eyes("channel"),
    "rope by length (MOSS2)": lambda: family(**DYNAMIC),
    "rope of rounded positions": lambda: family(spec={"rope": "rounded"}, **LINEAR),
    "cross, Llama": lambda: family(spec={"connector": perceiver(), "fusion": CROSS}),
    "cross, Mpt": lambda: family("Mpt", spec={"connector": perceiver(), "fusion": CROSS}),
    "cross, version 1": lambda: family(
        spec={
            "connector": perceiver(),
            "fusion": {**CROSS, "order": "text_first", "counting": "ids", "decoding": "lost"},
        }
    ),
    "experts": lambda: family(spec={"fusion": {"kind": "expert"}}),
    "experts, CogVLM": cogvlm,
    "adapter on top": adapted,
    "int8": lambda: quantized("int8"),
    "int4": lambda: quantized("int4"),
}
