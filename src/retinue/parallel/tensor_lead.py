"""One rank leads, the others follow: they run the divided layers on what the first one sends.

Everything else, tokens, pictures, encoders, sampling, printing, is the first rank's alone, so that
nothing is done or said twice and no decision can differ between ranks. For inference; in training
every rank runs the whole loop.

Legend: B rows, T tokens, S cached tokens, D width.
"""

from __future__ import annotations

import itertools
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from retinue.core.errors import ConfigError
from retinue.model.lm.causal import CausalLM
from retinue.model.retinue import Retinue
from retinue.parallel.launch import peers_lost
from retinue.parallel.tensor_channel import Channel
from retinue.types import Cache, LMInputs

Kept = dict[Any, Any]
"""What a follower remembers between commands: caches by their keys."""


class Recipe(Protocol):
    """How a follower makes or finds the cache that the leader's forward writes to.

    A cache's attribute `recipe` is one; it travels, so it is plain data.
    """

    def cache(self, lm: CausalLM, kept: Kept) -> Any: ...


class Command(Protocol):
    """What followers do."""

    def run(self, lm: CausalLM, kept: Kept) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Run the layers. segments_BS: of the cached tokens; dropped: caches that nobody uses now."""

    inputs: LMInputs
    recipe: Recipe | None
    segments_BS: Tensor | None
    dropped: tuple[Any, ...]

    def run(self, lm: CausalLM, kept: Kept) -> None:
        for key in self.dropped:
            kept.pop(key, None)
        cache = None
        if self.recipe is not None:
            held = self.recipe.cache(lm, kept)
            cache = Cache(lm=held, segments_BS=self.segments_BS)
        CausalLM.forward(lm, self.inputs, cache=cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The cache of a key; an empty one the first time."""

    key: int

    def cache(self, lm: CausalLM, kept: Kept) -> Any:
        if self.key not in kept:
            kept[self.key] = DynamicCache(config=lm.config)
        return kept[self.key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Call a method of a cache."""

    key: int
    method: str
    arguments: tuple[Any, ...]

    def run(self, lm: CausalLM, kept: Kept) -> None:
        getattr(Named(key=self.key).cache(lm, kept), self.method)(*self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Keep a second cache that begins as the first one is."""

    key: int
    copy: int

    def run(self, lm: CausalLM, kept: Kept) -> None:
        kept[self.copy] = deepcopy(Named(key=self.key).cache(lm, kept))


@dataclass(frozen=True, slots=True)
class End:
    """There is nothing more to do."""

    def run(self, lm: CausalLM, kept: Kept) -> None:
        raise StopIteration


class LedCache(DynamicCache):
    """The leader's part of keys and values; what is done to it is done to the followers', too."""

    def __init__(self, config: Any, *, lead: Lead) -> None:
        super().__init__(config=config)
        self._name(lead)

    def _name(self, lead: Lead) -> None:
        self.lead, self.recipe = lead, Named(key=next(lead.keys))
        weakref.finalize(self, lead.dropped.append, self.recipe.key).atexit = False

    def _change(self, method: str, *arguments: Any) -> None:
        with self.lead.working():
            if self.layers and self.get_seq_length():
                change = Change(key=self.recipe.key, method=method, arguments=arguments)
                self.lead.channel.send(change)
            getattr(super(), method)(*arguments)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change("batch_select_indices", indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change("batch_repeat_interleave", repeats)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._change("reorder_cache", beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        self._change("crop", tokens_to_remove)

    def __deepcopy__(self, memo: dict[int, Any]) -> LedCache:
        made: LedCache = LedCache.__new__(LedCache)
        own = {k: v for k, v in vars(self).items() if k not in ("lead", "recipe")}
        with self.lead.working():
            made.__dict__.update(deepcopy(own, memo))
            made._name(self.lead)
            self.lead.channel.send(Copy(key=self.recipe.key, copy=made.recipe.key))
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """What a led language model and its caches share."""

    channel: Channel
    keys: itertools.count[int]
    dropped: deque[int]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, no other thread sends, and no Ctrl-C leaves the ranks at different points."""
        with self.channel.lock, uninterrupted():
            yield


class LedLM(CausalLM):
    """A divided language model whose followers run along."""

    lead: Lead

    def forward(self, inputs: LMInputs, *, cache: Cache | None = None) -> Tensor:
        recipe = None if cache is None else getattr(cache.lm, "recipe", None)
        if cache is not None and recipe is None:
            raise ConfigError(
                f"keys and values in a {type(cache.lm).__name__}",
                where="tensor parallelism",
                rule="the other processes must be able to follow it",
                fix="decode with retinue's own loop, or in one process",
            )
        lead = self.lead
        with lead.working():
            gone = tuple(lead.dropped.popleft() for _ in range(len(lead.dropped)))
            segments_BS = None if cache is None else cache.segments_BS
            command = Forward(inputs=inputs, recipe=recipe, segments_BS=segments_BS, dropped=gone)
            try:
                lead.channel.send(command)
                return super().forward(inputs, cache=cache)
            except Exception as error:
                lead.channel.on_loss(error)
                raise

    def new_cache(self) -> Cache:
        return Cache(lm=LedCache(self.config, lead=self.lead))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, Ctrl-C has to wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def lead(model: Retinue, channel: Channel) -> None:
    """Make the first rank's model the leader of the others, which `follow`."""
    assert type(model.lm) is CausalLM, "a divided model that is not led yet"
    model.lm.__class__ = LedLM
    model.lm.lead = Lead(channel=channel, keys=itertools.count(), dropped=deque())  # type: ignore[assignment]


def dismiss(model: Retinue) -> None:
    """Tell the followers that nothing more comes; the model is an ordinary divided one again."""
    lm: Any = model.lm
    channel = lm.lead.channel
    lm.__class__ = CausalLM
    del lm.lead
    try:
        channel.send(End())
    except Exception as error:
        if not peers_lost(error):  # else they have ended
            raise


def slim(model: Retinue) -> None:
    """Take from a follower's model, before it is read, what only the first rank uses."""
    lm: Any = model.lm
    model.encoders = nn.ModuleDict()
    for name in ("connector", "layout"):
        setattr(model, name, nn.Identity())
    for name in (lm.embed_name, lm.head_name):
        lm.set_submodule(name, nn.Identity())
    model._tied_weights_keys = {}


@torch.inference_mode()
def follow(model: Retinue, channel: Channel) -> None:
    """Do what the leader sends until it ends; torch's errors come where it does so silently."""
    lm: Any = model.lm
    kept: Kept = {}
    while True:
        command: Command = channel.receive()
        try:
            command.run(lm, kept)
        except StopIteration:
            return
