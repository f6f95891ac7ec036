"""`### Human: ... ### Assistant: ...`: LLaMA2-Accessory's conversations, pictures right after bos.

Source: https://github.com/Alpha-VLLM/LLaMA2-Accessory (its conversations, after FastChat's).
"""

from __future__ import annotations

from typing import Literal

from retinue.text.template import Template, Turn
from retinue.text.templates import prompts
from retinue.types import Segment


class Accessory(Template):
    """Pictures first, wherever they stood; then one text in which no special token has a name.

    single: system, two line breaks and `sep`, every turn ended by a line break and `sep`. two: the
    user's turns end with a blank, the assistant's with `sep`, and a turn must have text. In
    training, and in turns with pictures, blanks around a turn's text are dropped.
    """

    style: Literal["single", "two"] = "single"
    roles: tuple[str, str] = ("Human", "Assistant")
    sep: str = "###"

    @property
    def stop(self) -> list[str]:
        return [self.end(1)]

    def end(self, side: int) -> str:
        """What ends a turn of the user (0) or the assistant (1)."""
        if self.style == "single":
            return "\n" + self.sep
        return self.sep if side else " "

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        head = self.system + ("\n\n" + self.sep if self.style == "single" else " ")
        out = [Segment(media=number) for turn in turns for number in turn.media]
        out.append(Segment(text=head, literal=True))
        for place, turn in enumerate(turns):
            if turn.role not in ("user", "assistant"):
                self.refuse(f"a {turn.role!r} message", "the dialect knows user and assistant")
            side = int(turn.role == "assistant")
            text = turn.text.strip() if turn.media or not reply else turn.text
            last = place == len(turns) - 1
            if self.style == "two" and not text and not last:
                self.refuse("an empty message", "every turn of this dialect has text")
            out.append(Segment(text=f" {self.roles[side]}:", literal=True))
            out.append(Segment(text=" ", train=turn.train, literal=True))
            out.append(Segment(text=text, train=turn.train, literal=True))
            if not (reply and side and last):
                out.append(Segment(text=self.end(side), train=turn.train, literal=True))
        if reply and not (turns and turns[-1].role == "assistant"):
            out.append(Segment(text=f" {self.roles[1]}:", literal=True))
        return out


ACCESSORY = Accessory(name="accessory", system=prompts.HUMAN)
ACCESSORY_MULTIMODAL = ACCESSORY.model_copy(
    update={"name": "accessory_multimodal", "system": prompts.WAIV}
)
ACCESSORY_LLAVA_V1 = Accessory(
    name="accessory_llava_v1",
    system=prompts.WAIV,
    style="two",
    roles=("USER", "ASSISTANT"),
    sep="</s>",
)
ACCESSORY_VICUNA = ACCESSORY_LLAVA_V1.model_copy(
    update={"name": "accessory_vicuna_v1_1", "system": prompts.USER}
)
ACCESSORY_BAIR = ACCESSORY_LLAVA_V1.model_copy(
    update={
        "name": "accessory_bair_v1",
        "system": "BEGINNING OF CONVERSATION:",
        "roles": ("USER", "GPT"),
    }
)


class AccessorySingle(Template):
    """One question as it stands and its answer: LLaMA2-Accessory's single-turn data.

    The prompt is the user's text, whole; labels `accessory-single` put eos behind the answer.
    """

    @property
    def stop(self) -> list[str]:
        return []

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        roles = [turn.role for turn in turns]
        if roles not in (["user"], ["user", "assistant"]):
            self.refuse(f"messages of {', '.join(roles)}", "one question, one answer")
        out = [Segment(media=number) for turn in turns for number in turn.media]
        out += [Segment(text=turn.text, train=turn.train, literal=True) for turn in turns]
        return out


ACCESSORY_SINGLE = AccessorySingle(name="accessory_single")
