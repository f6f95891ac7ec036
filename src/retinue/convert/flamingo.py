"""OpenFlamingo's checkpoints in our terms: released `.pt` files and states that trainers saved.

One tensor may stand in such a file under several paths; several files may be laid over each other.
Reference: mlfoundations/open_flamingo (arXiv 2308.01390) and its version 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.weights import Weights, load_pickle
from retinue.core.errors import CheckpointError

CHILD = "gated_cross_attn_layer"
LANGUAGE, VISION = "lang_encoder.", "vision_encoder."
LAYERS = {
    "mpt": "transformer.blocks",
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen2": "model.layers",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
}
"""model_type of the language model -> where its decoder layers stand."""

HEAD_WIDTH = 64
"""Of every released model; a checkpoint does not say it."""

MPT_1B = {
    ".ln_1.": ".norm_1.",
    ".ln_2.": ".norm_2.",
    ".mlp.mlp_up.": ".ffn.up_proj.",
    ".mlp.mlp_down.": ".ffn.down_proj.",
    "transformer.ln_f.": "transformer.norm_f.",
}
"""Names of MPT-1B's own code -> those of MPT."""

WRAPPER = re.compile(r"(^|\.)(?:(?:_checkpoint_wrapped_|_fsdp_wrapped_)?module\.)+")
LORA = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.\w+)?\.weight")


