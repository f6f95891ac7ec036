"""Plain batched decoding: one prefill of left-padded prompts, then one token per row and step.

Legend: B rows still running, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from retinue.core.errors import RequestError
from retinue.decode.sampling import Sampler, SamplingParams, choose_all
from retinue.decode.stream import Decodes, Detokenizer
from retinue.types import Batch, Cache, Output

Finish = Literal["stop", "length", "doubt"]
"""Why an answer ended; doubt: it was given up, and its row is to be asked again."""

Doubt = Callable[[Sequence[float]], bool]
"""Log-probabilities of the ids so far -> whether to give the answer up."""


class Runner(Protocol):
    """What decoding needs of a model; the model itself, or an inference twin of it."""

    def run(self, batch: Batch, *, cache: Cache | None = None, keep: Any = "all") -> Output: ...

    def new_cache(self) -> Cache: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One step of one row: its new id, the text that became showable, and why it ended.

    logprob: log-probability of the id before temperature and penalties; None where not asked for.
    """

    row: int
    token: int
    text: str
    finish: Finish | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The ids with which all prompts of a batch begin, and their keys and values.

    copy(rows): a cache that holds them for so many rows. The batch itself has what follows.
    """

    tokens: list[int]
    copy: Callable[[int], Cache]


@dataclass(slots=True, kw_only=True)
class Completion:
    """A finished answer. tokens: all generated ids, an end id included; number: its row.

    logprobs: one per id, where asked for. budget: visual tokens per view, None = the model's
    default; visual_tokens: those of all its pictures; spent: the same, of every try at an answer.
    """

    id: str
    number: int = 0
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: Finish = "length"
    logprobs: list[float] = field(default_factory=list)
    budget: int | None = None
    visual_tokens: int = 0
    spent: int = 0


@dataclass(slots=True, kw_only=True)
class Row:
    """A running row: where it stands in the batch and what it has said."""

    number: int
    params: SamplingParams
    sampler: Sampler
    text: Detokenizer
    position: int
    logprobs: list[float] = field(default_factory=list)


@torch.inference_mode()
def stream(
    runner: Runner,
    batch: Batch,
    *,
    params: SamplingParams | Sequence[SamplingParams],
    decoder: Decodes,
    eos_ids: Sequence[int],
    logprobs: bool = False,
    doubt: Doubt | None = None,
    opening: Opening | None = None,
) -> Iterator[Delta]:
    """Decode every row of a left-padded batch; yields one Delta per row and step.

    params: one for all rows or one per row; eos_ids: ids that end an answer. Rows that end leave
    the batch. A row's answer depends on its own prompt and params only (up to rounding).
    logprobs: deltas have them; doubt: ends a row as soon as it is true of them.
    opening: what all prompts begin with, if the batch holds only what comes after it.
    Raises RequestError where rows and params differ in number.
    """
    count = len(batch.tokens)
    each = [params] * count if isinstance(params, SamplingParams) else list(params)
    if len(each) != count:
        raise RequestError(f"{len(each)} sampling params for {count} rows", rule="one per row")
    ends = set(eos_ids)
    real = batch.segments > 0
    before = [] if opening is None else opening.tokens
    rows = [
        Row(
            number=number,
            params=each[number],
            sampler=Sampler(
                each[number], prompt=[*before, *batch.tokens[number][real[number]].tolist()]
            ),
            text=Detokenizer(decoder, stop=each[number].stop),
            position=int(batch.positions[number].max()) + 1,
        )
        for number in range(count)
    ]
    cache = runner.new_cache() if opening is None else opening.copy(count)
    known = known_ids(decoder)
    logits_BV = kept(runner.run(batch, cache=cache, keep="last"), known)
    while rows:
        alive: list[int] = []
        tokens = choose_all([row.sampler for row in rows], logits_BV)
        chances = chosen_logprobs(logits_BV, tokens) if logprobs or doubt else []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            delta = advance(row, token, ends)
            if chances:
                row.logprobs.append(chances[place])
                delta = replace(delta, logprob=chances[place])
            if doubt and doubt(row.logprobs):
                delta = replace(delta, finish="doubt")
            yield delta
            if delta.finish is None:
                alive.append(place)
        if not alive:
            return
        if len(alive) < len(rows):
            rows = [rows[place] for place in alive]
            select(cache, torch.tensor(alive, device=logits_BV.device))
        step = next_batch(rows, logits_BV.device)
        logits_BV = kept(runner.run(step, cache=cache, keep="last"), known)


def advance(row: Row, token: int, ends: set[int]) -> Delta:
    """Let one id join its row and say whether the row ends with it."""
    row.position += 1
    made = len(row.text.ids) + 1
    if token in ends and not row.params.ignore_eos:
        rest = row.text.finish()  # before the end id joins: it is never shown
        row.text.ids.append(token)
        return Delta(row=row.number, token=token, text=rest, finish="stop")
    fresh = row.text.push(token)
    if row.text.stopped:
        return Delta(row=row.number, token=token, text=fresh, finish="stop")
    if made >= row.params.max_new_tokens:
        fresh += row.text.finish()
        finish: Finish = "stop" if row.text.stopped else "length"
        return Delta(row=row.number, token=token, text=fresh, finish=finish)
    return Delta(row=row.number, token=token, text=fresh)


def chosen_logprobs(logits_BV: Tensor, tokens: Sequence[int]) -> list[float]:
    """Natural logarithm of the model's probability of one id per row."""
    scores_BV = logits_BV.float()
    own_B = scores_BV.gather(1, torch.tensor(tokens, device=scores_BV.device)[:, None])[:, 0]
    found: list[float] = (own_B - scores_BV.logsumexp(-1)).tolist()
    return found


