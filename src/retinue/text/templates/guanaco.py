"""`### Human: ...` dialects of Clever Flamingo, whose later turns start on a new line.

Source: instruct_flamingo (arXiv 2307.01003), after Guanaco (arXiv 2305.14314).
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Turn
from retinue.text.templates.dialogue import Dialogue
from retinue.types import Segment

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Guanaco(Dialogue):
    """The system line, then turns; the first follows it on a new line or stands alone.

    end: the end-of-sequence token of the vocabulary, which ends an answer.
    """

    style: ClassVar[str] = "GUANACO"
    end: str = "</s>"

    @property
    def stop(self) -> list[str]:
        return ["\n### Human:"]

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out = [Segment(text=self.system)]
        for number, turn in enumerate(turns):
            first = not number and not self.system
            begin = "" if first else "\n"
            side = self.side(turn)
            out.append(Segment(text=f"{begin}### {self.roles[side]}: "))
            out += self.content(turn)
            if side and not (reply and number == len(turns) - 1):
                out.append(Segment(text=self.end, train=turn.train))
        if reply and not (turns and turns[-1].role == "assistant"):
            out.append(Segment(text=f"\n### {self.roles[1]}: "))
        return out


GUANACO = Guanaco(name="guanaco", system=SYSTEM, roles=("Human", "Assistant"))
GUANACO_NO_PROMPT = GUANACO.model_copy(update={"name": "guanaco_no_prompt", "system": ""})
