"""LLaVA's conversation versions: fields and every recorded prompt, character by character."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import cases, compared

from retinue.core.errors import DataError
from retinue.text.template import resolve
from retinue.types import Media, Message, Part, Text

FIELD_CASES = cases("m3-llava", "*conversation*", having="templates.json")
PROMPT_CASES = cases("m3-llava", "*conversation*", having="prompts.json")
ROLES = ("user", "assistant")


def parts(text: str) -> tuple[Part, ...]:
    """A message as the originals store it, `<image>` standing for a medium."""
    found: list[Part] = []
    for i, piece in enumerate(text.split("<image>")):
        if i:
            found.append(Media(source=b""))
        if piece:
            found.append(Text(text=piece))
    return tuple(found)


@pytest.mark.parametrize("case", FIELD_CASES, ids=lambda path: path.name)
def test_fields(case: Path) -> None:
    for name, fields in json.loads((case / "templates.json").read_text("utf-8")).items():
        ours = resolve(name)
        for field in ("system", "sep", "sep2", "version", "offset"):
            assert getattr(ours, field) == fields[field], (name, field)
        assert list(ours.roles) == fields["roles"], name
        assert ours.style == fields["sep_style"], name
        shown = [[fields["roles"][i % 2], text] for i, text in enumerate(ours.preset)]
        assert shown == fields["preset"], name
        compared(case)


@pytest.mark.parametrize("case", PROMPT_CASES, ids=lambda path: path.name)
def test_prompts(case: Path) -> None:
    for record in json.loads((case / "prompts.json").read_text("utf-8")):
        stored = record["messages"]
        template = resolve(record["template"])
        # A (text, image, mode) tuple moves its image to the front, unless presets come first.
        if isinstance(stored[0], list) and not record["preset_messages"]:
            template = resolve({"name": record["template"], "placement": "lead"})
        messages = [
            Message(role=ROLES[i % 2], parts=parts(item[0] if isinstance(item, list) else item))
            for i, item in enumerate(stored)
            if item is not None
        ]
        where = (record["template"], record["pattern"])
        reply = stored[-1] is None
        if "error" in record:
            with pytest.raises(DataError):
                template.render(messages, reply=reply)
        else:
            assert template.text(messages, reply=reply) == record["prompt"], where
        compared(case)
