"""Few-shot prompting: which examples stand before a question, and answers ranked by likelihood.

Legend: N examples, D feature width, B rows, C names, T tokens of a name, V vocabulary.
Reference: OpenFlamingo's evaluation (arXiv 2308.01390); RICES (arXiv 2109.05014).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from retinue.types import Batch, Cache


def random_shots(total: int, *, count: int, rng: Random) -> list[int]:
    """`count` different examples of `total`."""
    return rng.sample(range(total), count)


def nearest_shots(features_ND: Tensor, query_D: Tensor, *, count: int) -> list[int]:
    """The `count` examples nearest by cosine, the most similar last, next to the question."""
    known = features_ND / features_ND.norm(dim=-1, keepdim=True)
    near = (known @ (query_D / query_D.norm())).topk(min(count, len(known))).indices
    return near.flip(0).tolist()


@torch.inference_mode()
def name_scores(
    model: Any, prompts: Batch, names: Sequence[Sequence[int]], *, mean: bool = True
) -> Tensor:
    """(B, C) log-likelihood of every name's ids after each prompt; the prompt runs once.

    prompts: left-padded rows; mean: over the ids of a name, else their sum.
    """
    cache = model.new_cache()
    last_BV = model.run(prompts, cache=cache, keep="last").logits.float()
    scores = [_score(model, prompts, cache, last_BV, torch.tensor(list(name))) for name in names]
    lengths_C = torch.tensor([len(name) for name in names], device=last_BV.device)
    found_BC = torch.stack(scores, dim=1)
    return found_BC / lengths_C if mean else found_BC


def _score(model: Any, prompts: Batch, cache: Cache, last_BV: Tensor, name_T: Tensor) -> Tensor:
    rows = len(last_BV)
    name_BT = name_T.to(last_BV.device).expand(rows, -1)
    logits_BTV = last_BV[:, None]
    if len(name_T) > 1:
        own = Cache(
            lm=copy.deepcopy(cache.lm), segments_BS=cache.segments_BS, cross=dict(cache.cross)
        )
        first = prompts.positions.max(1, keepdim=True).values + 1
        given = name_BT[:, :-1]
        batch = Batch(
            ids=prompts.ids,
            tokens=given,
            positions=first + torch.arange(given.shape[1], device=given.device),
            segments=torch.ones_like(given),
        )
        logits_BTV = torch.cat([logits_BTV, model.run(batch, cache=own).logits.float()], 1)
    logs_BTV = logits_BTV.log_softmax(-1)
    found: Tensor = logs_BTV.gather(-1, name_BT[..., None])[..., 0].sum(1)
    return found
