"""InternLM, InternLM2 and MOSS2 as Llama: config fields and exact renaming of weights.

InternLM2 and MOSS2 differ in sizes and prompts only. Their `wqkv` holds, for each key-value head,
the rows of its query heads, of the key and of the value; Llama has three matrices.
Reference: internlm/internlm2-* and fnlp/moss2-2_5b-chat (config fields and parameter names).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.keymap import Rule
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError

GROUPED = ("Moss2", "moss2", "internlm2", "llava_moss2")
"""model_type of language models with grouped `wqkv`, and of LLaVA built on one."""
SEPARATE = ("internlm",)
"""InternLM-1: Llama's names already, another config."""
FOREIGN_LMS = (*GROUPED, *SEPARATE)

AS_LLAMA: Sequence[Rule] = (Rule("{rest}", "lm.{rest}"),)
"""A language model whose names are those of transformers."""

_LAYER, _OURS = "model.layers.{n:int}.", "lm.model.layers.{n}."
_PARTS = {
    **{f"attention.wqkv[{part}]": f"self_attn.{part}_proj" for part in "qkv"},
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
AS_GROUPED: Sequence[Rule] = (
    Rule("model.tok_embeddings.{rest}", "lm.model.embed_tokens.{rest}"),
    *(
        Rule(f"{_LAYER}{theirs}.{{rest}}", f"{_OURS}{ours}.{{rest}}")
        for theirs, ours in _PARTS.items()
    ),
    Rule("model.norm.{rest}", "lm.model.norm.{rest}"),
    Rule("output.{rest}", "lm.lm_head.{rest}"),
)
"""InternLM2's and MOSS2's names, `wqkv` in three parts (see `Split` and `joined`)."""

DEFAULTS: dict[str, Any] = {
    "vocab_size": 103168,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What absent fields mean in the config classes of all three."""
KEPT = ("use_cache", "torch_dtype", "dtype")


def language_rules(config: Mapping[str, Any]) -> Sequence[Rule]:
    """Rules between a language model's own names and ours, by its config's model_type."""
    return AS_GROUPED if config.get("model_type") in GROUPED else AS_LLAMA


def language_weights(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """The weights of a folder with every `wqkv` seen as its three parts, if it has any."""
    if config.get("model_type") not in GROUPED:
        return weights
    heads = int(config.get("num_attention_heads", DEFAULTS["num_attention_heads"]))
    return Split(weights, heads=heads, groups=int(config.get("num_key_value_heads") or heads))


def language_fields(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A Llama config of an InternLM, InternLM2 or MOSS2 one; others are given back.

    Raises CheckpointError for a rope that none of them has.
    """
    kind = config.get("model_type")
    if kind not in FOREIGN_LMS:
        return dict(config)
    fields = {name: config.get(name, value) for name, value in DEFAULTS.items()}
    fields |= {name: config[name] for name in KEPT if name in config}
    heads = config.get("num_key_value_heads") or fields["num_attention_heads"]
    scaling: Mapping[str, Any] | None
    if kind in SEPARATE:
        said = config.get("rotary") or {"type": "dynamic"}
        base = said.get("base", 10000)
        scaling = {"type": said.get("type"), "factor": said.get("scaling_factor", 1.0)}
        if scaling["type"] == "origin":
            scaling = None
    else:
        scaling, base = config.get("rope_scaling"), config.get("rope_theta", 10000)
    return {
        **fields,
        "model_type": "llama",
        "num_key_value_heads": heads,
        "attention_bias": bool(config.get("bias", True)),
        "mlp_bias": False,
        "rope_parameters": {**_rope(scaling, where=where), "rope_theta": float(base)},
    }


def _rope(scaling: Mapping[str, Any] | None, *, where: str) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    kind, factor = scaling.get("type"), scaling.get("factor")
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if kind not in ("linear", "dynamic") or not number or float(str(factor)) < 1:
        raise CheckpointError(
            f"rope_scaling {dict(scaling)!r:.80}",
            where=where,
            rule="its type is linear or dynamic, its factor a number of at least 1",
        )
    return {"rope_type": str(kind), "factor": float(str(factor))}


class Split(Weights):
    """Weights whose `….wqkv.weight` are offered as `….wqkv[q].weight`, `[k]` and `[v]`.

    heads: of the queries; groups: of keys and values. Raises CheckpointError at a `wqkv` whose rows
    do not divide.
    """

    def __init__(self, weights: Weights, *, heads: int, groups: int) -> None:
        super().__init__(weights.files)
        self._whole, self._heads, self._groups = weights, heads, groups

    @cached_property
    def names(self) -> dict[str, Path]:
        return {
            part: file for name, file in self._whole.names.items() for part in _split_name(name)
        }

    def read(self, name: str) -> Tensor:
        whole, part = _whole_name(name)
        tensor = self._whole.read(whole)
        return tensor if part is None else self._cut(tensor, part, name)

    def shape(self, name: str) -> tuple[int, ...]:
        whole, part = _whole_name(name)
        shape = self._whole.shape(whole)
        if part is None:
            return shape
        return tuple(self._cut(torch.empty(shape, device="meta"), part, name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._whole.dtype(_whole_name(name)[0])

    def _cut(self, tensor: Tensor, part: str, name: str) -> Tensor:
        each = self._heads // self._groups
        rows = self._groups * (each + 2)
        if self._heads % self._groups or tensor.shape[0] % rows:
            raise CheckpointError(
                f"{name} has {tensor.shape[0]} rows",
                where=str(self.names.get(name, "")),
                rule=f"{self._heads} query heads in {self._groups} groups: a multiple of {rows}",
            )
        slots = tensor.reshape(self._groups, each + 2, -1, *tensor.shape[1:])
        taken = {"q": slots[:, :each], "k": slots[:, each], "v": slots[:, each + 1]}[part]
        return taken.reshape(-1, *tensor.shape[1:])


def _split_name(name: str) -> list[str]:
    head, mark, tail = name.rpartition(".wqkv.")
    return [f"{head}.wqkv[{part}].{tail}" for part in "qkv"] if mark else [name]


def _whole_name(name: str) -> tuple[str, str | None]:
    head, mark, tail = name.rpartition(".wqkv[")
    if not mark:
        return name, None
    return f"{head}.wqkv.{tail[3:]}", tail[0]


def joined(
    tensors: Iterable[tuple[str, Tensor]], *, heads: int, groups: int
) -> Iterator[tuple[str, Tensor]]:
    """The way back: three parts of a name become its `wqkv`, all else passes.

    A part is held until its others have come, so a stream in layer order holds one layer's.
    """
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        whole, part = _whole_name(name)
        if part is None:
            yield name, tensor
            continue
        parts = held.setdefault(whole, {})
        parts[part] = tensor
        if len(parts) == 3:
            rest = tensor.shape[1:]
            q = parts["q"].reshape(groups, heads // groups, -1, *rest)
            k, v = (parts[one].reshape(groups, 1, -1, *rest) for one in "kv")
            yield whole, torch.cat([q, k, v], dim=1).reshape(-1, *rest)
            del held[whole]
    assert not held, f"incomplete: {sorted(held)}"
