"""From a rendered prompt back to the conversation it was rendered from.

LLaVA's protocol sends prompts, OpenAI's wants messages; a template tells where turns begin and end.
"""

from __future__ import annotations

from typing import Any

from retinue.core.errors import RequestError
from retinue.text.template import Template
from retinue.types import Message, Role, Text

MARK = "<image>"
SYSTEM, ASKED, SAID, AGAIN = "\x01system\x01", "\x02asked\x02", "\x03said\x03", "\x04again\x04"


def conversation(prompt: str, template: Template) -> list[tuple[Role, str]]:
    """(role, text) of every turn, pictures as `<image>`; the system's first if it has text.

    Raises RequestError for a prompt that the template does not render from what is found in it.
    """
    (start, opening, bare), between, closing = marks(template)
    head, sign, rest = prompt.partition(opening)
    text = prompt.lstrip()
    if text.startswith(bare) and not (start and text.startswith(start) and sign):
        head, sign, rest = start, bare, text.removeprefix(bare)
    if not sign or not head.strip().startswith(start):
        raise unlike(template)
    system = head.strip().removeprefix(start).strip()
    turns: list[tuple[Role, str]] = [("system", system)] if system else []
    while True:
        asked, sign, rest = rest.partition(closing)
        if not sign:
            raise unlike(template)
        turns.append(("user", asked.strip()))
        if not rest.strip():
            break
        said, sign, rest = rest.partition(between)
        if not sign:
            raise unlike(template)
        turns.append(("assistant", said.strip()))
    if squeezed(rendered(turns, template)) != squeezed(prompt):
        raise unlike(template)
    return turns


def marks(template: Template) -> tuple[tuple[str, str, str], str, str]:
    """What stands around the system's text, between an answer and a question, after a question.

    The first is three: before the system's text, after it, and before the first question where
    there is none.
    """
    asked = [("user", ASKED), ("assistant", SAID), ("user", AGAIN)]
    text = rendered([("system", SYSTEM), *asked], template)
    opening = text.partition(SYSTEM)[2].partition(ASKED)[0].strip()
    start, bare = text.partition(SYSTEM)[0].strip(), rendered(asked, template).partition(ASKED)[0]
    between = text.partition(SAID)[2].partition(AGAIN)[0]
    closing = text.partition(AGAIN)[2]
    if not (opening and between.strip() and closing.strip()):
        raise RequestError(
            f"the template {template.name!r} does not mark its turns", fix="choose another"
        )
    return (start, opening, bare.strip()), between.strip(), closing.strip()


def rendered(turns: list[tuple[Any, str]], template: Template) -> str:
    """The prompt of some turns, `<image>` as the text it is."""
    messages = [Message(role=role, parts=(Text(text=text),)) for role, text in turns]
    if messages[0].role != "system":
        template = template.with_system("")
    return template.text(messages, reply=True)


def squeezed(text: str) -> str:
    return "".join(text.split())


def unlike(template: Template) -> RequestError:
    return RequestError(
        f"the prompt is none of the template {template.name!r}",
        fix="start with --template as the clients' (`retinue ls templates`)",
    )


def messages_of(turns: list[tuple[Role, str]], pictures: list[str]) -> list[dict[str, Any]]:
    """OpenAI's messages, each `<image>` replaced by the next picture (base64 without a head)."""
    left = list(pictures)
    found = []
    for role, text in turns:
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(text.split(MARK)):
            if number:
                if not left:
                    raise RequestError(f"{len(pictures)} pictures for more {MARK}")
                url = f"data:image/png;base64,{left.pop(0)}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            if piece.strip():
                parts.append({"type": "text", "text": piece.strip()})
        pictured = any(part["type"] == "image_url" for part in parts)
        plain = "".join(part["text"] for part in parts if not pictured)
        found.append({"role": role, "content": parts if pictured else plain})
    if left:
        raise RequestError(f"{len(pictures)} pictures for fewer {MARK}")
    return found
