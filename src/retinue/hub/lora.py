"""LoRA in PEFT's layout: folded into weights while they stream, or kept as an adapter.

Reference: Hu et al. 2021 (arXiv 2106.09685); rsLoRA scaling (arXiv 2312.03732).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError

WRAP = "base_model.model."
FILES = ("adapter_model.safetensors", "adapter_model.bin")
NAME = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.\w+)?\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two factors of one module, names as on disk."""

    module: str
    down: str
    up: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """An adapter folder: its config, its tensors, the modules it speaks of."""

    folder: Path
    config: Mapping[str, Any]
    weights: Weights
    pairs: list[Pair]

    def scale(self, module: str, rank: int) -> float:
        """Factor of the product for one module, as its patterns say."""
        alpha = self.config.get("lora_alpha") or rank
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = value
                break
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def delta(self, pair: Pair) -> Tensor:
        """What is added to the module's weight, float32."""
        down, up = (self.weights.read(name).float() for name in (pair.down, pair.up))
        product = (up @ down) * self.scale(pair.module, down.shape[0])
        return product.T if self.config.get("fan_in_fan_out") else product

    def changes(self, rename: Callable[[str], str | None]) -> dict[str, Callable[[Tensor], Tensor]]:
        """Our weight name -> the function that folds the product into it (result in float32)."""
        plain = not self.config.get("use_dora") and not self.config.get("modules_to_save")
        if not plain or self.config.get("bias", "none") != "none":
            raise CheckpointError(
                "has more than plain LoRA factors (DoRA, biases or saved modules)",
                where=str(self.folder),
                rule="only plain LoRA is folded into weights",
                fix="keep it as an adapter",
            )
        made: dict[str, Callable[[Tensor], Tensor]] = {}
        for pair in self.pairs:
            name = rename(f"{pair.module}.weight")
            assert name is not None
            made[name] = self._folding(pair)
        return made

    def _folding(self, pair: Pair) -> Callable[[Tensor], Tensor]:
        def fold(weight: Tensor) -> Tensor:
            delta = self.delta(pair)
            if delta.shape != weight.shape:
                raise misfit(self.folder, pair, self.weights, tuple(weight.shape))
            return weight.float() + delta

        return fold


def read_lora(folder: Path, config: Mapping[str, Any] | None = None) -> Lora:
    """The adapter of a folder. Raises CheckpointError for one that is not LoRA, or incomplete."""
    config = read_json(folder / "adapter_config.json") if config is None else config
    kind = str(config.get("peft_type", "LORA")).upper()
    files = [folder / name for name in FILES if (folder / name).exists()][:1]
    if kind != "LORA" or not files:
        what = f"an adapter of type {kind}" if files else f"neither of {', '.join(FILES)}"
        raise CheckpointError(what, where=str(folder), rule="adapters are LoRA in PEFT's layout")
    weights = Weights(files)
    halves: dict[str, dict[str, str]] = {}
    for name in weights:
        found = NAME.fullmatch(name.removeprefix(WRAP))
        if found:
            halves.setdefault(found["module"], {})[found["half"]] = name
    broken = [module for module, pair in halves.items() if len(pair) != 2]
    if broken or not halves:
        raise CheckpointError(
            f"half of the factors of {broken[0]}" if broken else "no LoRA factors in it",
            where=str(files[0]),
        )
    pairs = [Pair(module=m, down=half["A"], up=half["B"]) for m, half in halves.items()]
    return Lora(folder=folder, config=config, weights=weights, pairs=pairs)


def check_fit(
    lora: Lora, shapes: Mapping[str, Tensor], rename: Callable[[str], str | None]
) -> dict[str, Pair]:
    """Our module name -> factors. Raises CheckpointError at the first that does not fit."""
    made = {}
    for pair in lora.pairs:
        name = _our_name(f"{pair.module}.weight", shapes, rename)
        if name is None:
            raise CheckpointError(
                f"{pair.module} is no module of the base model",
                where=str(lora.folder),
                rule="an adapter fits only the kind of model it was trained on",
                fix="name the right base with base=PATH",
            )
        wanted = tuple(shapes[name].shape)
        down, up = lora.weights.shape(pair.down), lora.weights.shape(pair.up)
        if (up[0], down[1]) != (
            wanted[:2] if not lora.config.get("fan_in_fan_out") else wanted[::-1]
        ):
            raise misfit(lora.folder, pair, lora.weights, wanted)
        made[name.removesuffix(".weight")] = pair
    return made


def misfit(folder: Path, pair: Pair, weights: Weights, wanted: Iterable[int]) -> CheckpointError:
    """The error of factors whose product has not the shape of the weight."""
    down, up = weights.shape(pair.down), weights.shape(pair.up)
    return CheckpointError(
        f"{pair.module}: the adapter's factors make {(up[0], down[1])}, the base model's weight is "
        f"{tuple(wanted)}",
        where=str(folder),
        rule="an adapter fits only the model it was trained on",
        fix="name the right base with base=PATH",
    )


def _our_name(
    key: str, shapes: Mapping[str, Tensor], rename: Callable[[str], str | None]
) -> str | None:
    for name in (key, rename(key)):
        if name in shapes:
            return name
    return None
