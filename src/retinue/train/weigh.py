"""Sources whose losses are averaged apart: OpenFlamingo's two loaders in one batch.

Source: mlfoundations/open_flamingo (arXiv 2308.01390), its `loss_multiplier_*`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.parallel.ranks import Ranks
from retinue.types import Batch


def weighed(batches: Sequence[Batch], weights: Mapping[str, float], *, ranks: Ranks) -> list[Batch]:
    """The batches of an update with token weights that make their sum the loss.

    That is: for each type its mean over the update's tokens of all ranks, times its weight. Raises
    ConfigError for a sample whose type has no weight.
    """
    own = [of_tokens(batch, weights) for batch in batches]
    names = list(weights)
    counts = [
        sum(float(base[number == k].sum()) for number, base in own) for k in range(len(names))
    ]
    totals = ranks.total(counts)
    factors = torch.tensor(
        [weights[name] / total if total else 0.0 for name, total in zip(names, totals, strict=True)]
    )
    made = []
    for batch, (number_S, base_S) in zip(batches, own, strict=True):
        weights_BT = torch.zeros(batch.tokens.shape)
        if batch.supervised is not None:
            weights_BT.view(-1)[batch.supervised] = base_S * factors[number_S]
        made.append(replace(batch, weights=weights_BT))
    return made


def of_tokens(batch: Batch, weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """(number of its type, own weight) of every supervised token of a batch."""
    if batch.supervised is None or not len(batch.supervised):
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    kinds = batch.kinds or [None] * len(batch.ids)
    names = list(weights)
    for kind, id in zip(kinds, batch.ids, strict=True):
        if kind not in weights:
            raise ConfigError(
                f"no loss weight for type {kind!r} of sample {id!r}",
                where="loss_weights",
                rule=f"has {', '.join(names)}",
                fix="give every source a 'type', and every type a weight",
            )
    number_K = torch.tensor([names.index(str(kind)) for kind in kinds])
    flat = batch.supervised
    if len(kinds) == len(batch.tokens):
        document = flat // batch.tokens.shape[1]
    else:
        document = batch.segments.flatten()[flat] - 1
    base = torch.ones(len(flat)) if batch.weights is None else batch.weights.flatten()[flat]
    return number_K[document], base
