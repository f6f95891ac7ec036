"""`USER: ... ASSISTANT: ...</s>`: LLaVA's TWO style, Vicuna's dialect.

Source: Vicuna v1.1 (Chiang et al. 2023, FastChat), conversation versions of LLaVA-1.5
(arXiv 2310.03744, haotian-liu/LLaVA).
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.templates import prompts
from retinue.text.templates.dialogue import Marked


class Two(Marked):
    """One separator after the system prompt and the user, another after the assistant."""

    style: ClassVar[str] = "TWO"

    def end(self, side: int) -> str:
        return (self.sep2 or "") if side else self.sep

    @property
    def stop(self) -> list[str]:
        return [self.end(1)]


V1 = Two(
    name="v1",
    system=prompts.USER,
    roles=("USER", "ASSISTANT"),
    sep=" ",
    sep2="</s>",
    version="v1",
)
VICUNA_V1 = V1.model_copy(update={"name": "vicuna_v1"})
LLAVA_V1 = V1.model_copy(update={"name": "llava_v1", "system": prompts.HUMAN})
V1_MMTAG = V1.model_copy(
    update={
        "name": "v1_mmtag",
        "system": prompts.TAGGED,
        "version": "v1_mmtag",
        "wrap": prompts.TAGS,
    }
)
