"""Web documents and captions as OpenFlamingo's pre-training writes them.

Source: mlfoundations/open_flamingo (arXiv 2308.01390).
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Turn
from retinue.text.templates.dialogue import Dialogue
from retinue.types import Segment

CHUNK = "<|endofchunk|>"


class Web(Dialogue):
    """`<image>` before its text, `<|endofchunk|>` where the text ends, `end` after all.

    A sample is a picture and its caption (question and answer), or a document (an answer alone):
    what stands before its first picture is no target, nor is its end.
    """

    style: ClassVar[str] = "WEB"
    end: str = "</s>"

    @property
    def stop(self) -> list[str]:
        return [CHUNK]

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out: list[Segment] = []
        document = len(turns) == 1 and turns[0].role == "assistant"
        seen = False
        for turn in turns:
            for piece in turn.pieces:
                if isinstance(piece, str):
                    trained = turn.train and (seen or not document)
                    out.append(Segment(text=piece, train=trained, literal=True))
                    continue
                if seen:
                    out.append(Segment(text=CHUNK, train=turn.train))
                out.append(Segment(media=piece))
                seen = True
        if not reply:
            trained = bool(turns) and turns[-1].train
            out.append(Segment(text=CHUNK, train=trained))
            out.append(Segment(text=self.end, train=trained and not document))
        return out


WEB = Web(name="web")
