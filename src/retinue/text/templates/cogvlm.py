"""`Question: ... Answer: ...`: CogVLM's prompts, pictures first of all.

Source: THUDM's CogVLM (arXiv 2311.03079) and its public checkpoints.
"""

from __future__ import annotations

from retinue.text.template import Template, Turn
from retinue.types import Segment


class CogVLM(Template):
    """Pictures, then one line per question and answer. ask: what stands before an answer."""

    ask: str = "Answer:"

    @property
    def stop(self) -> list[str]:
        return ["</s>"]

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out = [Segment(media=number) for turn in turns for number in turn.media]
        for place, turn in enumerate(turns):
            if turn.role not in ("user", "assistant"):
                self.refuse(f"a {turn.role!r} message", "the dialect knows user and assistant")
            last = place == len(turns) - 1
            text = turn.text.strip()
            if turn.role == "user":
                out.append(Segment(text="Question: "))
                out.append(Segment(text=text, literal=True))
                out.append(Segment(text=f" {self.ask}"))
                continue
            out.append(Segment(text=f" {text}", train=turn.train, literal=True))
            if not last:
                out.append(Segment(text="\n"))
            elif not reply:
                out.append(Segment(text="</s>", train=turn.train))
        return out


COGVLM = CogVLM(name="cogvlm")
COGVLM_VQA = CogVLM(name="cogvlm_vqa", ask="Short answer:")
