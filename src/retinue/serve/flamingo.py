"""Instruct-Flamingo's HTTP route over our engine: `POST /clever_flamingo`.

A body is {"content_lst": {"prompt", "imgpaths", "args"}, "typ"}, with or without a Content-Type;
the reply {"result": {"response": [answer]}}. Pictures are files of the server, below `media_root`.
Requests of one beam are the engine's; those of several are answered by `generate`, between two of
its steps, with the same arguments.

Source: ChenDelong1999/instruct_flamingo (its `api.py` and README).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as Http
from transformers import StoppingCriteriaList

from retinue.core.errors import RequestError, RetinueError
from retinue.core.files import writing
from retinue.decode.rendered import rendered_ids, tidy
from retinue.decode.sampling import SamplingParams
from retinue.serve.beams import Turns
from retinue.serve.failures import ApiError, as_api
from retinue.serve.schema import whole
from retinue.serve.service import GoneError, Place, Service, fresh_seed
from retinue.types import Media

ROUTE = "/clever_flamingo"
SPLIT = "### Assistant:"
"""What comes after the last of these is the answer."""


class Body(BaseModel):
    """What the original declares: any content, and a string that it ignores."""

    content_lst: dict[str, Any]
    typ: str


class Args(BaseModel):
    """The eight arguments of generation, all of them needed."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_new_token: int = Field(ge=1)
    num_beams: int = Field(ge=1, le=16)
    temperature: float = Field(ge=0)
    top_k: int = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    do_sample: bool
    length_penalty: float
    no_repeat_ngram_size: int = Field(ge=0)

    def params(self) -> SamplingParams:
        """What the engine makes of them; beams are not its business."""
        drawn = self.do_sample and self.temperature > 0
        return SamplingParams(
            max_new_tokens=self.max_new_token,
            temperature=self.temperature if drawn else 0.0,
            top_k=self.top_k if drawn else 0,
            top_p=self.top_p if drawn else 1.0,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            seed=fresh_seed(),
        )

    def options(self) -> dict[str, Any]:
        """Keywords of `generate`."""
        drawn = self.do_sample and self.temperature > 0
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {
            "max_new_tokens": self.max_new_token,
            "num_beams": self.num_beams,
            "do_sample": drawn,
            "length_penalty": self.length_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            **(sampling if drawn else {}),
        }


class Content(BaseModel):
    """What `content_lst` must hold."""

    prompt: str
    imgpaths: list[str]
    args: Args


