"""Which matrices of a language model are divided among a tensor group, and how.

transformers' own plans are read where there are any; models without one have theirs here. Nothing
is left whole by accident: a matrix of a decoder layer that no rule speaks of is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from retinue.core.errors import ConfigError
from retinue.model.quant.base import QuantLinear
from retinue.parallel.tensor_split import Split

Style = Literal["column", "row", "experts", "shared", "norm"]

OWN: dict[str, dict[str, str]] = {
    "opt": {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "colwise"),
        **{"self_attn.out_proj": "rowwise", "fc1": "colwise", "fc2": "rowwise"},
    },
    "mpt": {
        **{"attn.Wqkv": "colwise", "attn.out_proj": "rowwise"},
        **{"ffn.up_proj": "colwise", "ffn.down_proj": "rowwise"},
    },
}
"""model_type -> names inside a layer -> transformers' word, for models it has no plan for."""

JOINED = ("qkv_proj", "Wqkv", "gate_up_proj")
"""Layers whose outputs are several matrices on end; transformers' plans gather these instead."""
WHOLE = re.compile(r"(^|\.)(gated_cross_attn_layer\.|gate\.weight$|shared_expert_gate\.weight$)")
"""Parameters of a layer that every rank holds: gated blocks, routers."""
COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "heads")
"""Attributes of attention modules that count heads."""
ATTENTION_END = re.compile(r"^(self_attn|attention|attn)\.(o_proj|out_proj|dense)$")
LIKE = re.compile(r"(?<![a-z])(visual_|shared_expert\.)")
"""Second weights of a layer are divided like the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What becomes of one module: its style, and how its own parameters are cut."""

    style: Style
    splits: dict[str, Split] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """For `size` ranks: path -> part; path -> attributes with each rank's number of heads.

    configs: attention modules that read head counts off the config and need one of their own.
    """

    size: int
    parts: dict[str, Part]
    counts: dict[str, dict[str, int]]
    configs: frozenset[str] = frozenset()

    @property
    def splits(self) -> dict[str, Split]:
        """Name of every parameter that is cut -> how."""
        return {
            f"{path}.{leaf}": split
            for path, part in self.parts.items()
            for leaf, split in part.splits.items()
        }


def plan_of(model: nn.Module, *, size: int) -> TensorPlan:
    """The plan of a Retinue (its `lm`) for `size` ranks; weights may be on meta, none is read.

    Raises ConfigError for head counts or widths that do not divide, for layers that no rule knows,
    and for weights that are quantized.
    """
    lm: Any = model.lm
    config = lm.config
    rules = rules_of(config)
    check_heads(config, size=size)
    names = {id(module): name for name, module in model.named_modules()}
    parts: dict[str, Part] = {}
    counts: dict[str, dict[str, int]] = {}
    configs: set[str] = set()
    for layer in lm.layers:
        prefix = names[id(layer)]
        for path, module in layer.named_modules():
            style = rules.get(plain(path))
            if style is not None:
                for own, part in parts_of(path, module, style, layer, config):
                    check_widths(f"{prefix}.{own}", part, size=size)
                    parts[f"{prefix}.{own}"] = part
            if ATTENTION_END.match(path):
                at, owner = attention_of(path, layer)
                counts[f"{prefix}.{at}"] = {
                    name: getattr(owner, name) // size
                    for name in COUNTS
                    if isinstance(getattr(owner, name, None), int)
                }
                if hasattr(owner, "qkv_proj"):
                    configs.add(f"{prefix}.{at}")
                for own, part in norms_of(at, owner, config):
                    parts[f"{prefix}.{own}"] = part
        check_covered(prefix, layer, parts, config)
    return TensorPlan(size=size, parts=parts, counts=counts, configs=frozenset(configs))