def kept(output: Output, known: int | None) -> Tensor:
    """Scores of the ids that mean something; tables are often longer than their vocabulary."""
    assert output.logits is not None
    return output.logits[:, :known]


def known_ids(decoder: Decodes) -> int | None:
    """Size of a decoder's vocabulary, None where it does not say."""
    size: int | None = getattr(getattr(decoder, "tokenizer", decoder), "vocab_size", None)
    return size or None


def next_batch(rows: Sequence[Row], device: torch.device) -> Batch:
    """(B, 1) batch of each row's newest id."""
    tokens = torch.tensor([[row.text.ids[-1]] for row in rows], device=device)
    positions = torch.tensor([[row.position - 1] for row in rows], device=device)
    return Batch(
        ids=[str(row.number) for row in rows],
        tokens=tokens,
        positions=positions,
        segments=torch.ones_like(tokens),
    )


def select(cache: Cache, places: Tensor) -> None:
    """Keep only these rows of a cache."""
    cache.lm.batch_select_indices(places)
    if cache.segments_BS is not None:
        cache.segments_BS = cache.segments_BS[places]
    cache.cross = {
        layer: (k[places], v[places], lengths[places])
        for layer, (k, v, lengths) in cache.cross.items()
    }


def complete(
    runner: Runner,
    batch: Batch,
    *,
    params: SamplingParams | Sequence[SamplingParams],
    decoder: Decodes,
    eos_ids: Sequence[int],
    logprobs: bool = False,
    doubt: Doubt | None = None,
    opening: Opening | None = None,
) -> list[Completion]:
    """Decode a batch to the end; completions in row order, texts without surrounding blanks."""
    found = [Completion(id=id, number=number) for number, id in enumerate(batch.ids)]
    for delta in stream(
        runner,
        batch,
        params=params,
        decoder=decoder,
        eos_ids=eos_ids,
        logprobs=logprobs,
        doubt=doubt,
        opening=opening,
    ):
        answer = found[delta.row]
        answer.tokens.append(delta.token)
        if delta.logprob is not None:
            answer.logprobs.append(delta.logprob)
        answer.text += delta.text
        answer.finish = delta.finish or answer.finish
    for answer in found:
        answer.text = answer.text.strip()
    return found
