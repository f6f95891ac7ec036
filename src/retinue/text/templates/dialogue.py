"""The shape that LLaVA's conversation versions share, and the one most of them use."""

from __future__ import annotations

from typing import ClassVar

from retinue.text.template import Template, Turn
from retinue.types import Segment


class Dialogue(Template):
    """A system prompt, two roles, separators. `preset`: example exchanges shown first.

    `version` is what LLaVA's trainer reads to choose a label mask.
    """

    style: ClassVar[str]
    roles: tuple[str, str] = ("", "")
    sep: str = ""
    sep2: str | None = None
    version: str = "Unknown"
    preset: tuple[str, ...] = ()

    @property
    def offset(self) -> int:
        """Number of preset messages."""
        return len(self.preset)

    @property
    def stop(self) -> list[str]:
        return [self.sep]

    def side(self, turn: Turn) -> int:
        """0 for the user, 1 for the assistant."""
        if turn.role not in ("user", "assistant"):
            self.refuse(f"a {turn.role!r} message", "the dialect knows user and assistant")
        return int(turn.role == "assistant")

    def examples(self) -> list[Turn]:
        """The preset messages as turns that are never trained."""
        roles = ("user", "assistant")
        return [
            Turn(role=roles[i % 2], pieces=(text,), train=False)
            for i, text in enumerate(self.preset)
        ]


class Marked(Dialogue):
    """Turns of the form mark, gap, text, end: all of LLaVA's SINGLE, TWO and MPT styles.

    colon: what follows a role's name; gap: what separates it from the text; tail: after every end.
    """

    colon: str = ":"
    gap: str = " "
    tail: str = ""

    def end(self, side: int) -> str:
        """What ends a turn of the user (0) or the assistant (1)."""
        return self.sep

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        out = [Segment(text=self.system + self.end(0) + self.tail)] if self.system else []
        everything = self.examples() + turns
        for i, turn in enumerate(everything):
            side = self.side(turn)
            out.append(Segment(text=self.roles[side] + self.colon))
            if not turn:
                continue
            out += [Segment(text=self.gap, train=turn.train), *self.content(turn)]
            if not (reply and side and i == len(everything) - 1):
                out.append(Segment(text=self.end(side), train=turn.train))
                out.append(Segment(text=self.tail))
        if reply and not (turns and turns[-1].role == "assistant"):
            out.append(Segment(text=self.roles[1] + self.colon))
        return out
