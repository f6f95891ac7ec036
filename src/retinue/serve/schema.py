"""Bodies of the API: OpenAI's fields, and ours beside them (visual_tokens, top_k, min_p, ...).

A field that is unknown is refused, one that asks for what this server cannot do is refused too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

from retinue.decode.sampling import SamplingParams
from retinue.serve.failures import refuse
from retinue.serve.guide import Form

Count = StrictInt
FORMATS = (
    'a format is {"type": "text"}, {"type": "json_object"} or '
    '{"type": "json_schema", "json_schema": {"name", "schema"}}'
)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        """JSON can spell halves of characters, which no tokenizer takes."""
        if not whole(data):
            raise ValueError("a string holds half of a surrogate pair")
        return data


def whole(data: Any) -> bool:
    """Whether all strings in plain data are text. No recursion: data may be nested deeply."""
    left = [data]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                return False
        elif isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    return True


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatMessage(Body):
    """One turn; content is text or a list of {"type": "text"} and {"type": "image_url"} parts."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: StrictStr | list[dict[str, Any]] | None = None
    name: StrictStr | None = None
    refusal: StrictStr | None = None


class Asked(Body):
    """What both kinds of completion share."""

    model: StrictStr | None = None
    max_tokens: Count | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: Count | None = Field(default=None, ge=1)
    stop: StrictStr | list[StrictStr] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Count | None = Field(default=None, ge=-(2**63), lt=2**63)
    # ours
    visual_tokens: Count | None = Field(default=None, ge=1)
    top_k: Count | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    ignore_eos: bool = False
    adapter: StrictStr | None = None
    visual_tokens_min: Count | None = Field(default=None, ge=1)
    num_beams: Count | None = Field(default=None, ge=1, le=16)
    use_beam_search: bool = False
    length_penalty: float | None = Field(default=None, ge=-10, le=10)
    guided_json: dict[str, Any] | bool | None = None
    guided_regex: StrictStr | None = Field(default=None, max_length=4096)
    guided_choice: list[StrictStr] | None = Field(default=None, min_length=1, max_length=1024)
    # accepted where they change nothing
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: StrictStr | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        found = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        return tuple(text for text in found if text)

    @property
    def beams(self) -> int:
        """How many beams are kept; 1: none, every step takes one id."""
        if self.num_beams is not None:
            return self.num_beams
        return max(4, self.n or 1) if self.use_beam_search else 1

    @property
    def form(self) -> tuple[Form, Any, str] | None:
        """The form that the answer must have, and the field that asks for it."""
        found: list[tuple[Form, Any, str]] = []
        if self.guided_json is not None:
            found.append(("json", self.guided_json, "guided_json"))
        if self.guided_regex is not None:
            found.append(("regex", self.guided_regex, "guided_regex"))
        if self.guided_choice is not None:
            found.append(("choice", self.guided_choice, "guided_choice"))
        if len(found) > 1:
            raise refuse("an answer has one form", found[1][2])
        return found[0] if found else None

    def neutral(self) -> dict[str, tuple[Any, ...]]:
        """Field -> the values of it that this server can serve."""
        return {
            "presence_penalty": (None, 0),
            "frequency_penalty": (None, 0),
            "logit_bias": (None, {}),
        }

    def check(self, *, choices: int, stops: int = 16) -> None:
        """Raise ApiError for fields that ask for what is not there."""
        for name, allowed in self.neutral().items():
            if getattr(self, name) not in allowed:
                raise refuse(f"{name} is not supported by this server", name, "unsupported")
        if (self.n or 1) > choices:
            raise refuse(f"n is {self.n}, and this server gives at most {choices}", "n")
        if len(self.stops) > stops or any(len(text) > 256 for text in self.stops):
            raise refuse(f"at most {stops} stop strings of at most 256 characters", "stop")
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options needs stream", "stream_options")
        if self.form is not None and self.ignore_eos:
            raise refuse("an answer of a given form ends where it is complete", "ignore_eos")
        if self.beams > 1:
            self._check_beams()
        elif self.length_penalty is not None:
            raise refuse("length_penalty needs num_beams", "length_penalty")

    def _check_beams(self) -> None:
        """What cannot be had together with beams."""
        wrong = {
            "n": (self.n or 1) > self.beams,
            "temperature": bool(self.temperature),
            "stop": bool(self.stops),
            "min_p": bool(self.min_p),
            self.form[2] if self.form else "response_format": self.form is not None,
            "logprobs": bool(getattr(self, "logprobs", None)),
        }
        for name, value in wrong.items():
            if value:
                raise refuse(f"{name} does not go together with {self.beams} beams", name)

    def params(self, *, limit: int, seed: int) -> SamplingParams:
        """How answers are drawn; temperature is 1 where none is given, as in OpenAI's API."""
        return SamplingParams(
            max_new_tokens=self.limit or limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            stop=self.stops,
            seed=seed if self.seed is None else self.seed,
            ignore_eos=self.ignore_eos,
        )


class ChatBody(Asked):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Count | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Count | None = Field(default=None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: StrictStr | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else 0

    def neutral(self) -> dict[str, tuple[Any, ...]]:
        return super().neutral() | {
            "tools": (None, []),
            "tool_choice": (None, "none", "auto"),
            "functions": (None, []),
            "modalities": (None, ["text"]),
        }

    @property
    def form(self) -> tuple[Form, Any, str] | None:
        asked, found = self.response_format, super().form
        if asked is None or asked == {"type": "text"}:
            return found
        if found is not None:
            raise refuse("an answer has one form", "response_format")
        if asked == {"type": "json_object"}:
            return "json", {"type": "object"}, "response_format"
        inner = asked.get("json_schema")
        if asked.get("type") != "json_schema" or not isinstance(inner, dict):
            raise refuse(FORMATS, "response_format")
        schema = inner.get("schema", {})
        if not isinstance(schema, dict | bool):
            raise refuse("a schema is a JSON object", "response_format.json_schema.schema")
        return "json", schema, "response_format.json_schema.schema"

    def check(self, *, choices: int, stops: int = 16) -> None:
        super().check(choices=choices, stops=stops)
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs needs logprobs", "top_logprobs")


class CompletionBody(Asked):
    """POST /v1/completions."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]]
    logprobs: Count | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    suffix: StrictStr | None = None
    best_of: Count | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [[int(part) for part in self.prompt]]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def top(self) -> int:
        return self.logprobs or 0

    def neutral(self) -> dict[str, tuple[Any, ...]]:
        return super().neutral() | {
            "echo": (None, False),
            "suffix": (None, ""),
            "best_of": (None, 1, self.n),
        }


class TokenizeBody(Body):
    """POST /tokenize: a prompt as it stands, or the prompt that a conversation becomes."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: list[ChatMessage] | None = None
    visual_tokens: Count | None = Field(default=None, ge=1)


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: StrictStr | None = None
    tokens: list[StrictInt]
