"""The dialects, by name. LLaVA's conversation versions keep their names."""

from __future__ import annotations

from typing import Any

from retinue.core.registry import Registry

_HERE = "retinue.text.templates"

TEMPLATES: Registry[Any] = Registry(
    "template",
    {
        "default": f"{_HERE}.human:DEFAULT",
        "v0": f"{_HERE}.human:V0",
        "llava_v0": f"{_HERE}.human:LLAVA_V0",
        "v0_mmtag": f"{_HERE}.human:V0_MMTAG",
        "v1": f"{_HERE}.vicuna:V1",
        "vicuna_v1": f"{_HERE}.vicuna:VICUNA_V1",
        "llava_v1": f"{_HERE}.vicuna:LLAVA_V1",
        "v1_mmtag": f"{_HERE}.vicuna:V1_MMTAG",
        "llama_2": f"{_HERE}.llama2:LLAMA_2",
        "llava_llama_2": f"{_HERE}.llama2:LLAVA_LLAMA_2",
        "mistral_instruct": f"{_HERE}.llama2:MISTRAL_INSTRUCT",
        "mpt": f"{_HERE}.chatml:MPT",
        "chatml_direct": f"{_HERE}.chatml:CHATML_DIRECT",
        "mistral_direct": f"{_HERE}.chatml:MISTRAL_DIRECT",
        "chatml": f"{_HERE}.chatml:CHATML",
        "moss2": f"{_HERE}.chatml:MOSS2",
        "accessory": f"{_HERE}.accessory:ACCESSORY",
        "accessory_multimodal": f"{_HERE}.accessory:ACCESSORY_MULTIMODAL",
        "accessory_llava_v1": f"{_HERE}.accessory:ACCESSORY_LLAVA_V1",
        "accessory_vicuna_v1_1": f"{_HERE}.accessory:ACCESSORY_VICUNA",
        "accessory_bair_v1": f"{_HERE}.accessory:ACCESSORY_BAIR",
        "accessory_single": f"{_HERE}.accessory:ACCESSORY_SINGLE",
        "plain": f"{_HERE}.plain:PLAIN",
        "v0_plain": f"{_HERE}.plain:V0_PLAIN",
        "guanaco": f"{_HERE}.guanaco:GUANACO",
        "guanaco_no_prompt": f"{_HERE}.guanaco:GUANACO_NO_PROMPT",
        "open_flamingo": f"{_HERE}.openflamingo:OPEN_FLAMINGO",
        "open_flamingo_vqa": f"{_HERE}.openflamingo:OPEN_FLAMINGO_VQA",
        "open_flamingo_caption": f"{_HERE}.openflamingo:OPEN_FLAMINGO_CAPTION",
        "open_flamingo_names": f"{_HERE}.openflamingo:OPEN_FLAMINGO_NAMES",
        "open_flamingo_memes": f"{_HERE}.openflamingo:OPEN_FLAMINGO_MEMES",
        "cogvlm": f"{_HERE}.cogvlm:COGVLM",
        "cogvlm_vqa": f"{_HERE}.cogvlm:COGVLM_VQA",
        "hf": f"{_HERE}.hf:HfTemplate",
        "web": f"{_HERE}.web:WEB",
        "document": f"{_HERE}.document:DOCUMENT",
    },
)
