"""The OpenAI-compatible HTTP application over the models of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request as Http

from retinue.core.errors import RetinueError
from retinue.serve.admin import add_admin
from retinue.serve.answers import Call, chat_requests, reply, text_requests
from retinue.serve.failures import ApiError, as_api
from retinue.serve.guard import Guard
from retinue.serve.metrics import page
from retinue.serve.models import Models
from retinue.serve.schema import Asked, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from retinue.serve.service import Service

PLAIN = {429: "queue_full", 413: "request_too_large", 404: "not_found", 405: "method_not_allowed"}


def create_app(served: Service | Models) -> FastAPI:
    """The application; its lifespan runs the engines' threads."""
    models = served if isinstance(served, Models) else Models([served])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        models.start()
        yield
        models.close()

    app = FastAPI(title="retinue", lifespan=lifespan, redoc_url=None)
    spec = models.spec
    app.add_middleware(
        Guard,
        keys=spec.keys,
        admin=spec.admin,
        body_bytes=spec.body_bytes,
        replies=models.replies,
    )
    add_errors(app)
    add_admin(app, models)

    @app.get("/health")
    async def health() -> JSONResponse:
        sound = models.sound
        return JSONResponse({"status": "ok" if sound else "failed"}, 200 if sound else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        parts = {name: (one.metrics, one.engine) for name, one in models.held.items()}
        found = page(parts, models.replies)
        return PlainTextResponse(found, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def all_models() -> dict[str, Any]:
        return {"object": "list", "data": [c for one in models.held.values() for c in cards(one)]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service, adapter = models.pick(name)
        return next(card for card in cards(service) if card["id"] == (adapter or service.name))

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: Http) -> Response:
        call = Call(models, body, kind="chat", prompts=1, limit=spec.max_tokens)
        return await reply(call, http, lambda name: chat_requests(call, body, name))

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, http: Http) -> Response:
        if not body.prompts:
            raise ApiError(400, "there is no prompt", param="prompt")
        # 16 is OpenAI's default on this route
        call = Call(models, body, kind="text", prompts=len(body.prompts), limit=16)
        return await reply(call, http, lambda name: text_requests(call, body, name))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        service, _ = models.pick(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        if body.prompt is not None:
            tokens = service.processor.tokenizer.call(body.prompt)
            return {"tokens": tokens, "count": len(tokens)}

        def make() -> list[int]:
            sample = service.sample("tokenize", body.messages or ())
            params = Asked().params(limit=1, seed=0)
            request = service.prompts.chat(sample, params=params, budget=body.visual_tokens)
            return request.example.tokens

        tokens = await service.worked(make)
        return {"tokens": tokens, "count": len(tokens)}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        service, _ = models.pick(body.model)
        size = service.processor.tokenizer.vocab_size
        if any(not 0 <= token < size for token in body.tokens):
            raise ApiError(400, f"ids are 0 to {size - 1}", param="tokens")
        return {"prompt": service.processor.decode(body.tokens, skip_special=False)}

    return app


def cards(service: Service) -> list[dict[str, Any]]:
    """What the API says of a model, and of each of its adapters."""
    plan = service.processor.plan
    own = {
        "id": service.name,
        "object": "model",
        "created": service.born,
        "owned_by": "retinue",
        "visual_tokens": plan.per_view().length,
        "visual_token_budgets": plan.budgets,
    }
    names = list(service.engine.adapters.held)
    return [own, *({**own, "id": name, "parent": service.name} for name in names)]


def add_errors(app: FastAPI) -> None:
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
