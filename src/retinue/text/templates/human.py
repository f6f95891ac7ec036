"""`###Human: ... ###Assistant: ...`: LLaVA's SINGLE style, and its form in training.

Source: conversation versions of LLaVA (arXiv 2304.08485, haotian-liu/LLaVA), after Vicuna v0.
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Turn
from retinue.text.templates import prompts
from retinue.text.templates.dialogue import Dialogue, Marked
from retinue.types import Segment


class Single(Marked):
    """One separator after the system prompt and after every turn."""

    style: ClassVar[str] = "SINGLE"


class Rounds(Dialogue):
    """What LLaVA's oldest training path makes of a SINGLE template: `### Role: text` lines."""

    style: ClassVar[str] = "ROUNDS"
    begin: ClassVar[str] = "### "

    def mark(self, side: int) -> str:
        """The opening of a turn of the user (0) or the assistant (1)."""
        return f"{self.begin}{self.roles[side]}: "

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out = [Segment(text=f"{self.system}\n\n")]
        for turn in turns:
            out.append(Segment(text=self.mark(self.side(turn)), train=turn.train))
            out += [*self.content(turn), Segment(text="\n", train=turn.train)]
        return [*out, Segment(text=self.mark(1).rstrip() if reply else self.begin)]


_HUMAN = Single(name="v0", system=prompts.HUMAN, roles=("Human", "Assistant"), sep="###")
V0 = _HUMAN.model_copy(update={"preset": prompts.ENERGY})
DEFAULT = V0.model_copy(update={"name": "default"})
LLAVA_V0 = _HUMAN.model_copy(update={"name": "llava_v0"})
V0_MMTAG = _HUMAN.model_copy(
    update={
        "name": "v0_mmtag",
        "system": prompts.TAGGED,
        "version": "v0_mmtag",
        "wrap": prompts.TAGS,
    }
)