class TensorTable(Weights):
    """Tensors of several files under other names: name -> (file, how to get the tensor)."""

    def __init__(self, entries: Mapping[str, tuple[Path, Callable[[], Tensor]]]) -> None:
        super().__init__(dict.fromkeys(file for file, _ in entries.values()))
        self.entries = dict(entries)

    @property
    def names(self) -> dict[str, Path]:
        return {name: file for name, (file, _) in self.entries.items()}

    def read(self, name: str) -> Tensor:
        return self.entries[name][1]()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.read(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.read(name).dtype


@dataclass(slots=True, kw_only=True)
class Flamingo:
    """What a list of checkpoint files holds, later files over earlier ones.

    tensors: `perceiver.*` and `lang_encoder.*` without wrappers' names; vision: open_clip's names;
    lora: module -> its factors A and B; first_version: its keys are those of OpenFlamingo 1.
    """

    tensors: dict[str, tuple[Path, Tensor]] = field(default_factory=dict)
    vision: dict[str, tuple[Path, Tensor]] = field(default_factory=dict)
    lora: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    first_version: bool = False

    @property
    def every(self) -> int | None:
        """The first layer with a block, counted from 1: blocks stand in its multiples."""
        found = [
            int(m[1]) for name in self.tensors if (m := re.search(rf"\.(\d+)\.{CHILD}\.", name))
        ]
        return min(found) + 1 if found else None

    def shape(self, suffix: str) -> tuple[int, ...] | None:
        """Shape of the first tensor whose name ends so."""
        found = next((t for n, (_, t) in self.tensors.items() if n.endswith(suffix)), None)
        return None if found is None else tuple(found.shape)


def state_of(file: Path) -> dict[str, Tensor] | None:
    """The tensors of a torch file, a trainer's state unwrapped; None for a file of another kind."""
    try:
        data = load_pickle(file)
    except Exception:
        return None
    if not isinstance(data, dict):
        return None
    inner = data.get("model_state_dict", data)
    if not isinstance(inner, dict):
        return None
    return {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}


def is_flamingo(state: Mapping[str, Tensor] | None) -> bool:
    """Whether these names are OpenFlamingo's."""
    return state is not None and any(
        unwrapped(name).startswith((LANGUAGE, "perceiver.")) for name in state
    )


def unwrapped(key: str) -> str:
    """A key without the steps that DDP, FSDP and activation checkpointing put into its path."""
    return WRAPPER.sub(r"\1", key)


def plain_name(key: str, *, layers: str) -> str:
    """A key without the names of wrappers: DDP, PEFT, activation checkpointing, second paths."""
    key = unwrapped(key)
    key = key.replace(f"{LANGUAGE}base_model.model.", LANGUAGE)
    key = key.replace(".decoder_layer.", ".").replace(".base_layer.", ".")
    key = re.sub(rf"^{LANGUAGE}old_decoder_blocks\.", f"{LANGUAGE}{layers}.", key)
    blocks = rf"^{LANGUAGE}gated_cross_attn_layers\.(\d+)\."
    key = re.sub(blocks, rf"{LANGUAGE}{layers}.\1.{CHILD}.", key)
    for theirs, ours in MPT_1B.items():
        key = key.replace(theirs, ours)
    return key


def read_flamingo(files: Iterable[Path], *, model_type: str) -> Flamingo:
    """All files laid over each other. Raises CheckpointError for one of another kind."""
    layers = LAYERS.get(model_type)
    if layers is None:
        raise CheckpointError(
            f"a Flamingo on a {model_type}", rule=f"known: {', '.join(sorted(LAYERS))}"
        )
    found = Flamingo()
    for file in files:
        state = state_of(file)
        if not is_flamingo(state):
            raise CheckpointError(
                "holds no Flamingo weights",
                where=str(file),
                rule="their names start with perceiver. and lang_encoder.",
            )
        assert state is not None
        bare = [unwrapped(name) for name in state]
        found.first_version |= any(
            name.startswith((f"{VISION}visual.", f"{LANGUAGE}gated_cross_attn_layers."))
            for name in bare
        ) and not any(name.startswith(f"{LANGUAGE}old_decoder_blocks.") for name in bare)
        for key, tensor in state.items():
            name = plain_name(key, layers=layers)
            half = LORA.fullmatch(name)
            if half:
                found.lora.setdefault(half["module"], {})[half["half"]] = tensor
            elif name.startswith(VISION):
                name = name.removeprefix(VISION).removeprefix("visual.")
                found.vision[name] = file, tensor
            else:
                found.tensors[name] = file, tensor
    return found


def language_rules(model_type: str, prefix: str = LANGUAGE) -> list[Rule]:
    """Rules for the language model's names below `prefix`, of transformers 4 as of 5."""
    head = [Rule(f"{prefix}embed_out.{{rest}}", "lm.lm_head.{rest}")]
    own = Rule(f"{prefix}{{rest}}", "lm.{rest}")
    return [*(head if model_type == "gpt_neox" else []), own]


def flamingo_keys(model_type: str) -> KeyMap:
    """Rules for names without wrappers."""
    return KeyMap([Rule("perceiver.{rest}", "connector.{rest}"), *language_rules(model_type)])


def table_of(tensors: Mapping[str, tuple[Path, Tensor]]) -> TensorTable:
    """Tensors that are in memory (or mapped into it) as weights."""
    return TensorTable({name: (file, _give(tensor)) for name, (file, tensor) in tensors.items()})


def _give(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def folds(
    lora: Mapping[str, Mapping[str, Tensor]], *, keys: KeyMap, alpha: float | None, where: str
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Our weight name -> the function that adds the product of its factors, in float32.

    alpha: of the tuning config. Raises CheckpointError where it is missing, or half of a pair is.
    """
    made: dict[str, Callable[[Tensor], Tensor]] = {}
    for module, pair in lora.items():
        if alpha is None or len(pair) != 2:
            raise CheckpointError(
                "has LoRA factors, and no tuning config says how they are scaled"
                if alpha is None
                else f"half of the factors of {module}",
                where=where,
                rule="the product counts lora_alpha / lora_r times",
                fix="add the JSON to the list of files: checkpoint.pt,tuning_config.json",
            )
        name = keys.to_retinue(f"{module}.weight")
        assert name is not None
        made[name] = _fold(pair["A"], pair["B"], alpha)
    return made


def _fold(down: Tensor, up: Tensor, alpha: float) -> Callable[[Tensor], Tensor]:
    def fold(weight: Tensor) -> Tensor:
        return weight.float() + (up.float() @ down.float()) * (alpha / down.shape[0])

    return fold


def settings_of(found: Flamingo, *, where: str) -> dict[str, Any]:
    """Connector and fusion of the spec, as far as shapes tell. Raises CheckpointError if not."""
    look, ff = found.shape("perceiver.layers.0.0.to_q.weight"), found.shape("layers.0.1.1.weight")
    latents = found.shape("perceiver.latents")
    asks, wide = found.shape(f"{CHILD}.attn.to_q.weight"), found.shape(f"{CHILD}.ff.1.weight")
    if look is None or ff is None or latents is None or asks is None or wide is None:
        raise CheckpointError(
            "has no whole resampler and gated blocks",
            where=where,
            rule="a trainer's state holds only what was trained",
            fix="name the released checkpoint first: released.pt,trained.pt",
        )
    depth = {name.split(".")[2] for name in found.tensors if name.startswith("perceiver.layers.")}
    return {
        "connector": {
            "kind": "perceiver",
            "depth": len(depth),
            "latents": latents[0],
            "heads": look[0] // HEAD_WIDTH,
            "head_width": HEAD_WIDTH,
            "ff_mult": ff[0] // ff[1],
            "of": {"kind": "take", "encoder": "clip", "layer": -1},
        },
        "fusion": {
            "kind": "cross",
            "every": found.every,
            "heads": asks[0] // HEAD_WIDTH,
            "head_width": HEAD_WIDTH,
            "ff_mult": wide[0] // wide[1],
            "order": "text_first" if found.first_version else "picture_first",
        },
    }
