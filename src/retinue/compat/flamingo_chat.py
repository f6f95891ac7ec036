"""Prompts of Instruct-Flamingo's web demo: which turns are kept, and how they are joined.

Source: ChenDelong1999/instruct_flamingo (`gradio_demo.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

History = Sequence[Sequence[str | Sequence[str] | None]]
"""[role, message] of every turn; a message is text, or (text, path of a picture), or None where the
assistant is to speak."""

END = "<image><|endofchunk|>"
"""What follows the text of a message with a picture."""


def demo_prompt(
    history: History,
    *,
    buffer_size: int = 32,
    prompt_template: str = "",
    user_prefix: str = "Human",
    ai_prefix: str = "Assistant",
    sep: str = "\n### ",
) -> tuple[str, list[str]]:
    """(prompt, paths of its pictures) of a conversation whose last turn is to be answered.

    buffer_size: exchanges kept before the last one, -1 = all of them. prompt_template may name
    {user_prefix} and {ai_prefix}. It differs from the text of training by the mark after pictures
    and by the line break at its beginning.
    """
    kept = list(history) if buffer_size < 0 else list(history)[-2 * (buffer_size + 1) :]
    prompt = prompt_template.format(user_prefix=user_prefix, ai_prefix=ai_prefix)
    images: list[str] = []
    for role, message in kept:
        text = message if isinstance(message, str) else ""
        if message is not None and not isinstance(message, str):
            text, image = message[0] + END, message[1]
            images.append(image)
        prompt += f"{sep}{role}: {text}"
    return prompt, images
