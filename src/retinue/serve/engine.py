"""The engine: requests in, events out, one step at a time. It knows ids and pictures, not HTTP.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from retinue.core.errors import RequestError
from retinue.core.spec import Spec
from retinue.decode.loop import Row, advance, chosen_logprobs, known_ids
from retinue.decode.prompt import end_ids
from retinue.decode.sampling import Sampler, choose_all
from retinue.decode.stream import Detokenizer
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.serve.adapters import Adapters
from retinue.serve.blocks import Blocks
from retinue.serve.features import FeatureCache
from retinue.serve.pool import Pool
from retinue.serve.prefix import Chain
from retinue.serve.request import Event, Request, Running
from retinue.serve.runner import ModelRunner
from retinue.serve.scheduler import Limits, Scheduler


class EngineSpec(Spec):
    """Sizes of an engine.

    kv_tokens: tokens whose keys and values have room; block: tokens of a block; step_tokens,
    step_views: what one step may read and encode; rows: requests side by side; feature_bytes: of
    the encoders' results that are kept.
    """

    kv_tokens: int = Field(default=16384, ge=2)
    block: int = Field(default=16, ge=1)
    step_tokens: int = Field(default=1024, ge=1)
    step_views: int = Field(default=16, ge=1)
    rows: int = Field(default=64, ge=1)
    feature_bytes: int = Field(default=256 * 2**20, ge=0)


class Engine:
    """Continuous batching over one model: `add` requests, call `step` until `busy` is False.

        engine = Engine(model, processor)
        engine.add(Prompts(engine.runner).chat(sample, params=SamplingParams()))
        while engine.busy:
            for event in engine.step(): print(event.text)

    An answer is that of `retinue.decode.loop` for the same prompt and parameters, up to rounding,
    whatever else runs beside it. Not safe for use by several threads: see `serve.background`.
    """

    def __init__(
        self, model: Retinue, processor: Processor, *, spec: EngineSpec | None = None
    ) -> None:
        self.spec = spec = spec or EngineSpec()
        self.model, self.processor = model, processor
        self.blocks = Blocks(-(-spec.kv_tokens // spec.block) + 1, size=spec.block)
        self.features = FeatureCache(spec.feature_bytes)
        self.adapters = Adapters(model)
        self.runner = ModelRunner(
            model,
            processor,
            pool=Pool(self.blocks.total, size=spec.block),
            features=self.features,
            adapters=self.adapters,
        )
        limits = Limits(
            tokens=spec.step_tokens,
            views=spec.step_views,
            rows=spec.rows,
            chunks=self.runner.pieces,
        )
        self.scheduler = Scheduler(self.blocks, limits, views=self.runner.views)
        self.requests: dict[str, Running] = {}
        self.ends, self.known = set(end_ids(processor)), known_ids(processor)
        self.steps = self.cached_tokens = self.prompt_tokens = self.new_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self.requests)

    def check_room(self, request: Request) -> None:
        """Raise RequestError for a request that the keys' and values' room can never hold."""
        tokens = len(request.example.tokens) + request.params.max_new_tokens
        room = self.blocks.usable * self.blocks.size
        if self.blocks.needed(tokens) > self.blocks.usable:
            raise RequestError(
                f"{len(request.example.tokens)} tokens of prompt and "
                f"{request.params.max_new_tokens} of answer",
                where=f"request {request.id}",
                rule=f"this engine has room for {room} tokens",
                fix="ask for fewer tokens, or start it with more kv_tokens",
            )

    def add(self, request: Request) -> None:
        """Put a request into the queue. Raises RequestError where it can never fit."""
        assert request.id not in self.requests, f"two requests called {request.id}"
        self.check_room(request)
        adapter = self.adapters.get(request.adapter)
        tokens = list(request.example.tokens)
        row = Row(
            number=0,
            params=request.params,
            sampler=Sampler(request.params, prompt=tokens),
            text=Detokenizer(self.processor, stop=request.params.stop),
            position=len(tokens),
        )
        running = Running(
            request=request,
            row=row,
            chain=Chain(request.runs, size=self.blocks.size, salt=adapter.mark if adapter else b""),
            tokens=tokens,
            guide=None if request.guide is None else request.guide.copy(),
        )
        self.requests[request.id] = running
        self.scheduler.add(running)

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter. Raises RequestError where requests use it, or where it is unknown."""
        users = sum(one.request.adapter == name for one in self.requests.values())
        if users:
            raise RequestError(f"{users} requests use the adapter {name}", fix="try again")
        self.adapters.remove(name)

    def cancel(self, id: str) -> None:
        """Forget a request and free what it holds; one that is unknown or done is no error."""
        running = self.requests.pop(id, None)
        if running is not None:
            self.scheduler.remove(running)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Schedule, encode, run, postprocess; what happened, at most one event a request."""
        self.steps += 1
        events: list[Event] = []
        shares = [(share.running, share.count) for share in self.scheduler.schedule()]
        for id, error in self.runner.look(shares).items():
            events.append(self._fail(id, error))
        shares = [share for share in shares if share[0].id in self.requests]
        for group in self.runner.groups(shares):
            events += self._run(group)
        if not self.requests:
            self.runner.forget()
        return events

    def _run(self, group: Sequence[tuple[Running, int]]) -> list[Event]:
        """One forward and what follows from it; a row that cannot be computed fails alone."""
        try:
            logits_BV = self.runner.run(group)[:, : self.known]
        except Exception as error:
            self.runner.forget()
            if len(group) == 1:
                return [self._fail(group[0][0].id, error)]
            return [event for share in group for event in self._run([share])]
        chosen: list[int] = []
        for place, (one, count) in enumerate(group):
            self.scheduler.done(one, count)
            if one.left == 0:
                chosen.append(place)
        if not chosen:
            return []
        rows = [group[place][0] for place in chosen]
        allowed, failed = self._allowed(rows, logits_BV[chosen])
        places = [place for place, one in enumerate(rows) if one.id in self.requests]
        if not places:
            return failed
        rows, logits_BV = [rows[place] for place in places], logits_BV[chosen][places]
        tokens = choose_all([one.row.sampler for one in rows], allowed[places])
        chances = chosen_logprobs(logits_BV, tokens)
        return failed + [
            self._advance(one, token, chance, logits_V)
            for one, token, chance, logits_V in zip(rows, tokens, chances, logits_BV, strict=True)
        ]

    def _allowed(self, rows: Sequence[Running], logits_BV: Tensor) -> tuple[Tensor, list[Event]]:
        """Scores of what each row's form allows; a row that nothing can continue fails alone."""
        failed: list[Event] = []
        if all(one.guide is None for one in rows):
            return logits_BV, failed
        found_BV = logits_BV.clone()
        for row, one in enumerate(rows):
            if one.guide is None:
                continue
            try:
                found_BV[row] = one.guide.allow(logits_BV[row])
            except RequestError as error:
                failed.append(self._fail(one.id, error))
        return found_BV, failed

    def _advance(self, one: Running, token: int, chance: float, logits_V: Tensor) -> Event:
        if len(one.tokens) == one.prompt:
            self.prompt_tokens += one.prompt
            self.cached_tokens += one.cached
            one.words.clear()  # all pictures are read; a preempted request looks at them anew
        self.new_tokens += 1
        one.tokens.append(token)
        delta = advance(one.row, token, self.ends)
        if one.guide is not None and delta.finish is None:
            one.guide.accept(token)
            if one.guide.done:  # nothing can follow: no step is needed to say so
                delta = replace(delta, text=delta.text + one.row.text.finish(), finish="stop")
        if delta.finish is not None:
            self.cancel(one.id)
        assert delta.finish != "doubt"
        return Event(
            id=one.id,
            token=token,
            text=delta.text,
            finish=delta.finish,
            logprob=chance,
            top=_likeliest(logits_V, one.request.top),
            cached=one.cached,
        )

    def _fail(self, id: str, error: Exception) -> Event:
        self.cancel(id)
        return Event(id=id, finish="error", error=error)

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks, requests and caches agree with each other."""
        self.scheduler.check()
        self.features.check()
        inside = [*self.scheduler.running, *self.scheduler.waiting]
        assert {one.id for one in inside} == set(self.requests), "a request is lost"
        assert len(inside) == len(self.requests), "a request is in two places"
        if not self.requests:
            assert self.blocks.free == self.blocks.usable, "blocks leak"


def _likeliest(logits_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids and the logarithms of their probabilities."""
    if not count:
        return ()
    scores_V = logits_V.float()
    best = scores_V.topk(min(count, len(scores_V)))
    found = (best.values - scores_V.logsumexp(-1)).tolist()
    return tuple(zip(best.indices.tolist(), found, strict=True))
