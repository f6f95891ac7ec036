"""The OpenAI-compatible HTTP application over one `Service`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request as Http
from starlette.types import Receive, Scope, Send

from retinue.core.errors import RetinueError
from retinue.core.seed import stream_seed
from retinue.serve.failures import ApiError, as_api
from retinue.serve.guard import Guard
from retinue.serve.messages import sample_of
from retinue.serve.replies import DONE, Answer, Replies, sse
from retinue.serve.request import Request
from retinue.serve.schema import Asked, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from retinue.serve.service import GoneError, Place, Service, fresh_seed

PLAIN = {429: "queue_full", 413: "request_too_large", 404: "not_found", 405: "method_not_allowed"}


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


def create_app(service: Service) -> FastAPI:
    """The application; its lifespan runs the engine's thread."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.background.start()
        yield
        service.background.close()

    app = FastAPI(title="retinue", lifespan=lifespan, redoc_url=None)
    spec = service.spec
    app.add_middleware(
        Guard,
        keys=spec.keys,
        body_bytes=spec.body_bytes,
        metrics=service.metrics,
    )
    _errors(app)

    @app.get("/health")
    async def health() -> JSONResponse:
        sound = service.background.sound
        return JSONResponse({"status": "ok" if sound else "failed"}, 200 if sound else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        page = service.metrics.page(service.engine)
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return card()

    def card() -> dict[str, Any]:
        plan = service.processor.plan
        return {
            "id": service.name,
            "object": "model",
            "created": service.born,
            "owned_by": "retinue",
            "visual_tokens": plan.per_view().length,
            "visual_token_budgets": plan.budgets,
        }

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: Http) -> Response:
        def make(id: str, number: int) -> Request:
            sample = sample_of(id, body.messages, limits=spec.pictures)
            params = params_of(number)
            return service.prompts.chat(
                sample,
                params=params,
                budget=body.visual_tokens,
                top=body.top,
                logprobs=bool(body.logprobs),
            )

        params_of = _seeds(body, spec.max_tokens)
        return await _reply(service, "chat", body, http, make, prompts=1)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, http: Http) -> Response:
        prompts, each = body.prompts, body.n or 1
        if not prompts:
            raise ApiError(400, "there is no prompt", param="prompt")

        def make(id: str, number: int) -> Request:
            return service.prompts.bare(
                id,
                prompts[number // each],
                params=params_of(number % each),
                budget=body.visual_tokens,
                top=body.top,
                logprobs=body.logprobs is not None,
            )

        params_of = _seeds(body, 16)  # OpenAI's default on this route
        return await _reply(service, "text", body, http, make, prompts=len(prompts))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if body.prompt is not None:
            tokens = service.processor.tokenizer.call(body.prompt)
        else:
            sample = sample_of("tokenize", body.messages or (), limits=spec.pictures)
            params = Asked().params(limit=1, seed=0)
            request = service.prompts.chat(sample, params=params, budget=body.visual_tokens)
            tokens = request.example.tokens
        return {"tokens": tokens, "count": len(tokens)}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        service.check_model(body.model)
        size = service.processor.tokenizer.vocab_size
        if any(not 0 <= token < size for token in body.tokens):
            raise ApiError(400, f"ids are 0 to {size - 1}", param="tokens")
        return {"prompt": service.processor.decode(body.tokens, skip_special=False)}

    return app


def _seeds(body: Asked, limit: int) -> Callable[[int], Any]:
    """Parameters of a call's answers: the first draws from the seed itself, others from its own."""
    base = body.params(limit=limit, seed=fresh_seed())

    def params(number: int) -> Any:
        seed = base.seed if number == 0 else stream_seed(base.seed, "choice", number)
        return base.model_copy(update={"seed": seed})

    return params


async def _reply(
    service: Service,
    kind: Any,
    body: Asked,
    http: Http,
    make: Callable[[str, int], Request],
    *,
    prompts: int,
) -> Response:
    """Answers of a call, whole or in pieces."""
    service.check_model(body.model)
    body.check(choices=service.spec.choices)
    count = prompts * (body.n or 1)
    place = service.place(count)
    try:
        name = f"{fresh_seed():x}"
        requests = await service.prepare(
            lambda: [make(f"{name}-{number}", number) for number in range(count)],
            limited=body.limit is not None,
        )
        replies = Replies(kind, requests, processor=service.processor, model=service.name)
        if body.stream:
            pieces = _pieces(service, requests, replies, body, place, http, prompts)
            return Pieces(pieces, place)
        answers = [Answer(trim=kind == "chat") for _ in requests]
        async with aclosing(service.follow(requests, place, http)) as events:
            async for number, event in events:
                _, shown = answers[number].take(event, ends=service.engine.ends)
                answers[number].events += [shown] if shown else []
        return JSONResponse(replies.whole(answers, prompts=prompts))
    except GoneError:
        place.release()
        return Response(status_code=499)  # nobody reads it
    except BaseException:
        place.release()
        raise


async def _pieces(
    service: Service,
    requests: list[Request],
    replies: Replies,
    body: Asked,
    place: Place,
    http: Http,
    prompts: int,
) -> AsyncGenerator[bytes]:
    answers = [Answer(trim=replies.kind == "chat") for _ in requests]
    held: list[list[Any]] = [[] for _ in requests]
    try:
        if replies.kind == "chat":
            for number in range(len(requests)):
                yield sse(replies.opening(number))
        async with aclosing(service.follow(requests, place, http)) as events:
            async for number, event in events:
                text, shown = answers[number].take(event, ends=service.engine.ends)
                held[number] += [shown] if shown else []
                if text or event.finish or (shown and requests[number].logprobs):
                    yield sse(replies.piece(number, text, held[number], event.finish))
                    held[number] = []
        if body.stream_options is not None and body.stream_options.include_usage:
            yield sse(replies.closing(answers, prompts=prompts))
    except GoneError:
        return
    except ApiError as error:
        yield sse(error.body)
    yield DONE


def _errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    def answer(error: ApiError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers=headers)

    @app.exception_handler(ApiError)
    async def ours(http: Http, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RetinueError)
    async def known(http: Http, error: RetinueError) -> JSONResponse:
        return answer(as_api(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Http, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return answer(ApiError(400, f"{place or 'body'}: {first['msg']}", param=place or None))

    @app.exception_handler(HTTPException)
    async def plain(http: Http, error: HTTPException) -> JSONResponse:
        status = error.status_code
        return answer(ApiError(status, str(error.detail), code=PLAIN.get(status)))

    @app.exception_handler(Exception)
    async def unexpected(http: Http, error: Exception) -> JSONResponse:
        return answer(as_api(error))
