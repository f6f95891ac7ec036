"""Documents as they stand: words and pictures in their order, and an end.

Source: interleaved pre-training as MM1 describes it (arXiv 2403.09611, section 3.2).
"""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Turn
from retinue.text.templates.dialogue import Dialogue
from retinue.types import Segment


class Document(Dialogue):
    """Every word of an answer is a target, pictures are not; a sample is one answer, or a pair.

    Of a picture and its caption as question and answer, the question's words are read, not learnt.
    """

    style: ClassVar[str] = "DOCUMENT"

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out: list[Segment] = []
        for turn in turns:
            for piece in turn.pieces:
                if isinstance(piece, str):
                    out.append(Segment(text=piece, train=turn.train, literal=True))
                else:
                    out.append(Segment(media=piece))
        if not reply:
            out.append(Segment(text=self.sep, train=bool(turns) and turns[-1].train))
        return out


DOCUMENT = Document(name="document", sep="</s>")
