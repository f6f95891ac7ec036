"""What the page asks a server: its models, and answers piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from retinue.core.errors import EnvError
from retinue.demo.ui.calls import CONNECT_S, posted


class RefusedError(Exception):
    """The server's own words for why there is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a server. budgets: visual tokens per view that can be asked for."""

    name: str
    budgets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text that goes on the answer, or `anew` is all of it; the last says what was spent."""

    text: str = ""
    usage: dict[str, Any] | None = None
    anew: bool = False
    note: str = ""


class Server(Protocol):
    """Whatever the page can ask."""

    def models(self) -> list[Model]:
        """All models, the default first. Raises EnvError where the server cannot be reached."""

    def stream(self, body: dict[str, Any]) -> Iterator[Piece]:
        """Pieces of the answer to a chat request. Raises RefusedError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A server of the OpenAI API. url: without `/v1`; key: what it wants, if anything."""

    url: str
    key: str = ""
    timeout_s: float = 600.0

    def models(self) -> list[Model]:
        """All models, the default first. Raises EnvError where the server cannot be reached."""
        try:
            reply = httpx.get(
                f"{self.url}/v1/models", headers=self.headers, timeout=CONNECT_S, trust_env=False
            )
            reply.raise_for_status()
            rows = reply.json()["data"]
            return [
                Model(name=row["id"], budgets=tuple(row.get("visual_token_budgets") or ()))
                for row in rows
            ]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EnvError(
                "no server of the OpenAI API answers",
                where=self.url,
                rule=str(error) or type(error).__name__,
                fix="start one with `retinue serve`, or name a model's folder instead",
            ) from None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def stream(self, body: dict[str, Any]) -> Iterator[Piece]:
        """Pieces of the answer; ends the request when the caller stops reading.

        Raises RefusedError with the server's words. A body with beams is answered in one piece.
        """
        streamed = int(body.get("num_beams", 1)) < 2
        more = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
        address = f"{self.url}/v1/chat/completions"
        try:
            with posted(
                address, body | more, headers=self.headers, timeout_s=self.timeout_s
            ) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise RefusedError(words_of(reply))
                if not streamed:
                    reply.read()
                    yield whole(reply.json())
                    return
                for line in reply.iter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield piece(json.loads(line.removeprefix("data: ")))
        except (httpx.HTTPError, ValueError) as error:
            raise RefusedError(f"the server does not answer: {error}") from None


def piece(event: dict[str, Any]) -> Piece:
    """One event of a stream. Raises RefusedError where it is an error."""
    if "error" in event:
        raise RefusedError(str(event["error"].get("message", event["error"])))
    choices = event.get("choices") or [{}]
    text = choices[0].get("delta", {}).get("content") or ""
    return Piece(text=text, usage=event.get("usage"))


def whole(reply: dict[str, Any]) -> Piece:
    return Piece(text=reply["choices"][0]["message"]["content"], usage=reply.get("usage"))


def words_of(reply: httpx.Response) -> str:
    """What an error reply says, in OpenAI's form or another."""
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{reply.status_code} {reply.reason_phrase}"