def rules_of(config: Any) -> dict[str, str]:
    """Name inside a layer -> transformers' word for how it is divided."""
    kind = config.model_type
    if kind in OWN:
        return OWN[kind]
    found = getattr(config, "base_model_tp_plan", None)
    if not found:
        raise refusal(config, "neither transformers nor retinue has a plan for it")
    rules = {}
    for pattern, word in found.items():
        inside = re.match(r"\w+\.\*\.(.+)", pattern)
        if inside:
            rules[inside[1]] = word
    return rules


def plain(path: str) -> str:
    """Name of a layer's part as rules have it: without `visual_`, `shared_expert.`."""
    return LIKE.sub("", path)


def parts_of(
    path: str, module: nn.Module, word: str, layer: nn.Module, config: Any
) -> Iterator[tuple[str, Part]]:
    """The parts that one rule asks for: one, or three below an adapter."""
    leaf = path.rpartition(".")[2]
    if word == "moe_tp_experts":
        yield path, experts_part(module, config)
        return
    if word == "replicated_with_grad_allreduce":
        yield path, Part(style="shared")
        return
    row = word.startswith("rowwise")
    known = word in ("colwise", "rowwise")
    joined = leaf in JOINED and word in ("colwise", "colwise_gather_output")
    fed = word == "rowwise_split_input" and _fed_by_joined(path, layer)
    if not (known or joined or fed):
        raise refusal(config, f"{path} is planned as {word}: its parts are used all together")
    adapted = hasattr(module, "base_layer") and hasattr(module, "lora_A")
    base: Any = module.base_layer if adapted else module
    if isinstance(base, QuantLinear):
        raise refusal(config, f"{path} holds {base.kind} weights, which are not divided")
    if not isinstance(base, nn.Linear):
        raise refusal(config, f"{path} is a {type(base).__name__}, not a linear layer")
    blocks = (base.in_features,) if row else output_blocks(leaf, base, config)
    split = Split(dim=1 if row else 0, blocks=blocks)
    splits = {"weight": split}
    if base.bias is not None and not row:
        splits["bias"] = split
    if not adapted:
        yield path, Part(style="row" if row else "column", splits=splits)
        return
    yield f"{path}.base_layer", Part(style="row" if row else "column", splits=splits)
    yield from lora_parts(path, module, split, config)


def lora_parts(path: str, module: Any, split: Split, config: Any) -> Iterator[tuple[str, Part]]:
    """Of an adapted layer's A and B the one that touches the divided side; the other stays whole.

    These are the cases that PEFT knows as colwise and rowwise.
    """
    if any(dict(getattr(module, "use_dora", {})).values()):
        raise refusal(config, f"{path} has a DoRA adapter, whose norm needs whole weights")
    half, style = ("lora_A", "row") if split.dim == 1 else ("lora_B", "column")
    for name, linear in getattr(module, half).items():
        splits = {"weight": split}
        if style == "column" and linear.bias is not None:
            splits["bias"] = split
        yield f"{path}.{half}.{name}", Part(style=style, splits=splits)  # type: ignore[arg-type]


