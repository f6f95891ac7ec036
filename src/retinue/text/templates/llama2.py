"""`[INST] ... [/INST] ... </s>`: LLaMA-2's dialect and Mistral's.

Source: LLaMA-2 (arXiv 2307.09288, its released chat code), Mistral 7B (arXiv 2310.06825), and the
conversation versions of LLaVA that use them (haotian-liu/LLaVA).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from retinue.text.template import Turn
from retinue.text.templates import prompts
from retinue.text.templates.dialogue import Dialogue
from retinue.types import Segment


class Llama2(Dialogue):
    """The system prompt stands inside the first user turn; a pending answer adds nothing."""

    style: ClassVar[str] = "LLAMA_2"

    @property
    def stop(self) -> list[str]:
        return [self.sep2 or ""]

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        if not turns or not turns[0] or turns[0].role != "user":
            self.refuse("no first question", "the first message is the user's and not empty")
        out: list[Segment] = []
        for i, turn in enumerate(turns):
            side = self.side(turn)
            if not turn:
                continue
            if side == 0:
                inside = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system and i == 0 else ""
                out.append(Segment(text=f"{self.sep}[INST] {inside}"))
                out += [*self.content(turn), Segment(text=" [/INST]")]
                continue
            out += [Segment(text=" ", train=turn.train), *self.content(turn)]
            if not (reply and i == len(turns) - 1):
                out.append(Segment(text=f" {self.sep2 or ''}", train=turn.train))
        # The original strips the separator's characters, in any order, from the prompt's start.
        return [replace(out[0], text=out[0].text.lstrip(self.sep)), *out[1:]]


LLAMA_2 = Llama2(
    name="llama_2",
    system=prompts.LLAMA,
    roles=("USER", "ASSISTANT"),
    sep="<s>",
    sep2="</s>",
    version="llama_v2",
)
LLAVA_LLAMA_2 = LLAMA_2.model_copy(update={"name": "llava_llama_2", "system": prompts.VISION})
MISTRAL_INSTRUCT = LLAMA_2.model_copy(update={"name": "mistral_instruct", "system": "", "sep": ""})
