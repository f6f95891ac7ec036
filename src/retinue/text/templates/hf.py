"""Any model's own Jinja chat template, with the answers found by rendering prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from retinue.core.errors import ConfigError
from retinue.text.template import Template, Turn
from retinue.types import Segment

if TYPE_CHECKING:
    from retinue.text.tokenizer import Tokenizer

PROBE = "\ufdd1"  # a Unicode noncharacter: stands for one message's content
MEDIUM = "\ufdd2"  # and this for a medium


class HfTemplate(Template):
    """A tokenizer's Jinja `chat_template`; answers are what rendering one more message adds.

    jinja: the template; bos, eos: the tokens it may name. Contents are given as strings, so a
    template that insists on lists of parts is refused.
    """

    name: str = "hf"
    jinja: str
    bos: str = ""
    eos: str = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The template of a tokenizer folder. Raises ConfigError where it has none."""
        if tokenizer.chat_template is None:
            raise ConfigError(
                "the tokenizer has no chat template",
                where=tokenizer.facts.where,
                fix="name a template: `retinue ls templates`",
            )
        bos, eos = (tokenizer.token_text(role) or "" for role in ("bos", "eos"))
        return cls(jinja=tokenizer.chat_template, bos=bos, eos=eos)

    @property
    def stop(self) -> list[str]:
        return [self.eos] if self.eos else []

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        contents = [self._plain(turn) for turn in turns]
        # An answer to be continued is rendered as a finished one and cut where its text ends.
        pending = bool(reply and turns and turns[-1].role == "assistant")
        ask = reply and not pending
        whole = self._jinja(turns, contents, ask=ask)
        trained, literal = bytearray(len(whole)), bytearray(len(whole))
        stop = len(whole)
        for i, turn in enumerate(turns):
            start, end = self._place(turns, contents, i, whole, ask=ask)
            literal[start:end] = b"\1" * (end - start)
            if pending and i == len(turns) - 1:
                stop = end or len(whole.rstrip())
            if turn.train and turn.role == "assistant":
                start, end = self._answer(turns, contents, i, whole, (start, end))
            if turn.train:
                trained[start:end] = b"\1" * (end - start)
        return self._segments(whole[:stop], trained, literal, [k for t in turns for k in t.media])

    def _segments(
        self, whole: str, trained: bytearray, literal: bytearray, media: Sequence[int]
    ) -> list[Segment]:
        if whole.count(MEDIUM) != len(media):
            self.refuse("a picture is lost in the chat template", "contents are kept as they are")
        out: list[Segment] = []
        left, at = list(media), 0
        for i in range(len(whole) + 1):
            here = (trained[i], literal[i]) if i < len(whole) else None
            medium = i < len(whole) and whole[i] == MEDIUM
            if i > at and (here != (trained[i - 1], literal[i - 1]) or medium):
                flags = {"train": bool(trained[i - 1]), "literal": bool(literal[i - 1])}
                out.append(Segment(text=whole[at:i], **flags))
                at = i
            if medium:
                before, after = (Segment(text=mark) for mark in self.bounds)
                out += [before, Segment(media=left.pop(0)), after]
                at = i + 1
        return out

    def _plain(self, turn: Turn) -> str:
        if PROBE in turn.text or MEDIUM in turn.text:
            self.refuse("the text holds U+FDD1 or U+FDD2", "they mark contents and media")
        return "".join(MEDIUM if isinstance(piece, int) else piece for piece in turn.pieces)

    def _place(
        self, turns: list[Turn], contents: list[str], i: int, whole: str, *, ask: bool
    ) -> tuple[int, int]:
        """Where content i stands in the whole; an empty place where the template alters it."""
        probed = self._jinja(turns, [*contents[:i], PROBE, *contents[i + 1 :]], ask=ask)
        start = probed.find(PROBE)
        for text in (contents[i], contents[i].strip()):
            if start >= 0 and whole == probed[:start] + text + probed[start + 1 :]:
                return start, start + len(text)
        return 0, 0

    def _answer(
        self, turns: list[Turn], contents: list[str], i: int, whole: str, content: tuple[int, int]
    ) -> tuple[int, int]:
        """The span of answer i: from where the prompt before it ends through its end mark."""
        before = self._jinja(turns[:i], contents[:i], ask=True)
        after = self._jinja(turns[: i + 1], contents[: i + 1], ask=False)
        if not whole.startswith(after):
            self.refuse(
                f"answer {i} is rendered otherwise once more messages follow",
                "a trained answer must not depend on what comes later; train one answer a sample",
            )
        start = len(before) if after.startswith(before) else content[0]
        if not 0 < start <= len(after):
            self.refuse(
                f"answer {i} cannot be found", "the chat template keeps answers as they are"
            )
        # Blanks after the end mark belong to the next turn; blanks of the answer do not.
        end = max(len(after.rstrip()), content[1])
        return start, end

    def _jinja(self, turns: list[Turn], contents: list[str], *, ask: bool) -> str:
        messages = [
            {"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)
        ]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        from jinja2 import TemplateError

        try:
            return str(
                _compiled(self.jinja).render(
                    messages=messages,
                    add_generation_prompt=ask,
                    bos_token=self.bos,
                    eos_token=self.eos,
                )
            )
        except (TemplateError, TypeError) as error:
            self.refuse("the chat template refuses this conversation", str(error))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    import json
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    world = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    world.filters["tojson"] = to_json
    world.globals["raise_exception"] = fail
    world.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return world.from_string(source)