@dataclass(slots=True, kw_only=True)
class CleverFlamingo:
    """The route's work: `reply(body)` is (status, JSON).

    media_root: the folder below which pictures may lie, None = no pictures are served; log: a file
    to which every call is appended, as the original writes it.
    """

    service: Service
    media_root: Path | None = None
    log: Path | None = None
    clock: Callable[[], float] = field(default=time.time)

    async def reply(self, raw: bytes, http: Http) -> tuple[int, Any]:
        """Whatever is wrong with a body is said with status 422, as the original's framework does.

        Raises ApiError where the server has no room, GoneError where the client has left.
        """
        started = self.clock()
        try:
            body, content = parse(raw)
            images = [self.picture(name) for name in content.imgpaths]
        except BodyError as error:
            return 422, {"detail": error.detail}
        except RequestError as error:
            return 422, {"detail": str(error)}
        place = self.service.place(1)
        try:
            if content.args.num_beams > 1:
                text = await self.searched(content, images, place, http)
            else:
                text = await self.decoded(content, images, place, http)
        except RetinueError as error:
            known = as_api(error)
            return known.status, {"detail": known.message}
        finally:
            place.release()
        answers = [text.split(SPLIT)[-1].strip()]
        if self.log is not None:
            lines = log_entry(body, answers, started=started, elapsed=self.clock() - started)
            with writing(self.log), self.log.open("a", encoding="utf-8") as file:
                file.write(lines)
        return 200, {"result": {"response": answers}}

    def picture(self, name: str) -> Path:
        """The file that a request names. Raises RequestError for one outside the folder."""
        if self.media_root is None:
            raise RequestError(
                f"the picture {name!r:.80}",
                rule="this server reads no files",
                fix="start it with a media root",
            )
        root = self.media_root.resolve()
        try:
            path = (root / name).resolve()
            inside = path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError):  # too long, a loop of links, a zero byte
            inside = False
        if not inside:
            raise RequestError(
                f"the picture {name!r:.80} is not below the media root",
                rule="pictures are files of the server's media folder",
                fix="give a path relative to it",
            )
        return path

    async def decoded(self, content: Content, images: list[Path], place: Place, http: Http) -> str:
        """Prompt and answer as text, by the engine."""
        service, media = self.service, [Media(source=str(path)) for path in images]
        (request,) = await service.prepare(
            lambda: [
                service.prompts.bare(
                    f"{fresh_seed():x}", content.prompt, media, params=content.args.params()
                )
            ],
            limited=True,
        )
        mark, ids = service.processor.image_id, list(request.example.tokens)
        async with aclosing(service.follow([request], place, http)) as events:
            async for _, event in events:
                if event.token is not None:
                    ids.append(event.token)
        return self.text([id for id in ids if id != mark])

    async def searched(self, content: Content, images: list[Path], place: Place, http: Http) -> str:
        """The same by `generate`, in the engine's thread."""
        service = self.service

        def work(turn: Callable[[], bool]) -> list[int]:
            ids = rendered_ids(
                service.engine.model,
                service.processor,
                content.prompt,
                images,
                stopping_criteria=StoppingCriteriaList([Turns(service.engine, "", turn)]),
                **content.args.options(),
            )
            return list(ids.tolist())

        if content.prompt.count("<image>") != len(images):
            raise RequestError(
                f"{len(images)} pictures for {content.prompt.count('<image>')} <image>",
                rule="one each",
            )
        ids = await service.searched(work, place, http)
        return self.text([id for id in ids if id != service.processor.image_id])

    def text(self, ids: list[int]) -> str:
        """Ids as the original's tokenizer gave them back."""
        return tidy(self.service.processor.tokenizer.decode(ids, skip_special=True))


def parse(raw: bytes) -> tuple[Body, Content]:
    """A request's body. Raises BodyError, RequestError."""
    try:
        data = json.loads(raw, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is no JSON", rule=str(error)[:80]) from None
    if not whole(data):  # which no tokenizer takes, and no reply can quote
        raise RequestError("a string holds half of a surrogate pair")
    try:
        body = Body.model_validate(data)
    except ValidationError as error:
        raise BodyError(error, "body") from None
    try:
        return body, Content.model_validate(body.content_lst)
    except ValidationError as error:
        raise BodyError(error, "body", "content_lst") from None


def no_number(name: str) -> float:
    """JSON has neither NaN nor infinities, and replies that quote them could not be written."""
    raise ValueError(f"{name} is no number of JSON")


class BodyError(Exception):
    """detail: what is wrong with a body, and where, as FastAPI says it."""

    def __init__(self, error: ValidationError, *place: str) -> None:
        super().__init__(str(error))
        self.detail = [
            {**line, "loc": [*place, *line["loc"]]}
            for line in error.errors(include_url=False, include_context=False)
        ]


def log_entry(body: Body, answers: list[str], *, started: float, elapsed: float) -> str:
    """A call as the original's log has it: one indented object after the other."""
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
        "time_elapsed": elapsed,
        "request": f"content_lst={body.content_lst!r} typ={body.typ!r}",
        "response": str(answers),
    }
    return json.dumps(facts, indent=4) + "\n"


def add_flamingo(app: FastAPI, route: CleverFlamingo) -> None:
    """The route beside those that `app` has."""

    @app.post(ROUTE)
    async def clever_flamingo(http: Http) -> Response:
        try:
            status, reply = await route.reply(await http.body(), http)
        except GoneError:
            return Response(status_code=499)  # nobody reads it
        except ApiError as error:
            return JSONResponse({"detail": error.message}, error.status)
        return JSONResponse(reply, status)
