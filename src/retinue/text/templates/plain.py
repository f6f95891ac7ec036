"""Image and caption, nothing else: LLaVA's PLAIN style, for aligning a connector.

Source: stage 1 of LLaVA (arXiv 2304.08485, section 4.2; haotian-liu/LLaVA).
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Turn
from retinue.text.templates.dialogue import Dialogue
from retinue.types import Segment


class Plain(Dialogue):
    """Training: the image, the caption, `sep`; the question is dropped. Asking: text and `sep`."""

    style: ClassVar[str] = "PLAIN"

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        sides = [self.side(turn) for turn in turns]
        if reply:
            if any(turn and side for turn, side in zip(turns, sides, strict=True)):
                self.refuse("an earlier answer", "a caption prompt has no turns")
            asked = [[*self.content(turn), Segment(text=self.sep)] for turn in turns if turn]
            return [Segment(text=self.system), *(piece for group in asked for piece in group)]
        if sides != [0, 1] or not turns[0].media:
            self.refuse(
                "not a picture with a caption",
                "a sample is one user message with an image and one answer",
            )
        shown = [s for s in self.content(turns[0]) if not s.literal]
        caption = turns[1]
        return [*shown, *self.content(caption), Segment(text=self.sep, train=caption.train)]


PLAIN = Plain(name="plain", sep="\n")
V0_PLAIN = PLAIN.model_copy(update={"name": "v0_plain"})