def output_blocks(leaf: str, linear: Any, config: Any) -> tuple[int, ...]:
    """Lengths of the matrices that stand on end in a layer's outputs."""
    out = linear.out_features
    if leaf == "gate_up_proj":
        return (out // 2, out // 2)
    if leaf in ("qkv_proj", "Wqkv"):
        heads, groups = head_counts(config)
        width = out // (heads + 2 * groups)
        return (heads * width, groups * width, groups * width)
    return (out,)


def experts_part(module: nn.Module, config: Any) -> Part:
    """Weights (expert, out, in): every expert is divided along its inner width."""
    shapes = {name: p.shape for name, p in module.named_parameters(recurse=False)}
    if set(shapes) != {"gate_up_proj", "down_proj"}:
        raise refusal(config, f"experts with {', '.join(sorted(shapes))}")
    inner = shapes["down_proj"][2]
    return Part(
        style="experts",
        splits={
            "gate_up_proj": Split(dim=1, blocks=(inner, inner)),
            "down_proj": Split(dim=2, blocks=(inner,)),
        },
    )


def attention_of(path: str, layer: nn.Module) -> tuple[str, Any]:
    at = path.partition(".")[0]
    return at, layer.get_submodule(at)


def norms_of(at: str, owner: nn.Module, config: Any) -> Iterator[tuple[str, Part]]:
    """Norms of queries and keys: one weight for all heads is shared, a LayerNorm over all heads
    together is divided and shares its sums. Raises ConfigError for other norms over all heads."""
    for name, module in owner.named_children():
        sizes = {tuple(p.shape) for p in module.parameters(recurse=False)}
        if "norm" not in name and "ln" not in name:
            continue
        width = getattr(owner, "head_dim", None) or getattr(owner, "head_size", None)
        if isinstance(module, nn.LayerNorm) and sizes == {(config.hidden_size,)}:
            split = Split(dim=0, blocks=(config.hidden_size,))
            leaves = [leaf for leaf, _ in module.named_parameters(recurse=False)]
            yield f"{at}.{name}", Part(style="norm", splits=dict.fromkeys(leaves, split))
            continue
        if sizes - {(width,)}:
            raise refusal(config, f"{at}.{name} normalises over all heads together")
        if sizes:
            yield f"{at}.{name}", Part(style="shared")


def _fed_by_joined(path: str, layer: nn.Module) -> bool:
    parent = layer.get_submodule(path.rpartition(".")[0])
    return any(hasattr(parent, name) for name in JOINED)


def head_counts(config: Any) -> tuple[int, int]:
    """(query heads, key/value heads)."""
    heads = int(config.num_attention_heads)
    return heads, int(getattr(config, "num_key_value_heads", None) or heads)


def check_heads(config: Any, *, size: int) -> None:
    """Raise ConfigError where heads cannot be dealt out evenly."""
    heads, groups = head_counts(config)
    for number, what in ((heads, "attention heads"), (groups, "key/value heads")):
        if number % size:
            fit = [n for n in range(1, groups + 1) if not heads % n and not groups % n]
            raise ConfigError(
                f"{number} {what} over {size} ranks: {number} / {size} = {number / size:.4g}",
                where="tensor parallelism",
                rule=f"every rank needs whole heads; {heads} attention heads with {groups} "
                f"key/value heads allow {', '.join(map(str, fit))}",
            )


def check_widths(path: str, part: Part, *, size: int) -> None:
    """Raise ConfigError where a matrix cannot be cut evenly."""
    for leaf, split in part.splits.items():
        odd = [block for block in split.blocks if block % size]
        if odd:
            raise ConfigError(
                f"{path}.{leaf}: {odd[0]} columns over {size} ranks: "
                f"{odd[0]} / {size} = {odd[0] / size:.4g}",
                where="tensor parallelism",
                rule="every rank needs an equal part",
            )


def check_covered(prefix: str, layer: nn.Module, parts: dict[str, Part], config: Any) -> None:
    """Raise ConfigError for a matrix of a layer that no rule divides or keeps whole on purpose."""
    for name, parameter in layer.named_parameters():
        path, _, leaf = f"{prefix}.{name}".rpartition(".")
        part = parts.get(path)
        if part is not None and (leaf in part.splits or part.style in ("shared", "row")):
            continue
        half = re.search(r"\.lora_[AB]\.", name) is not None
        if parameter.dim() >= 2 and not (half or WHOLE.search(name)):
            raise refusal(config, f"no rule says how {name} {tuple(parameter.shape)} is divided")


def refusal(config: Any, reason: str) -> ConfigError:
    """The error that names a language model and the reason."""
    return ConfigError(
        f"a language model of type {config.model_type} cannot be divided",
        where="tensor parallelism",
        rule=reason,
        fix="use one process, or data parallelism",
    )
