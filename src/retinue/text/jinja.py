"""A dialect as the Jinja chat template that other engines read from a folder.

The marks around turns are found by rendering, and what comes out is compared with the dialect on a
few conversations: a template that would write other prompts is not given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from retinue.core.errors import ConfigError, DataError
from retinue.text.parts import on_lines
from retinue.text.template import Template
from retinue.text.templates.hf import HfTemplate
from retinue.types import Media, Message, Part, Role, Text

IMAGE = "<image>"
SYSTEM, ASKED, SAID, AGAIN = (f"\ufdd0{number}\ufdd0" for number in range(4))
"""Unicode noncharacters: texts that stand for those of a conversation."""
Conversation = list[tuple[Role, list[str]]]
"""(role, parts), a part being text or `<image>`."""

TRIALS: tuple[Conversation, ...] = (
    [("user", ["what?"])],
    [("system", ["Be brief."]), ("user", ["what?"])],
    [("user", ["what?"]), ("assistant", ["a cat"]), ("user", ["sure?"])],
    [("user", [IMAGE, "what?"])],
    [("system", ["Be brief."]), ("user", [IMAGE, IMAGE, "what?"])],
    [("user", [IMAGE, "what?"]), ("assistant", ["a cat"]), ("user", ["and", IMAGE])],
    [("user", ["a", IMAGE, "b"]), ("assistant", ["c"]), ("user", ["d"]), ("assistant", ["e"])],
)

KEEP = """
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set at = namespace(after=false) -%}
{%- for part in content -%}
{%- if part['type'] in ('image', 'image_url') -%}
{{ '\\n' if at.after else '' }}{{ IMAGE }}{%- set at.after = true -%}
{%- elif part['type'] == 'text' and part['text'] -%}
{{ '\\n' if at.after and part['text'][:1].strip() else '' }}{{ part['text'] }}
{%- set at.after = false -%}
{%- endif -%}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
"""
FRONT = """
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set seen = namespace(text='', pictures=0, after=false) -%}
{%- for part in content -%}
{%- if part['type'] in ('image', 'image_url') -%}
{%- if seen.after -%}{%- set seen.text = seen.text + '\\n' -%}{%- endif -%}
{%- set seen.pictures = seen.pictures + 1 -%}{%- set seen.after = true -%}{{ IMAGE }}{{ '\\n' }}
{%- elif part['type'] == 'text' and part['text'] -%}
{%- set gap = '\\n' if seen.after and part['text'][:1].strip() else '' -%}
{%- set seen.text = seen.text + gap + part['text'] -%}{%- set seen.after = false -%}
{%- endif -%}{%- endfor -%}
{{ seen.text.strip() if seen.pictures else seen.text }}{%- endif -%}
{%- endmacro -%}
"""
TURNS = """
{%- set said = namespace(system=none) -%}
{{ BOS }}
{%- for message in messages -%}
{%- if message['role'] == 'system' and loop.first -%}
{{ START }}{{ show(message['content']) }}{{ OPENING }}{%- set said.system = true -%}
{%- elif message['role'] == 'user' -%}
{%- if loop.first -%}{{ BARE }}
{%- elif not (loop.index == 2 and said.system) -%}{{ BETWEEN }}{%- endif -%}
{{ show(message['content']) }}
{%- if loop.last and add_generation_prompt -%}{{ ASK }}{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{{ ANSWER }}{{ show(message['content']) }}{%- if loop.last -%}{{ END }}{%- endif -%}
{%- endif -%}{%- endfor -%}
"""


def as_jinja(template: Template, *, bos: str = "") -> str | None:
    """The chat template that writes this dialect's prompts, `bos` before them; None where none can.

    It takes contents as strings and as lists of parts.
    """
    if isinstance(template, HfTemplate):
        return template.jinja
    try:
        marks = _marks(template)
    except (DataError, ConfigError, ValueError):
        return None
    marks["BOS"], marks["IMAGE"] = bos, template.bounds[0] + IMAGE + template.bounds[1]
    source = (FRONT if template.placement == "front" else KEEP) + TURNS
    for name, text in marks.items():
        source = source.replace("{{ " + name + " }}", "{{ " + json.dumps(text) + " }}")
    source = source.strip().replace("-%}\n", "-%}").replace("\n{%-", "{%-")
    return source if _same(template, source, bos=bos) else None


def _marks(template: Template) -> dict[str, str]:
    """What stands around texts, by the names of TURNS."""
    talk: Conversation = [("user", [ASKED]), ("assistant", [SAID]), ("user", [AGAIN])]
    text = template.text(_messages([("system", [SYSTEM]), *talk]), reply=True)
    bare = template.text(_messages(talk), reply=True)
    ended = template.text(_messages(talk[:2]))
    start, rest = text.split(SYSTEM)
    opening, rest = rest.split(ASKED)
    answer, rest = rest.split(SAID)
    between, ask = rest.split(AGAIN)
    return {
        "START": start,
        "OPENING": opening,
        "BARE": bare.split(ASKED)[0],
        "ANSWER": answer,
        "BETWEEN": between,
        "ASK": ask,
        "END": ended.split(SAID)[1],
    }


def _messages(conversation: Conversation) -> list[Message]:
    found = []
    for role, texts in conversation:
        parts: list[Part] = [Media(source="") if t == IMAGE else Text(text=t) for t in texts]
        found.append(Message(role=role, parts=tuple(on_lines(parts))))
    return found


def _same(template: Template, source: str, *, bos: str) -> bool:
    """Whether both write the same prompts."""
    for trial in TRIALS:
        ask = trial[-1][0] == "user"
        try:
            wanted = bos + template.text(_messages(trial), reply=ask)
        except (DataError, ConfigError):
            continue  # nobody can ask for what the dialect does not have
        if rendered(source, listed(trial), ask=ask) != wanted:
            return False
    return True


def listed(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as OpenAI's messages, contents as lists of parts."""
    return [
        {
            "role": role,
            "content": [
                {"type": "image"} if text == IMAGE else {"type": "text", "text": text}
                for text in texts
            ],
        }
        for role, texts in conversation
    ]


def rendered(source: str, messages: Sequence[dict[str, Any]], *, ask: bool) -> str:
    """A prompt as transformers' tokenizers and the engines on them make it."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made: str = env.from_string(source).render(messages=messages, add_generation_prompt=ask)
    return made
