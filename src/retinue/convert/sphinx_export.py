"""Our models as LLaMA2-Accessory's: variant, model arguments, and what the format cannot hold."""

from __future__ import annotations

from typing import Any, get_args

from retinue.convert.sphinx import FORMAT, VARIANTS, Precision, branches_of, encoder_specs
from retinue.convert.sphinx_lm import Experts
from retinue.convert.sphinx_vision import QFORMER
from retinue.convert.translation import foreign
from retinue.core.errors import CheckpointError
from retinue.model.spec import ModelSpec, RetinueConfig

STEPS = (256, 128, 64, 32, 16, 8)


def refuse(what: str, rule: str) -> CheckpointError:
    """The error of a model that the format cannot hold."""
    return CheckpointError(what, where="export to sphinx", rule=rule, fix="keep it as retinue")


def llama_type(config: RetinueConfig) -> str:
    """The variant of a model. Raises CheckpointError for one that the original cannot build."""
    kept = foreign(config)
    text = config.get_text_config()
    if text.model_type not in ("llama", "mixtral"):
        raise refuse(f"a language model {text.model_type!r}", "the format has llama and mixtral")
    if kept.get("format") == FORMAT:
        name = str(kept["llama_type"])
        _check_encoders(config, name)
        return name
    if config.encoders:
        raise refuse(
            f"encoders {', '.join(config.encoders)}",
            "the format has SPHINX's own mixtures; models that came from it can go back",
        )
    if text.model_type == "mixtral":
        return "mixtral_sparse"
    if ModelSpec.parse(config.spec, where="model").fusion.kind == "prefix":
        return "llama_adapter"
    return "llama_peft" if text.attention_bias or text.mlp_bias else "llama"


def _check_encoders(config: RetinueConfig, name: str) -> None:
    """The model must still be what the variant's name stands for."""
    spec = ModelSpec.parse(config.spec, where="model")
    known = []
    for precision in get_args(Precision):
        own = encoder_specs(config.encoders, VARIANTS[name], precision=precision)
        known.append(ModelSpec.parse({**config.spec, "encoders": own}, where="model").encoders)
    if spec.encoders not in known or (spec.encoders and spec.layout.kind != "bracket"):
        raise refuse("encoders or layout changed since import", f"{name} has them fixed")


def experts_of(name: str) -> Experts:
    """How a variant holds its experts."""
    if not name.startswith("mixtral"):
        return None
    return "sparse" if name.startswith("mixtral_sparse") else "base"


def arguments(config: RetinueConfig, name: str) -> dict[str, Any]:
    """config.json: the fields it came with, and what the model says now."""
    text = config.get_text_config()
    rope = dict(text.rope_parameters)
    fields: dict[str, Any] = {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "vocab_size": text.vocab_size,
        "norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "max_batch_size": 32,
        "max_seq_len": text.max_position_embeddings,
        "rope_scaling": _scaling(rope),
    }
    if text.model_type == "mixtral":
        fields |= {
            "hidden_dim": text.intermediate_size,
            "head_dim": text.hidden_size // text.num_attention_heads,
            "moe": {
                "num_experts_per_tok": text.num_experts_per_tok,
                "num_experts": text.num_local_experts,
            },
            "load_balancing_weight": text.router_aux_loss_coef,
        }
    else:
        fields |= hidden_rule(text.hidden_size, text.intermediate_size)
        if name == "llama_peft":
            fields |= {"lora_rank": -1, "bias_tuning": True, "norm_tuning": True}
    fusion = config.spec.get("fusion") or {}
    if fusion.get("kind") == "prefix":
        layers = fusion.get("layers") or text.num_hidden_layers
        fields |= {"prefix_len": fusion.get("length", 10), "prefix_layers": layers}
        fields |= {"lora_rank": -1, "bias_tuning": bool(text.attention_bias)}
    if config.encoders:
        fields["load_pretrained_visual_encoder"] = False
    old = dict(foreign(config).get("config") or {})
    if "lora_rank" in old:
        old["lora_rank"] = -1  # folded into the weights
    same = {key for key in old if key in fields and _equal(old[key], fields[key], fields)}
    return {**old, **{key: value for key, value in fields.items() if key not in same}}


def _equal(old: Any, new: Any, fields: dict[str, Any]) -> bool:
    return old == new or (old is None and new in (fields["n_heads"], None))


def _scaling(rope: dict[str, Any]) -> float | None:
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "linear":
        raise refuse(f"rope of type {kind!r}", "the format scales positions by one factor")
    return 1.0 / float(rope["factor"])


def hidden_rule(dim: int, hidden: int) -> dict[str, Any]:
    """multiple_of and ffn_dim_multiplier that give a hidden width: LLaMA's rule, or a plain one."""
    usual = int(2 * (4 * dim) / 3)
    for step in STEPS:
        if -(-usual // step) * step == hidden:
            return {"multiple_of": step, "ffn_dim_multiplier": None}
    return {"multiple_of": 1, "ffn_dim_multiplier": (hidden + 0.5) / usual}


def given_fields(config: RetinueConfig) -> dict[str, dict[str, int]]:
    """encoders.json: numbers of heads, which the weights do not tell."""
    found = {
        name: {"num_attention_heads": int(encoder.num_attention_heads)}
        for name, encoder in config.encoders.items()
        if hasattr(encoder, "num_attention_heads")
    }
    for _, node in branches_of(config.spec["connector"]):
        if node["of"]["kind"] == "qformer":
            found[QFORMER] = {"heads": int(node["of"]["heads"])}
    return found
