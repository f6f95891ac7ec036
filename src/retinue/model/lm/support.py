"""Which causal LMs of transformers can be driven: read off their classes, before any is built.

Our attention plan travels as a keyword argument to every layer's attention. A model that drops it
would attend across documents and padding without a word, so each condition is checked by name.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from retinue.core.errors import ConfigError

OWN = {"mpt": "retinue.model.lm.mpt:Mpt"}
"""model_type -> a class of our own, where transformers' drops the plan."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
RULE = "its layers must take keyword arguments and use transformers' attention interface"
FIX = "choose another language model (Llama, Mistral, Qwen, Gemma, Phi, OPT, NeoX, …)"


def causal_class(config: Any) -> type[PreTrainedModel]:
    """The transformers class of a config. Raises ConfigError for one that we cannot drive."""
    if config.model_type in OWN:
        module, _, name = OWN[config.model_type].partition(":")
        own: type[PreTrainedModel] = getattr(import_module(module), name)
        return own
    try:
        found: type[PreTrainedModel] = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise ConfigError(
            f"model_type {config.model_type!r} is no causal language model of transformers",
            where="model.lm",
        ) from None
    reason = obstacle(found, config)
    if reason is not None:
        raise refusal(f"{found.__name__} ({config.model_type})", reason)
    return found


def obstacle(kind: type[PreTrainedModel], config: Any) -> str | None:
    """Why a class cannot be driven; None where nothing speaks against it."""
    module = sys.modules[kind.__module__]
    if not getattr(kind, "_supports_attention_backend", False):
        return RULE
    if getattr(config, "vision_config", None) is not None:
        return "it sees already; only a text model can take our encoders"
    if getattr(kind, "_is_stateful", False):
        return "it keeps a recurrent state, which documents of one row would share"
    odd = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if odd:
        return f"its layers are of kind {', '.join(sorted(odd))}; attention, full or sliding, works"
    names = getattr(kind, "_no_split_modules", None) or ()
    layers = [found for name in names if (found := getattr(module, name, None)) is not None]
    if not all(takes_keywords(layer) for layer in layers):
        return RULE
    if "s_aux" in inspect.getsource(module):
        return "its attention has sinks, which no plan of ours knows"
    return None


def takes_keywords(layer: type[nn.Module]) -> bool:
    """Whether a layer's forward accepts any keyword."""
    kinds = {p.kind for p in inspect.signature(layer.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def check_built(model: PreTrainedModel, *, name: str) -> None:
    """What only instances tell. Raises ConfigError for layers that mix documents of one row."""
    if getattr(model, "follows_plans", False):
        return
    for part, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            raise refusal(name, f"{part} is a convolution over time")
        if getattr(module, "is_causal", True) is False:
            raise refusal(name, f"{part} attends to later tokens")
    if not plan_arrives(model):
        raise refusal(name, f"{RULE}; a plan given to it does not arrive there")


class _ArrivedError(Exception):
    """Ends a forward at its first attention."""


def _spy(*_: Any, plan: Any = None, **__: Any) -> NoReturn:
    raise _ArrivedError(plan)


def plan_arrives(model: PreTrainedModel) -> bool:
    """Whether the first attention of a model gets the `plan=` given to it; runs no further."""
    AttentionInterface.register("retinue-spy", _spy)
    table = model.get_input_embeddings().weight
    used, sent = model.config._attn_implementation, object()
    model.config._attn_implementation = "retinue-spy"
    place = torch.zeros(1, 1, dtype=torch.long, device=table.device)
    try:
        with torch.no_grad():
            model.base_model(
                inputs_embeds=table.new_zeros(1, 1, table.shape[1]),
                position_ids=place,
                use_cache=False,
                plan=sent,
            )
    except _ArrivedError as arrived:
        return arrived.args[0] is sent
    finally:
        model.config._attn_implementation = used
    return False


def refusal(name: str, reason: str) -> ConfigError:
    """The error that names a model and the reason."""
    return ConfigError(
        f"{name} cannot be used as language model", where="model.lm", rule=reason, fix=FIX
    )
