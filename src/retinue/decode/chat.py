"""A conversation with a model: history, pictures, answers piece by piece."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retinue.decode.auto import AutoBudget
from retinue.decode.budget import Budget, with_budget
from retinue.decode.loop import Delta, Runner, stream
from retinue.decode.prompt import (
    device_of,
    end_ids,
    user_message,
    with_stops,
    with_template,
    within_room,
)
from retinue.decode.sampling import SamplingParams
from retinue.decode.tries import Tries, attempt
from retinue.media.source import Source
from retinue.media.video import VideoSource
from retinue.model.lm.fused import inference_twin
from retinue.processor import Processor
from retinue.text.template import Template
from retinue.types import Media, Message, Sample, Text


class Chat:
    """One conversation. `messages` is its history, without the system prompt.

        chat = Chat(model, processor)
        for piece in chat.ask("What is this?", images=["photo.jpg"]): print(piece, end="")
        answer = "".join(chat.ask("And what colour is it?"))

    template: a dialect other than the processor's; system: a system prompt other than the
    dialect's; budget: visual tokens per view of every picture of the conversation that names none
    itself, None = the model's default; it may be changed between questions. With an AutoBudget the
    answer comes once it is sure enough, and `answered_with` says with how many.
    """

    def __init__(
        self,
        model: Runner,
        processor: Processor,
        *,
        params: SamplingParams | None = None,
        template: Template | str | Mapping[str, Any] | None = None,
        system: str | None = None,
        budget: Budget = None,
    ) -> None:
        self.model, self.processor = inference_twin(model), with_template(processor, template)
        self.params = params or SamplingParams()
        self.system, self.budget = system, budget
        self.messages: list[Message] = []
        self.answered_with: int | None = None

    def reset(self) -> None:
        """Forget the exchanges; the system prompt stays."""
        self.messages = []

    def ask(
        self,
        text: str,
        *,
        images: Sequence[Source | Media] = (),
        videos: Sequence[VideoSource | Media] = (),
    ) -> Iterator[str]:
        """The answer, piece by piece as it comes, without leading blanks.

        A picture with a budget of its own is given as `Media(source=..., budget=...)`.

        Left before its end, what was said so far is the answer in the history. Raises MediaError
        for a picture that cannot be read and RequestError for a prompt that leaves no room, with
        the history as it was.
        """
        question = user_message(text, images, videos=videos)
        head = (
            ()
            if self.system is None
            else (Message(role="system", parts=(Text(text=self.system),)),)
        )
        sample = Sample(id="chat", messages=(*head, *self.messages, question))
        deltas = self.deltas(sample)
        said, ended = "", False
        try:
            for delta in deltas:
                piece = delta.text if said else delta.text.lstrip()
                if piece:
                    said += piece
                    yield piece
            ended = True
        finally:
            if ended or said.strip():
                answer = Message(role="assistant", parts=(Text(text=said.strip()),))
                self.messages += [question, answer]

    def deltas(self, sample: Sample) -> Iterator[Delta]:
        """The steps of the answer to a conversation, at this chat's budget."""
        params = with_stops(self.params, self.processor)
        if isinstance(self.budget, AutoBudget):
            tries = Tries(self.model, self.processor, policy=self.budget)
            first = self.budget.budgets[0]
            one = attempt(self.processor, sample, budget=first, params=params)
            yield from tries.stream(one)
            self.answered_with = one.budget if one.open else None
            return
        example = self.processor.example(with_budget(sample, self.budget))
        batch = self.processor.collate([example], pad_side="left").to(device_of(self.model))
        self.answered_with = self.budget
        yield from stream(
            self.model,
            batch,
            params=within_room(params, self.processor, example),
            decoder=self.processor,
            eos_ids=end_ids(self.processor),
        )

    def row(self) -> dict[str, Any]:
        """The conversation as one row of chat JSONL; pictures in memory become data URIs."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        chosen = {"visual_tokens": self.budget} if isinstance(self.budget, int) else {}
        return {"messages": head + [_plain(message) for message in self.messages], **chosen}


def _plain(message: Message) -> dict[str, Any]:
    if not message.media:
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {
            "type": part.kind,
            part.kind: _named(part.source),
            **({"visual_tokens": part.budget} if part.budget else {}),
        }
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _named(data: Any) -> str | list[str]:
    if isinstance(data, str):
        return data
    if isinstance(data, tuple):
        return [str(_named(frame)) for frame in data]
    if not isinstance(data, bytes):
        buffer = io.BytesIO()
        data.save(buffer, "PNG")
        data = buffer.getvalue()
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode("ascii")
