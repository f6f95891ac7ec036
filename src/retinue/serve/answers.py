"""One call of the API from its body to its reply, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import Request as Http
from starlette.types import Receive, Scope, Send

from retinue.core.seed import stream_seed
from retinue.decode.sampling import SamplingParams
from retinue.serve import beams as beam_search
from retinue.serve.beams import Beams
from retinue.serve.failures import ApiError
from retinue.serve.models import Models
from retinue.serve.replies import DONE, Answer, Replies, sse
from retinue.serve.request import Request
from retinue.serve.schema import Asked
from retinue.serve.service import GoneError, Place, fresh_seed


class Pieces(StreamingResponse):
    """Server-sent events; whatever becomes of the client, the call's place is given back."""

    def __init__(self, pieces: AsyncGenerator[bytes], place: Place) -> None:
        super().__init__(pieces, media_type="text/event-stream")
        self.place, self.pieces = place, pieces
        self.headers["cache-control"] = "no-cache"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.pieces.aclose()
            self.place.release()


class Call:
    """What a body asks of a model: how many answers, drawn how, in which form, by how many beams.

    limit: longest answer where the body names none. Raises ApiError for what cannot be served.
    """

    def __init__(
        self,
        models: Models,
        body: Asked,
        *,
        kind: Literal["chat", "text"],
        prompts: int,
        limit: int,
    ) -> None:
        self.service, self.adapter = models.pick(body.model, body.adapter)
        body.check(choices=self.service.spec.choices)
        self.body, self.kind, self.prompts = body, kind, prompts
        self.each = body.n or 1
        self.beams: Beams | None = None
        if body.beams > 1:
            penalty = 1.0 if body.length_penalty is None else body.length_penalty
            self.beams = Beams(count=body.beams, length_penalty=penalty)
            if prompts > 1:
                raise ApiError(400, "one prompt at a time goes with beams", param="prompt")
        self.base = body.params(limit=limit, seed=fresh_seed())
        self.budget = self.service.budget(body.visual_tokens, body.visual_tokens_min)

    def params(self, number: int) -> SamplingParams:
        """Of one answer: the first draws from the seed itself, others from streams of their own."""
        number %= self.each
        if self.beams is not None:
            return self.base.model_copy(update={"temperature": 0.0})
        seed = self.base.seed if number == 0 else stream_seed(self.base.seed, "choice", number)
        return self.base.model_copy(update={"seed": seed})

    def extras(self) -> dict[str, Any]:
        """What all requests of the call share; slow where a form is to be compiled."""
        form = self.body.form
        guide = None
        if form is not None:
            guide = self.service.grammars.guide(form[0], form[1], field=form[2])
        return {"guide": guide, "adapter": self.adapter, "budget": self.budget}

    @property
    def facts(self) -> dict[str, Any]:
        """Fields that replies have beside OpenAI's."""
        found: dict[str, Any] = {"adapter": self.adapter} if self.adapter else {}
        return found | ({"decoder": beam_search.NAME} if self.beams else {})


Make = Callable[[str], list[Request]]
"""The call's name -> its requests, one for each answer; slow."""


async def reply(call: Call, http: Http, make: Make) -> Response:
    """Answers of a call, whole or in pieces."""
    service, body = call.service, call.body
    place = service.place(call.prompts * call.each)
    try:
        name = f"{fresh_seed():x}"
        requests = await service.prepare(lambda: make(name), limited=body.limit is not None)
        replies = Replies(
            call.kind,
            requests,
            processor=service.processor,
            model=body.model or service.name,
            facts=call.facts,
        )
        if body.stream:
            return Pieces(_pieces(call, requests, replies, place, http), place)
        answers = [Answer(trim=call.kind == "chat") for _ in requests]
        following = service.follow(requests, place, http, beams=call.beams)
        async with aclosing(following) as events:
            async for number, event in events:
                _, shown = answers[number].take(event, ends=service.engine.ends)
                answers[number].events += [shown] if shown else []
        return JSONResponse(replies.whole(answers, prompts=call.prompts))
    except GoneError:
        place.release()
        return Response(status_code=499)  # nobody reads it
    except BaseException:
        place.release()
        raise


async def _pieces(
    call: Call, requests: list[Request], replies: Replies, place: Place, http: Http
) -> AsyncGenerator[bytes]:
    service, options = call.service, call.body.stream_options
    answers = [Answer(trim=replies.kind == "chat") for _ in requests]
    held: list[list[Any]] = [[] for _ in requests]
    try:
        if replies.kind == "chat":
            for number in range(len(requests)):
                yield sse(replies.opening(number))
        following = service.follow(requests, place, http, beams=call.beams)
        async with aclosing(following) as events:
            async for number, event in events:
                text, shown = answers[number].take(event, ends=service.engine.ends)
                held[number] += [shown] if shown else []
                if text or event.finish or (shown and requests[number].logprobs):
                    yield sse(replies.piece(number, text, held[number], event.finish))
                    held[number] = []
        if options is not None and options.include_usage:
            yield sse(replies.closing(answers, prompts=call.prompts))
    except GoneError:
        return
    except ApiError as error:
        yield sse(error.body)
    yield DONE


def chat_requests(call: Call, body: Any, name: str) -> list[Request]:
    """Requests of a conversation; its pictures are read and prepared once for all answers."""
    sample = call.service.sample(name, body.messages)
    extras = call.extras()
    first = call.service.prompts.chat(
        sample, params=call.params(0), top=body.top, logprobs=bool(body.logprobs), **extras
    )
    return several(call, first, name)


def text_requests(call: Call, body: Any, name: str) -> list[Request]:
    """Requests of bare prompts, `n` of each."""
    extras = call.extras()
    found: list[Request] = []
    for number, prompt in enumerate(body.prompts):
        first = call.service.prompts.bare(
            f"{name}-{number}",
            prompt,
            params=call.params(0),
            top=body.top,
            logprobs=body.logprobs is not None,
            **extras,
        )
        found += several(call, first, f"{name}-{number}")
    return found


def several(call: Call, first: Request, name: str) -> list[Request]:
    """A request once for every answer that is wanted of it."""
    made = []
    for number in range(call.each):
        seed = call.params(number).seed
        params = first.params.model_copy(update={"seed": seed})
        made.append(replace(first, id=f"{name}-{number}", params=params))
    return made
