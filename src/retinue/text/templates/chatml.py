"""`<|im_start|>role ... <|im_end|>`: LLaVA's MPT style, and ChatML proper.

Source: conversation versions of LLaVA (arXiv 2304.08485, haotian-liu/LLaVA); OpenAI's ChatML format
as the chat templates of MPT, Nous-Hermes, Qwen and MOSS2 have it.
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Template
from retinue.text.templates import prompts
from retinue.text.templates.dialogue import Marked

SYSTEM = "<|im_start|>system\n"


class Mpt(Marked):
    """Roles are marks; `system` holds its own mark. LLaVA puts no line break after the end."""

    style: ClassVar[str] = "MPT"
    colon: str = ""
    gap: str = ""

    def with_system(self, text: str) -> Template:
        return super().with_system(SYSTEM + text)


MPT = Mpt(
    name="mpt",
    system=SYSTEM + prompts.MPT,
    roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
    sep="<|im_end|>",
    version="mpt",
)
CHATML_DIRECT = MPT.model_copy(
    update={"name": "chatml_direct", "system": SYSTEM + "Answer the questions."}
)
MISTRAL_DIRECT = CHATML_DIRECT.model_copy(update={"name": "mistral_direct"})
CHATML = MPT.model_copy(
    update={
        "name": "chatml",
        "system": SYSTEM + "You are a helpful assistant.",
        "tail": "\n",
        "version": "chatml",
    }
)
MOSS2 = CHATML.model_copy(update={"name": "moss2", "system": SYSTEM + prompts.MOSS})
