"""How the next id is chosen: pure functions of logits, history and a seeded stream.

Order and formulas follow transformers' logits processors, so that both agree.
Legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from retinue.core.seed import stream_seed
from retinue.core.spec import Spec


class SamplingParams(Spec):
    """One request's decoding. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    seed: the stream of this request alone, so a batch answers as its members would by themselves.
    stop: strings that end the answer and are cut from it. ignore_eos: run to max_new_tokens.
    num_beams: above 1 the answer is searched for by `decode.rendered.search`, whose beams' scores
    are divided by length ** length_penalty.
    """

    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0)
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    seed: int = 0
    ignore_eos: bool = False
    num_beams: int = Field(default=1, ge=1)
    length_penalty: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the likeliest id is the next one, whatever came before."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1.0
            and self.no_repeat_ngram_size == 0
        )


class Sampler:
    """Chooses ids for one request; holds its history and its random stream.

    prompt: ids that penalties count too, placeholders of media included, as transformers does.
    """

    def __init__(self, params: SamplingParams, *, prompt: Sequence[int]) -> None:
        self.params, self.history = params, list(prompt)
        self.stream = torch.Generator().manual_seed(stream_seed(params.seed, "sample"))

    def choose(self, logits_V: Tensor) -> int:
        """The next id for (V,) logits; it joins the history."""
        params = self.params
        scores = logits_V.float()
        if params.repetition_penalty != 1.0:
            scores = penalize(scores, self.history, params.repetition_penalty)
        if params.no_repeat_ngram_size:
            scores = ban_ngrams(scores, self.history, params.no_repeat_ngram_size)
        if params.temperature == 0:
            token = int(scores.argmax())
        else:
            token = self.draw(filter_logits(scores / params.temperature, params))
        self.history.append(token)
        return token

    def draw(self, scores_V: Tensor) -> int:
        """One id with probability softmax(scores): the largest of p / exponential noise."""
        noise = torch.empty(len(scores_V)).exponential_(generator=self.stream)
        return int((scores_V.softmax(-1) / noise.to(scores_V.device)).argmax())


def choose_all(samplers: Sequence[Sampler], logits_BV: Tensor) -> list[int]:
    """The next id of every row; all rows that only want the likeliest share one reduction."""
    likeliest: list[int] = []
    if any(sampler.params.plain for sampler in samplers):
        # as argmax, but several times faster on a CPU
        likeliest = logits_BV.float().max(-1).indices.tolist()
    chosen: list[int] = []
    for row, sampler in enumerate(samplers):
        if sampler.params.plain:
            sampler.history.append(likeliest[row])
            chosen.append(likeliest[row])
        else:
            chosen.append(sampler.choose(logits_BV[row]))
    return chosen


def penalize(scores_V: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """Ids seen before: positive scores divided, negative ones multiplied (arXiv 1909.05858)."""
    seen = torch.tensor(sorted({i for i in history if 0 <= i < len(scores_V)}), dtype=torch.long)
    seen = seen.to(scores_V.device)
    found = scores_V[seen]
    changed = torch.where(found < 0, found * penalty, found / penalty)
    return scores_V.index_copy(0, seen, changed)


def ban_ngrams(scores_V: Tensor, history: Sequence[int], size: int) -> Tensor:
    """No n-gram of `size` ids twice: what once followed the last size - 1 ids is banned."""
    past = list(history)
    tail = past[len(past) - size + 1 :] if size > 1 else []
    banned = {
        past[at + size - 1]
        for at in range(len(past) - size + 1)
        if past[at : at + size - 1] == tail
    }
    banned = {i for i in banned if 0 <= i < len(scores_V)}
    if not banned:
        return scores_V
    index = torch.tensor(sorted(banned), dtype=torch.long, device=scores_V.device)
    return scores_V.index_fill(0, index, -torch.inf)


def filter_logits(scores_V: Tensor, params: SamplingParams) -> Tensor:
    """top-k, then top-p (arXiv 1904.09751), then min-p: what falls out becomes -inf."""
    if params.top_k and params.top_k < len(scores_V):
        least = scores_V.topk(params.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < least, -torch.inf)
    if params.top_p < 1.0:
        ascending, order = scores_V.sort()
        out = ascending.softmax(-1).cumsum(-1) <= 1 - params.top_p
        out[-1] = False
        scores_V = scores_V.index_fill(0, order[out], -torch.inf)
    if params.min_p > 0:
        chances = scores_V.softmax(-1)
        scores_V = scores_V.masked_fill(chances < params.min_p * chances.max(), -torch.inf)
    return scores_V
