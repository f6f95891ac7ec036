"""From a conversation or a bare prompt to a request of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Image as PILImage

from retinue.core.errors import ConfigError, RequestError
from retinue.decode.budget import visual_tokens, with_budget
from retinue.decode.prompt import with_stops, within_room
from retinue.decode.sampling import SamplingParams
from retinue.media.source import open_source
from retinue.model.spec import Plan
from retinue.processor import Processor
from retinue.serve.adapters import Adapters
from retinue.serve.features import FeatureCache
from retinue.serve.guide import Guide
from retinue.serve.request import Picture, Request
from retinue.types import Example, Item, Media, Message, Sample

MARK = "<image>"
"""What stands for a picture in a bare prompt."""


class Prompts:
    """Makes requests; the slow part of it (decoding pictures) may run in any thread.

    A picture whose features are known already is not decoded again.
    """

    def __init__(
        self, processor: Processor, features: FeatureCache, adapters: Adapters | None = None
    ) -> None:
        self.processor, self.features, self.adapters = processor, features, adapters

    @property
    def plan(self) -> Plan:
        return self.processor.plan

    def chat(
        self,
        sample: Sample,
        *,
        params: SamplingParams,
        budget: int | None = None,
        top: int = 0,
        logprobs: bool = False,
        guide: Guide | None = None,
        adapter: str = "",
    ) -> Request:
        """A conversation that asks for a reply. Raises DataError, MediaError, RequestError."""
        sample = self.processor.unfold(with_budget(sample, self.check_budget(budget)))
        example = self.processor.example(sample, pixels=False)
        if guide is None:  # whose end is the form's, whatever its texts hold
            params = with_stops(params, self.processor)
        return self._request(
            example,
            sample.media,
            params=params,
            top=top,
            logprobs=logprobs,
            guide=guide,
            adapter=adapter,
        )

    def bare(
        self,
        id: str,
        prompt: str | Sequence[int],
        media: Sequence[Media] = (),
        *,
        params: SamplingParams,
        budget: int | None = None,
        top: int = 0,
        logprobs: bool = False,
        guide: Guide | None = None,
        adapter: str = "",
    ) -> Request:
        """A prompt as it stands, `<image>` where a picture is; ids have no pictures."""
        where = f"request {id}"
        parts = prompt.split(MARK) if isinstance(prompt, str) and media else [prompt]
        if len(parts) != len(media) + 1:
            raise RequestError(
                f"{len(media)} pictures for {len(parts) - 1} {MARK}", where=where, rule="one each"
            )
        shown = with_budget(
            Sample(id=id, messages=(Message(role="user", parts=tuple(media)),)),
            self.check_budget(budget),
        ).media
        items = [self.processor.item(one, where=where, pixels=False) for one in shown]
        tokenizer = self.processor.tokenizer
        tokens: list[int] = []
        places: list[tuple[int, int]] = []
        for number, part in enumerate(parts):
            if number:
                places.append((len(tokens), number - 1))
                tokens.append(self.processor.image_id)
            if not isinstance(part, str):
                tokens += part
            else:
                tokens += tokenizer.call(part)[tokenizer.adds_bos and number > 0 :]
        known, mark = tokenizer.vocab_size, self.processor.image_id
        wrong = [i for i in tokens if not 0 <= i < known and i != mark]
        if tokens.count(mark) != len(media):
            wrong = [mark]  # a placeholder without a picture
        if not tokens or wrong:
            raise RequestError(
                f"id {wrong[0]}" if wrong else "an empty prompt",
                where=where,
                rule=f"ids are 0 to {known - 1}, no placeholder among them, and there is one",
            )
        example = self.processor.expand(id, tokens, tokens, places, items)
        return self._request(
            example,
            shown,
            params=params,
            top=top,
            logprobs=logprobs,
            guide=guide,
            adapter=adapter,
        )

    def check_budget(self, budget: int | None) -> int | None:
        """The budget itself. Raises RequestError for one that the model does not have."""
        if budget is None:
            return None
        try:
            if budget == self.plan.per_view().length:
                return budget if self.plan.spec.connector.elastic else None
            self.plan.per_view(budget)
            if not self.plan.spec.connector.elastic:
                raise ConfigError(
                    f"{budget} visual tokens",
                    rule=f"this model has {self.plan.per_view().length} a view, always",
                )
        except ConfigError as error:
            raise RequestError(
                error.what, where="visual_tokens", rule=error.rule, fix=error.fix
            ) from None
        return budget

    def _request(
        self,
        example: Example,
        media: Sequence[Media],
        *,
        params: SamplingParams,
        adapter: str,
        **more: Any,
    ) -> Request:
        where = f"request {example.id}"
        params = within_room(params, self.processor, example)
        own = self.adapters.get(adapter) if self.adapters else None
        salt = own.mark if own is not None and own.seen else b""
        pictures = [Picture(key=content_key(one) + salt, media=one, where=where) for one in media]
        items = list(example.items)
        done: dict[bytes, Item] = {}
        for number, picture in enumerate(pictures):
            if picture.key in self.features:
                continue
            if picture.key not in done:
                done[picture.key] = self.processor.item(picture.media, where=where)
            items[number] = replace(items[number], pixels=done[picture.key].pixels)
        return Request(
            id=example.id,
            example=replace(example, items=items),
            pictures=pictures,
            params=params,
            adapter=adapter,
            **more,
        )


def told(request: Request, plan: Plan) -> tuple[int | None, int]:
    """Visual tokens per view, None where there are several numbers or no picture; and all of them.

    This is what a reply says of the budget that was used.
    """
    used = {plan.per_view(item.budget).length for item in request.example.items}
    return next(iter(used)) if len(used) == 1 else None, visual_tokens(request.example)


def content_key(media: Media) -> bytes:
    """A hash of a picture's contents: of the file's bytes, or of decoded pixels and their shape."""
    source = media.source
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, PILImage):
        digest.update(f"{source.mode}{source.size}".encode() + source.tobytes())
        digest.update(repr(sorted(dict(source.getexif()).items())).encode())
    else:
        assert isinstance(source, str | bytes | Path), "videos are unfolded first"
        with open_source(source) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.digest()
