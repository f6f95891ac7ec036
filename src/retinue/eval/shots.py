"""Few-shot prompting: which examples stand before a question, and answers ranked by likelihood.

Legend: N examples, D feature width, B rows, C names.
Reference: OpenFlamingo's evaluation (arXiv 2308.01390); RICES (arXiv 2109.05014).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from retinue.decode.score import option_scores
from retinue.types import Batch


def random_shots(total: int, *, count: int, rng: Random) -> list[int]:
    """`count` different examples of `total`."""
    return rng.sample(range(total), count)


def nearest_shots(features_ND: Tensor, query_D: Tensor, *, count: int) -> list[int]:
    """The `count` examples nearest by cosine, the most similar last, next to the question."""
    known = features_ND / features_ND.norm(dim=-1, keepdim=True)
    near = (known @ (query_D / query_D.norm())).topk(min(count, len(known))).indices
    return near.flip(0).tolist()


def name_scores(
    model: Any, prompts: Batch, names: Sequence[Sequence[int]], *, mean: bool = True
) -> Tensor:
    """(B, C) log-likelihood of every name's ids after each prompt; the prompt runs once.

    prompts: left-padded rows; mean: over the ids of a name, else their sum.
    """
    found = option_scores(model, prompts, [names] * len(prompts.tokens), mean=mean)
    return torch.tensor([[score for score, _ in row] for row in found])
