"""OpenFlamingo's few-shot prompts: pictures and answers in a row, each answer ended by a mark.

Source: OpenFlamingo (arXiv 2308.01390; its evaluation).
"""

from __future__ import annotations

from retinue.text.template import Template, Turn
from retinue.types import Segment

END = "<|endofchunk|>"


class OpenFlamingo(Template):
    """Earlier turns are examples, the last question is what is asked.

    ask: a question's form, {} is its text; without {} the text is left out. end: after an answer;
    between: after an example.
    """

    ask: str = "{}"
    end: str = END
    between: str = "\n"

    @property
    def stop(self) -> list[str]:
        return [self.end]

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out: list[Segment] = []
        before, mark, after = self.ask.partition("{}")
        for place, turn in enumerate(turns):
            if turn.role not in ("user", "assistant"):
                self.refuse(f"a {turn.role!r} message", "the dialect knows user and assistant")
            last, text = place == len(turns) - 1, turn.text.strip()
            if turn.role == "user":
                out += [Segment(media=number) for number in turn.media]
                out.append(Segment(text=before))
                out.append(Segment(text=text if mark else "", literal=True))
                out.append(Segment(text=after))
                continue
            out.append(Segment(text=text, train=turn.train, literal=True))
            if not (last and reply):
                out.append(Segment(text=self.end, train=turn.train))
            if not last:
                out.append(Segment(text=self.between))
        return out


OPEN_FLAMINGO = OpenFlamingo(name="open_flamingo")
OPEN_FLAMINGO_VQA = OpenFlamingo(name="open_flamingo_vqa", ask="Question:{} Short answer:")
OPEN_FLAMINGO_CAPTION = OpenFlamingo(name="open_flamingo_caption", ask="Output:")
OPEN_FLAMINGO_NAMES = OpenFlamingo(name="open_flamingo_names", ask="Output:", between="")
OPEN_FLAMINGO_MEMES = OpenFlamingo(
    name="open_flamingo_memes",
    ask="is an image with: '{}' written on it. Is it hateful? Answer:",
    between="",
)
