"""The original's conversation objects over the templates of the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from retinue.core.errors import ConfigError
from retinue.text.template import resolve
from retinue.text.templates import TEMPLATES
from retinue.text.templates.dialogue import Dialogue
from retinue.types import Message, Text


class Conversation:
    """Messages of two roles and the prompt that they make; `<image>` stands in the text."""

    def __init__(self, template: Dialogue, messages: Sequence[list[str | None]] = ()) -> None:
        self.template = template
        self.messages: list[list[str | None]] = [list(message) for message in messages]

    @property
    def roles(self) -> tuple[str, str]:
        """The names that `append_message` takes."""
        return self.template.roles

    @property
    def system(self) -> str:
        return self.template.system

    @property
    def sep(self) -> str:
        return self.template.sep

    @property
    def sep2(self) -> str | None:
        return self.template.sep2

    def append_message(self, role: str, message: str | None) -> None:
        """A turn of `roles[0]` or `roles[1]`; None leaves it open for the model."""
        self.messages.append([role, message])

    def get_prompt(self) -> str:
        """The prompt as one string. Raises DataError for turns that the dialect cannot express."""
        turns = [
            Message(role="assistant" if side else "user", parts=(Text(text=text),))
            for side, text in zip(self._sides(), (text for _, text in self.messages), strict=True)
            if text is not None
        ]
        open_end = bool(self.messages) and self.messages[-1][1] is None
        return self.template.text(turns, reply=open_end)

    def _sides(self) -> list[int]:
        """0 for the user's messages, 1 for the model's; by turns where the roles have one name."""
        if self.roles[0] == self.roles[1]:
            return [number % 2 for number in range(len(self.messages))]
        return [int(role != self.roles[0]) for role, _ in self.messages]

    def copy(self) -> Conversation:
        """Another conversation with the same messages."""
        return Conversation(self.template, self.messages)


class _Templates(Mapping[str, Conversation]):
    """Name -> a fresh conversation."""

    def __getitem__(self, name: str) -> Conversation:
        """Raises ConfigError, with the nearest name, for one that is no conversation of LLaVA's."""
        found = resolve(name)
        if not isinstance(found, Dialogue):
            raise ConfigError(f"template {name!r} is no conversation of LLaVA's")
        return Conversation(found)

    def __iter__(self) -> Iterator[str]:
        return (name for name in TEMPLATES if isinstance(TEMPLATES.get(name), Dialogue))

    def __len__(self) -> int:
        return sum(1 for _ in self)


conv_templates: Mapping[str, Conversation] = _Templates()
"""The original's table: `conv_templates["vicuna_v1"].copy()`."""
