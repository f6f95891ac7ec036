"""Bodies of replies, whole and in pieces, as the OpenAI API has them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retinue.model.spec import Plan
from retinue.processor import Processor
from retinue.serve.prompt import told
from retinue.serve.request import Event, Request

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"


def sse(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


@dataclass(slots=True, kw_only=True)
class Answer:
    """One choice while it grows.

    trim: no blanks at either end, as conversations have it; blank: those that may be the end.
    """

    trim: bool
    text: str = ""
    blank: str = ""
    count: int = 0
    cached: int = 0
    finish: str | None = None
    events: list[Event] = field(default_factory=list)

    def take(self, event: Event, *, ends: set[int]) -> tuple[str, Event | None]:
        """What may be shown now, and the event if its id is part of the answer's text."""
        self.count += 1
        self.cached, self.finish = event.cached, event.finish
        piece = self.blank + event.text
        self.blank = ""
        if self.trim:
            piece = piece if self.text else piece.lstrip()
            self.blank = piece[len(piece.rstrip()) :]
            piece = piece[: len(piece) - len(self.blank)]
        self.text += piece
        if event.token in ends and event.finish == "stop":
            return piece, None
        return piece, event


class Replies:
    """Replies to one call: its name, its moment, its model; facts: further fields of all."""

    def __init__(
        self,
        kind: Kind,
        requests: Sequence[Request],
        *,
        processor: Processor,
        model: str,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.kind, self.requests, self.processor, self.model = kind, requests, processor, model
        self.facts = dict(facts or {})
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self.id, self.created = f"{prefix}-{secrets.token_hex(12)}", int(time.time())

    def whole(self, answers: Sequence[Answer], *, prompts: int) -> dict[str, Any]:
        """The reply of a call that does not stream; prompts: how many different ones it has."""
        choices = []
        for number, answer in enumerate(answers):
            marks = self.logprobs(answer.events) if self.wants(number) else None
            own: dict[str, Any] = {"text": answer.text}
            if self.kind == "chat":
                message = {"role": "assistant", "content": answer.text, "refusal": None}
                own = {"message": message}
            choices.append(
                {"index": number, **own, "logprobs": marks, "finish_reason": answer.finish}
            )
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {
            **self.head(name),
            "choices": choices,
            "usage": self.usage(answers, prompts=prompts),
        }

    def piece(
        self, number: int, text: str, events: Sequence[Event], finish: str | None
    ) -> dict[str, Any]:
        """A piece of one choice."""
        marks = self.logprobs(events) if self.wants(number) and events else None
        own: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            own = {"delta": {"content": text} if text else {}}
        return self._chunk([{"index": number, **own, "logprobs": marks, "finish_reason": finish}])

    def opening(self, number: int) -> dict[str, Any]:
        """The first piece of a chat's choice: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk(
            [{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}]
        )

    def closing(self, answers: Sequence[Answer], *, prompts: int) -> dict[str, Any]:
        """The piece without choices that says what was used."""
        return {**self._chunk([]), "usage": self.usage(answers, prompts=prompts)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self.head(name), "choices": choices}

    def head(self, name: str) -> dict[str, Any]:
        plan: Plan = self.processor.plan
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "visual_tokens": told(self.requests[0], plan)[0],
            **self.facts,
        }

    def usage(self, answers: Sequence[Answer], *, prompts: int) -> dict[str, Any]:
        """Tokens of the different prompts, once each, and of all answers."""
        each = len(self.requests) // prompts
        first = self.requests[::each]
        read = sum(len(request.example.tokens) for request in first)
        made = sum(answer.count for answer in answers)
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": sum(a.cached for a in answers[::each])},
            "visual_tokens": sum(told(one, self.processor.plan)[1] for one in first),
        }

    # ------------------------------------------------------------------ log-probabilities

    def wants(self, number: int) -> bool:
        return self.requests[number].logprobs

    def logprobs(self, events: Sequence[Event]) -> dict[str, Any]:
        """Of some ids of an answer, in the form of the route."""
        if self.kind == "chat":
            return {
                "content": [
                    {
                        **self.mark(event.token, event.logprob),
                        "top_logprobs": [self.mark(id, value) for id, value in event.top],
                    }
                    for event in events
                ],
                "refusal": None,
            }
        texts = [self.name(event.token) for event in events]
        return {
            "tokens": texts,
            "token_logprobs": [event.logprob for event in events],
            "top_logprobs": [
                {self.name(id): value for id, value in event.top} or None for event in events
            ],
            "text_offset": [sum(map(len, texts[:n])) for n in range(len(texts))],
        }

    def mark(self, token: int | None, logprob: float | None) -> dict[str, Any]:
        text = self.name(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def name(self, token: int | None) -> str:
        assert token is not None
        return self.processor.decode([token], skip_special=False)
