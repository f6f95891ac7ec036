"""Any model's own Jinja chat template, with the answers found by rendering prefixes.

Two kinds: contents as strings, in which media stand where they were written; and contents as lists
of parts, for which the template itself writes a mark per picture and the space around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self

from retinue.core.errors import ConfigError, DataError
from retinue.text.template import Piece, Template, Turn
from retinue.types import Segment

if TYPE_CHECKING:
    from retinue.text.tokenizer import Tokenizer

PROBE = "\ufdd1"  # a Unicode noncharacter: stands for one piece of a message
MEDIUM = "\ufdd2"  # this for a medium
TYPED = "\ufdd3"  # and this for a picture's mark that a user typed


class HfTemplate(Template):
    """A model's own Jinja `chat_template`; answers are what rendering one more message adds.

    jinja: the template; bos, eos: the tokens it may name; mark: what it writes for a picture where
    it takes contents as lists of parts. Source: the chat template convention of transformers.
    """

    name: str = "hf"
    jinja: str
    bos: str = ""
    eos: str = ""
    mark: str = "<image>"

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

    @cached_property
    def parts(self) -> bool:
        """Whether contents are given as lists of parts; found by trying."""
        probe = [Turn(role="user", pieces=(0, PROBE), train=False)]

        def whole(content: Any) -> str:
            try:
                return self._jinja(probe, [content], ask=False)
            except DataError:
                return ""

        listed = whole(self._listed([0, PROBE]))
        if listed.count(self.mark) == 1 and listed.count(PROBE) == 1:
            return True
        return PROBE not in whole(PROBE) and PROBE in whole(self._listed([PROBE]))

    def _render(self, turns: list[Turn], *, reply: bool) -> list[Segment]:
        contents = [self._pieces(turn) for turn in turns]
        # An answer to be continued is rendered as a finished one and cut where its text ends.
        pending = bool(reply and turns and turns[-1].role == "assistant")
        ask = reply and not pending
        whole = self._whole(turns, contents, ask=ask)
        trained, literal = bytearray(len(whole)), bytearray(len(whole))
        stop = len(whole)
        for i, turn in enumerate(turns):
            places = self._places(turns, contents, i, whole, ask=ask)
            start, end = (places[0][0], places[-1][1]) if places else (0, 0)
            if pending and i == len(turns) - 1:
                stop = end or len(whole.rstrip())
            if turn.train and turn.role == "assistant":
                span = self._answer(turns, contents, i, whole, (start, end))
                _fill(trained, span)
            for place in places:
                _fill(literal, place)
                if turn.train and turn.role != "assistant":
                    _fill(trained, place)
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
                out.append(Segment(text=whole[at:i].replace(TYPED, self.mark), **flags))
                at = i
            if medium:
                before, after = (Segment(text=mark) for mark in self.bounds)
                out += [before, Segment(media=left.pop(0)), after]
                at = i + 1
        return out

    def _pieces(self, turn: Turn) -> list[Piece]:
        """A turn's content: one string with MEDIUM inside, or the pieces that become parts."""
        if any(sign in turn.text for sign in (PROBE, MEDIUM, TYPED)):
            self.refuse("the text holds U+FDD1, U+FDD2 or U+FDD3", "they mark contents and media")
        if not self.parts:
            return ["".join(MEDIUM if isinstance(p, int) else p for p in turn.pieces)]
        out: list[Piece] = []
        for before, piece, after in zip(
            (None, *turn.pieces), turn.pieces, (*turn.pieces[1:], None), strict=False
        ):
            if isinstance(piece, str):
                # The line break between picture and text is the template's own to write.
                piece = piece.removeprefix("\n") if isinstance(before, int) else piece
                piece = piece.removesuffix("\n") if isinstance(after, int) else piece
                if not piece:
                    continue
                piece = piece.replace(self.mark, TYPED)
            out.append(piece)
        return out

    def _places(
        self, turns: list[Turn], contents: list[list[Piece]], i: int, whole: str, *, ask: bool
    ) -> list[tuple[int, int]]:
        """Where the texts of content i stand in the whole, but for those the template alters."""
        found: list[tuple[int, int]] = []
        for k, piece in enumerate(contents[i]):
            if isinstance(piece, int):
                continue
            probe = [*contents[i][:k], PROBE, *contents[i][k + 1 :]]
            probed = self._whole(turns, [*contents[:i], probe, *contents[i + 1 :]], ask=ask)
            start = probed.find(PROBE)
            for text in (piece, piece.strip()):
                if start >= 0 and whole == probed[:start] + text + probed[start + 1 :]:
                    found.append((start, start + len(text)))
                    break
        return sorted(found)

    def _answer(
        self,
        turns: list[Turn],
        contents: list[list[Piece]],
        i: int,
        whole: str,
        content: tuple[int, int],
    ) -> tuple[int, int]:
        """The span of answer i: from where the prompt before it ends through its end mark."""
        before = self._whole(turns[:i], contents[:i], ask=True)
        after = self._whole(turns[: i + 1], contents[: i + 1], ask=False)
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

    def _listed(self, pieces: Sequence[Piece]) -> list[dict[str, str]]:
        return [
            {"type": "image"} if isinstance(piece, int) else {"type": "text", "text": piece}
            for piece in pieces
        ]

    def _whole(self, turns: list[Turn], contents: list[list[Piece]], *, ask: bool) -> str:
        """The rendered conversation with MEDIUM for every picture."""
        if not self.parts:
            return self._jinja(turns, [content[0] for content in contents], ask=ask)
        listed = [self._listed(content) for content in contents]
        return self._jinja(turns, listed, ask=ask).replace(self.mark, MEDIUM)

    def _jinja(self, turns: list[Turn], contents: Sequence[Any], *, ask: bool) -> str:
        messages = [
            {"role": turn.role, "content": content}
            for turn, content in zip(turns, contents, strict=True)
        ]
        if self.system:
            system: Any = self.system
            if contents and not isinstance(contents[0], str):
                system = self._listed([self.system])
            messages.insert(0, {"role": "system", "content": system})
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


def _fill(marks: bytearray, span: tuple[int, int]) -> None:
    start, end = span
    marks[start:end] = b"\1" * (end - start)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    import json
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` around an answer: its content is rendered, the tag says no more."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)

    world = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    world.filters["tojson"] = to_json
    world.globals["raise_exception"] = fail
    world.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return world.from_string(source)
