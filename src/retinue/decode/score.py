"""Answers ranked by their likelihood: a prompt is read once, what answers share is read once.

Legend: B prompts, K paths read at one time, T tokens of a path, V vocabulary.
Reference: rank classification of OpenFlamingo's evaluation (arXiv 2308.01390).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from retinue.core.errors import DataError, RequestError
from retinue.decode.budget import visual_tokens, with_budget
from retinue.decode.loop import Runner, kept, known_ids, select
from retinue.decode.prompt import device_of
from retinue.model.lm.fused import inference_twin
from retinue.processor import Processor
from retinue.text.labels import tokenize
from retinue.types import Batch, Cache, Message, Sample, Text

CHOICES = "choices"
"""Key of a sample's `meta` with the answers to rank."""
HELD, READ = 8192, 1024
"""Most cached tokens that are copied for paths read together, and most tokens of those paths."""
Path = tuple[int, ...]
Chances = dict[Path, tuple[float, bool]]
"""Ids -> log-probability of the last one after the others, and whether it is the likeliest."""
Skipped = Callable[[int, Sample, Exception], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The likeliest of the given answers. scores: those of all, in the order given.

    greedy: whether each answer's tokens are the likeliest ones, which decoding would write.
    """

    id: str
    number: int
    text: str
    scores: list[float]
    greedy: list[bool]
    choices: tuple[str, ...]
    finish: str = "ranked"
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    budget: int | None = None
    visual_tokens: int = 0
    spent: int = 0

    def ranking(self, *, most: int = 10) -> dict[str, float]:
        """The likeliest answers with their scores, best first; equals in the order given."""
        order = sorted(range(len(self.scores)), key=lambda n: -self.scores[n])
        return {self.choices[n]: round(self.scores[n], 6) for n in order[:most]}


def rank(
    model: Runner,
    processor: Processor,
    samples: Iterable[Sample],
    *,
    norm: Literal["mean", "sum"] = "mean",
    batch_size: int = 8,
    skipped: Skipped | None = None,
    budget: int | None = None,
) -> Iterator[Ranked]:
    """The likeliest of `meta["choices"]` for every sample, in order.

    norm: mean or sum over an answer's tokens. skipped(number, sample, error): called for samples
    that cannot be used; without it such errors are raised (DataError, MediaError, RequestError).
    """
    model, known = inference_twin(model), known_ids(processor)
    ids_of = Continuations(processor)
    numbered = enumerate(samples)
    while window := list(islice(numbered, batch_size)):
        asked, examples = [], []
        for number, sample in window:
            try:
                shown = with_budget(sample, budget)
                names = tuple(map(str, sample.meta.get(CHOICES, ())))
                if not names:
                    raise DataError("no answers to rank", where=f"sample {sample.id}")
                example = processor.example(shown)
                asked.append((number, sample, names, [ids_of(name) for name in names]))
                examples.append(example)
            except (DataError, RequestError) as error:
                if skipped is None:
                    raise
                skipped(number, sample, error)
        if not asked:
            continue
        batch = processor.collate(examples, pad_side="left").to(device_of(model))
        options = [own for *_, own in asked]
        found = option_scores(model, batch, options, mean=norm == "mean", known=known)
        for (number, sample, names, _), own, example in zip(asked, found, examples, strict=True):
            seen, scores = visual_tokens(example), [score for score, _ in own]
            yield Ranked(
                id=sample.id,
                number=number,
                text=names[max(range(len(scores)), key=scores.__getitem__)],
                scores=scores,
                greedy=[first for _, first in own],
                choices=names,
                budget=budget,
                visual_tokens=seen,
                spent=seen,
            )


@torch.inference_mode()
def option_scores(
    runner: Runner,
    batch: Batch,
    options: Sequence[Sequence[Sequence[int]]],
    *,
    mean: bool = True,
    known: int | None = None,
) -> list[list[tuple[float, bool]]]:
    """(log-likelihood, whether greedy) of a prompt's options: options[row] -> ids of its answers.

    batch: (B, ...) left-padded prompts, which run once. Of the answers each distinct beginning runs
    once per prompt; answers of one id cost nothing more. mean: over an answer's ids, else the sum.
    """
    cache = runner.new_cache()
    last_BV = kept(runner.run(batch, cache=cache, keep="last"), known).float().log_softmax(-1)
    wanted = [followers(own) for own in options]
    chances: list[Chances] = [{} for _ in options]
    keep(chances, [(row, (), last_BV[row]) for row in range(len(options))], wanted)
    paths = [(row, path) for row, own in enumerate(wanted) for path in leaves(own)]
    paths.sort(key=lambda one: len(one[1]))
    held = batch.tokens.shape[1]
    first_B = batch.positions.max(1).values + 1
    while paths:
        size = max(1, min(HELD // held, READ // len(paths[-1][1])))
        chosen, paths = paths[-size:], paths[:-size]  # the longest first: memory fails at once
        logs_KTV = read(runner, cache, chosen, first_B=first_B, known=known)
        spots = [
            (row, path[:end], logs_KTV[place, end - 1])
            for place, (row, path) in enumerate(chosen)
            for end in range(1, len(path) + 1)
            if path[:end] in wanted[row]
        ]
        keep(chances, spots, wanted)
    return [
        [answer(found, ids, mean=mean) for ids in own]
        for own, found in zip(options, chances, strict=True)
    ]


def answer(found: Chances, ids: Sequence[int], *, mean: bool) -> tuple[float, bool]:
    """Score of one answer, and whether each of its ids is the likeliest after those before."""
    each = [found[tuple(ids[: end + 1])] for end in range(len(ids))]
    total = sum(value for value, _ in each)
    return total / max(len(ids), 1) if mean else total, all(first for _, first in each)


def read(
    runner: Runner,
    cache: Cache,
    chosen: Sequence[tuple[int, Path]],
    *,
    first_B: Tensor,
    known: int | None,
) -> Tensor:
    """(K, T, V) log-probabilities after each id of the paths, each behind its own prompt."""
    device = first_B.device
    rows_K = torch.tensor([row for row, _ in chosen], device=device)
    longest = max(len(path) for _, path in chosen)
    # What follows a path's end is never looked at, and nothing before it sees it.
    tokens = torch.tensor([[*path, *[0] * (longest - len(path))] for _, path in chosen])
    tokens = tokens.to(device)
    own = Cache(lm=copy.deepcopy(cache.lm), segments_BS=cache.segments_BS, cross=dict(cache.cross))
    select(own, rows_K)
    batch = Batch(
        ids=[str(row) for row, _ in chosen],
        tokens=tokens,
        positions=first_B[rows_K][:, None] + torch.arange(longest, device=device),
        segments=torch.ones_like(tokens),
    )
    logits_KTV = runner.run(batch, cache=own).logits
    assert logits_KTV is not None
    return logits_KTV[..., :known].float().log_softmax(-1)


def followers(options: Sequence[Sequence[int]]) -> dict[Path, list[int]]:
    """Beginning -> the ids that some answer has after it."""
    found: dict[Path, dict[int, None]] = {}
    for ids in options:
        for end, following in enumerate(ids):
            found.setdefault(tuple(ids[:end]), {})[following] = None
    return {path: list(ids) for path, ids in found.items()}


def leaves(wanted: dict[Path, list[int]]) -> list[Path]:
    """The beginnings that have to be read so that all have been: those that none goes on from."""
    inner = {path[:-1] for path in wanted if path}
    return [path for path in wanted if path and path not in inner]


def keep(
    chances: list[Chances],
    spots: Sequence[tuple[int, Path, Tensor]],
    wanted: Sequence[dict[Path, list[int]]],
) -> None:
    """Note the log-probability of each wanted id after each beginning, if it is not noted yet."""
    for row, path, logs_V in spots:
        left = [id for id in wanted[row].get(path, ()) if (*path, id) not in chances[row]]
        values = logs_V[torch.tensor(left, dtype=torch.long, device=logs_V.device)].tolist()
        top = int(logs_V.argmax())
        chances[row] |= {
            (*path, id): (value, id == top) for id, value in zip(left, values, strict=True)
        }


class Continuations:
    """Ids of an answer as it follows a prompt of a processor's template; each is made once."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.known: dict[str, list[int]] = {}
        self.asked = Message(role="user", parts=(Text(text="?"),))
        self.prompt = self.ids([self.asked], reply=True)

    def ids(self, messages: Sequence[Message], *, reply: bool) -> list[int]:
        segments = self.processor.template.render(messages, reply=reply)
        return tokenize(segments, self.processor.tokenizer, policy="prompt").tokens

    def __call__(self, text: str) -> list[int]:
        """The fewest ids after the prompt that read as the text, without an end mark."""
        if text not in self.known:
            self.known[text] = self.find(text)
        return self.known[text]

    def find(self, text: str) -> list[int]:
        said = replace(self.asked, role="assistant", parts=(Text(text=text),))
        whole, at = self.ids([self.asked, said], reply=False), len(self.prompt)
        tokenizer: Any = self.processor.tokenizer
        if whole[:at] == self.prompt:
            for end in range(at + 1, len(whole) + 1):
                if tokenizer.decode(whole[at:end]).strip() == text.strip():
                    return whole[at:end]
        ids: list[int] = list(tokenizer.encode(text))  # the prompt's end and the text share an id
        if not ids:
            raise DataError(f"the answer {text!r} has no token", rule="answers are text")
        return ids
