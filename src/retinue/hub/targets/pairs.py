"""Which format can become which: what `retinue convert --list` shows."""

from __future__ import annotations

LLAVA = ("retinue", "llava", "llava_moss2", "moss2", "hf", "vllm", "mm_simple", "hf-pair")
"""Targets of a model with one CLIP tower, an MLP and a LLaMA."""

PAIRS: dict[str, tuple[str, ...]] = {
    "retinue": (*LLAVA, "sphinx", "flamingo"),
    "peft-adapter": (*LLAVA, "sphinx", "flamingo"),
    "llava": LLAVA,
    "llava-projector": LLAVA,
    "llava-lora": LLAVA,
    "hf-llava": LLAVA,
    "hf-llava-next": tuple(name for name in LLAVA if name != "mm_simple"),
    "mm_simple": LLAVA,
    "hf-pair": LLAVA,
    "cogvlm": ("retinue",),
    "sphinx": ("retinue", "moss2", "sphinx"),
    "flamingo": ("retinue", "flamingo"),
}
"""Source -> targets that hold at least its usual models; another shape is refused by name."""
