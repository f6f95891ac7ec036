"""What LLaVA's `--version` argument chooses: a dialect, how it is trained, a label mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinue.core.errors import DataError
from retinue.text.labels import LabelPolicy, resolve_policy
from retinue.text.template import Template
from retinue.text.templates import TEMPLATES
from retinue.text.templates.dialogue import Dialogue
from retinue.text.templates.human import Rounds
from retinue.types import Message

UNKNOWN = "vicuna_v1"
"""The dialect of versions the trainer does not know, `v0` and `v0.5` among them."""


def template_for_version(version: str) -> Dialogue:
    """The conversation that the trainer's `--version` selects."""
    known = version in TEMPLATES and version not in ("v0", "v0.5")
    found: Any = TEMPLATES.get(version if known else UNKNOWN)
    return found if isinstance(found, Dialogue) else TEMPLATES.get(UNKNOWN)


def policy_name(template: Dialogue) -> str:
    """The mask that the trainer applies to a conversation of this style and version."""
    if template.style in ("PLAIN", "LLAMA_2"):
        return {"PLAIN": "llava-plain", "LLAMA_2": "llava-llama2"}[template.style]
    if template.version.startswith("v1"):
        return "llava-v1"
    return "llava-mpt" if template.version == "mpt" else "llava-legacy"


def training_template(template: Dialogue) -> Dialogue:
    """How the trainer renders a dialect: no presets, media collapsed to the front."""
    changes = {"placement": "collapse", "preset": ()}
    if policy_name(template) != "llava-legacy":
        return template.model_copy(update=changes)
    fields = {key: getattr(template, key) for key in Dialogue.model_fields}
    return Rounds.model_validate(fields | changes)


def policy_for_template(template: Dialogue, *, max_length: int | None = None) -> LabelPolicy:
    """The trainer's mask, with the separators of this template."""
    kind, marks = policy_name(template), {}
    answer = template.roles[1]
    if kind == "llava-v1":
        marks = {"sep": f"{template.sep}{answer}: ", "end": template.sep2 or ""}
    elif kind == "llava-mpt":
        marks = {"sep": template.sep + answer, "end": template.sep}
    elif kind == "llava-llama2":
        marks = {"end": template.sep2 or ""}
    elif kind == "llava-legacy":
        marks = {"human": f"{Rounds.begin}{template.roles[0]}: "}
    return resolve_policy({"kind": kind, "max_length": max_length, **marks})


def policy_for_version(version: str, *, max_length: int | None = None) -> LabelPolicy:
    """The label mask that `--version` selects; `max_length` is its `--model_max_length`."""
    return policy_for_template(template_for_version(version), max_length=max_length)


def training_messages(messages: Sequence[Message], template: Dialogue) -> tuple[Message, ...]:
    """The messages that the trainer keeps: an answer before any question goes.

    Raises DataError where the roles then do not alternate.
    """
    kept = tuple(messages)
    if policy_name(template) in ("llava-plain", "llava-legacy"):
        return kept
    if kept and kept[0].role == "assistant":
        kept = kept[1:]
    for i, message in enumerate(kept):
        if message.role != ("user", "assistant")[i % 2]:
            raise DataError(
                f"message {i} is the {message.role}'s", rule="user and assistant take turns"
            )
    return kept


def with_image_marks(template: Template) -> Template:
    """The dialect of models trained with `mm_use_im_start_end`: marks around every image."""
    return template.model_copy(update={"bounds": ("<im_start>", "<im_end>")})
