"""Template: messages -> segments. The base of every dialect, and media placement.

Rules that hold for every dialect: what a user wrote is a literal segment; a trained answer is
exactly what follows the prompt rendered with `reply=True`, its end mark included.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from pydantic import ValidationError

from retinue.core.errors import ConfigError, DataError
from retinue.core.spec import Spec, explain
from retinue.types import Media, Message, Segment

Placement = Literal["keep", "front", "collapse", "lead"]
Piece = str | int
"""A run of a message's text, or the number of a medium in the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message whose media are numbered through the conversation."""

    role: str
    pieces: tuple[Piece, ...]
    train: bool

    @property
    def text(self) -> str:
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    @property
    def media(self) -> list[int]:
        return [piece for piece in self.pieces if isinstance(piece, int)]

    def __bool__(self) -> bool:
        return any(piece != "" for piece in self.pieces)


class Template(Spec):
    """A dialect.

    placement: where a message's media go. `keep`: where they stand. `front`: before its text, each
    with a line break. `collapse`: LLaVA's training, one medium per message, in front of its
    stripped text. `lead`: LLaVA's chat, as `front` but for the first message only.
    wrap: text around the media that `collapse` and `lead` move; bounds: marks around every medium.
    """

    name: str = ""
    system: str = ""
    placement: Placement = "keep"
    wrap: tuple[str, str] = ("", "")
    bounds: tuple[str, str] = ("", "")

    @abstractmethod
    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]: ...

    @property
    @abstractmethod
    def stop(self) -> list[str]:
        """Strings that end an answer."""

    def render(self, messages: Sequence[Message], *, reply: bool = False) -> list[Segment]:
        """Segments of a conversation; `reply`: it ends where the assistant is to speak.

        With `reply` and an assistant's message last, that answer is left open to be continued.
        Raises DataError for an order of roles that the dialect cannot express.
        """
        system, turns = _number(messages)
        template = self if system is None else self.with_system(system)
        segments = template._render(template._placed(turns), reply=reply)
        return [piece for piece in segments if piece.text or piece.media is not None]

    def with_system(self, text: str) -> Template:
        """The same dialect with another system prompt."""
        return self.model_copy(update={"system": text})

    def text(
        self, messages: Sequence[Message], *, reply: bool = False, media: str = "<image>"
    ) -> str:
        """The prompt as one string, `media` standing for each medium."""
        segments = self.render(messages, reply=reply)
        return "".join(s.text if s.media is None else media for s in segments)

    # ------------------------------------------------------------ for the dialects

    def content(self, turn: Turn) -> list[Segment]:
        """A turn's own text and media."""
        segments: list[Segment] = []
        for piece in turn.pieces:
            if isinstance(piece, str):
                segments.append(Segment(text=piece, train=turn.train, literal=True))
            else:
                before, after = (Segment(text=mark) for mark in self.bounds)
                segments += [before, Segment(media=piece), after]
        return segments

    def refuse(self, what: str, rule: str) -> NoReturn:
        raise DataError(what, where=f"template {self.name!r}" if self.name else None, rule=rule)

    def _placed(self, turns: list[Turn]) -> list[Turn]:
        if self.placement == "lead":
            return self._lead(turns)
        if self.placement == "keep":
            return turns
        return [self._front(turn) if turn.media else turn for turn in turns]

    def _front(self, turn: Turn) -> Turn:
        text = turn.text.strip()
        if self.placement == "collapse":
            moved: tuple[Piece, ...] = (self.wrap[0], turn.media[0], self.wrap[1])
            return replace(turn, pieces=(*moved, "\n" + text) if text else moved)
        lines = [piece for number in turn.media for piece in (number, "\n")]
        return replace(turn, pieces=(*lines, text))

    def _lead(self, turns: list[Turn]) -> list[Turn]:
        if not turns or not turns[0].media:
            return turns
        first, text = turns[0], turns[0].text.strip()
        if not any(self.wrap):
            lines = [piece for number in first.media for piece in (number, "\n")]
            return [replace(first, pieces=(*lines, text)), *turns[1:]]
        shown = replace(first, pieces=(self.wrap[0], *first.media, self.wrap[1]))
        seen = Turn(role="assistant", pieces=("Received.",), train=False)
        return [shown, seen, replace(first, pieces=(text,)), *turns[1:]]


def _number(messages: Sequence[Message]) -> tuple[str | None, list[Turn]]:
    system: str | None = None
    turns: list[Turn] = []
    count = 0
    for i, message in enumerate(messages):
        if message.role == "system":
            if i or message.media:
                raise DataError(
                    f"message {i} cannot be a system message",
                    rule="a system message comes first and has no media",
                )
            system = message.text
            continue
        pieces: list[Piece] = []
        for part in message.parts:
            if isinstance(part, Media):
                pieces.append(count)
                count += 1
            else:
                pieces.append(part.text)
        trained = message.role == "assistant" if message.train is None else message.train
        turns.append(Turn(role=message.role, pieces=tuple(pieces), train=trained))
    return system, turns


def resolve(template: Template | str | Mapping[str, Any]) -> Template:
    """A template by name, or `{name: ..., field: value}` to change fields of a named one.

    Raises ConfigError for unknown names and fields.
    """
    from retinue.text.templates import TEMPLATES

    if isinstance(template, Template):
        return template
    changes = {"name": template} if isinstance(template, str) else dict(template)
    if "name" not in changes:
        raise ConfigError("a template needs 'name'", rule=f"known: {', '.join(TEMPLATES.names())}")
    found: Any = TEMPLATES.get(str(changes["name"]))
    if isinstance(found, type) and issubclass(found, Template):
        return found.parse(changes, where="template")
    fields = {key: getattr(found, key) for key in type(found).model_fields}
    try:
        whole: Template = type(found).model_validate(fields | changes)
    except ValidationError as error:
        raise ConfigError(explain(type(found), error), where="template") from None
    return whole


def dump(template: Template) -> dict[str, Any]:
    """What `resolve` needs to give this template back: its name and the fields that differ."""
    from retinue.text.templates import TEMPLATES

    base: Any = TEMPLATES.get(template.name)
    data = template.model_dump(mode="json")
    if isinstance(base, type):
        return data
    usual = base.model_dump(mode="json")
    return {key: value for key, value in data.items() if key == "name" or value != usual.get(key)}
