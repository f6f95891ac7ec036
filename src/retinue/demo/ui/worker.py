"""LLaVA's model worker as its web page asks it: a prompt, base64 pictures, messages ending in NUL.

For workers that do not serve the OpenAI API. Routes, fields and the choice of a conversation
follow LLaVA's `model_worker` and `gradio_web_server`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from retinue.core.errors import DataError
from retinue.demo.ui.calls import posted
from retinue.demo.ui.client import Piece, RefusedError
from retinue.text.template import Template, resolve
from retinue.types import Media, Message, Text

HEADERS = {"user-agent": "LLaVA Client"}
SCALES = (1, 9, 36, 144, 576)
"""Visual tokens that the page of M3 offers; the last is what it asks for unless told otherwise."""
NESTED = ("m3", "matryoshka")
"""Parts of the names of models that take a scale."""
TAKEN = {"model", "messages", "max_tokens", "temperature", "top_p", "visual_tokens"}
"""Fields of a chat request that the protocol has a place for."""


def budgets_of(name: str) -> tuple[int, ...]:
    """The scales of a model that has any, by its name: a worker does not say."""
    return SCALES if any(part in name.lower() for part in NESTED) else ()


def template_of(name: str) -> Template:
    """The conversation that LLaVA's web server opens with a model of this name.

    Two of its names stand for conversations that it does not have: Mistral-OpenOrca is asked in
    ChatML, as it was trained, and an MPT without pictures as one with.
    """
    name = name.lower()
    marked = "mmtag" in name or ("plain" in name and "finetune" not in name)
    if "llava" not in name:
        found = {"mpt": "mpt", "llama-2": "llama_2"}
        return resolve(next((mode for part, mode in found.items() if part in name), "vicuna_v1"))
    if "llama-2" in name:
        return resolve("llava_llama_2")
    if "mistral" in name or "mixtral" in name:
        chat = "orca" in name or "hermes" in name
        return resolve("chatml_direct" if chat else "mistral_instruct")
    if "llava-v1.6-34b" in name:
        return resolve("chatml_direct")
    if "v1" in name:
        return resolve("v1_mmtag" if marked else "llava_v1")
    if "mpt" in name:
        return resolve("mpt")
    return resolve("v0_mmtag" if marked else "llava_v0")


def prompt_of(messages: list[dict[str, Any]], template: Template) -> tuple[str, list[str]]:
    """(prompt, pictures in base64) of a chat request. Raises RefusedError where it cannot be said.

    Pictures stand before the text of their turn, `<image>` and a line break each; in the dialects
    with marks around pictures, those of the first turn get an exchange of their own.
    """
    wrapped = "mmtag" in template.name
    placed = {"placement": "lead", "wrap": ("<Image>", "</Image>")} if wrapped else {}
    template = template.model_copy(update={"placement": "front", **placed})
    pictures: list[str] = []
    turns = []
    for message in messages:
        content = message["content"]
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made: list[Text | Media] = []
        for part in parts:
            if part["type"] == "text":
                made.append(Text(text=part["text"].replace("<image>", "")))
            else:
                pictures.append(part["image_url"]["url"].partition(",")[2])
                made.append(Media(source=b""))
        turns.append(Message(role=message["role"], parts=tuple(made)))
    try:
        return template.text(turns, reply=True), pictures
    except DataError as error:
        raise RefusedError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker at `address`. template: how its model is asked; None: by the model's name."""

    address: str
    template: Template | None = None
    timeout_s: float = 600.0

    def body(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the worker is sent for a chat request."""
        template = self.template or template_of(asked["model"])
        prompt, pictures = prompt_of(asked["messages"], template)
        found = {
            "model": asked["model"],
            "prompt": prompt,
            "temperature": float(asked["temperature"]),
            "top_p": float(asked.get("top_p", 1.0)),
            "max_new_tokens": int(asked["max_tokens"]),
            "stop": (template.stop or [""])[0],
            "images": pictures,
        }
        scale = asked.get("visual_tokens")
        if scale is None and budgets_of(asked["model"]):
            scale = SCALES[-1]
        return found if scale is None else found | {"matryoshka_vis_token_scale": scale}

    def stream(self, asked: dict[str, Any]) -> Iterator[Piece]:
        """The answer so far, again and again. Raises RefusedError with the worker's words."""
        body = self.body(asked)
        address = f"{self.address.rstrip('/')}/worker_generate_stream"
        try:
            with posted(address, body, headers=HEADERS, timeout_s=self.timeout_s) as reply:
                if reply.status_code != 200:
                    raise RefusedError(f"{reply.status_code} {reply.reason_phrase}")
                for message in messages_of(reply.iter_bytes()):
                    if message["error_code"] != 0:
                        raise RefusedError(f"{message['text']} (code {message['error_code']})")
                    text = message["text"][len(body["prompt"]) :].strip()
                    yield Piece(text=text, anew=True)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"the worker {self.address} does not answer: {error!r}") from None
        if left := sorted(set(asked) - TAKEN):
            yield Piece(note=f"LLaVA's worker does not take {', '.join(left)}")


def messages_of(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream, each of which a NUL ends, however the network cut them."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\0")
        yield from (json.loads(one) for one in whole if one)
