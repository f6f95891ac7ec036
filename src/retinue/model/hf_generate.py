"""What transformers' `generate` must know of pictures: placeholders are no words, beams share them.

Legend: B rows, T tokens, V vocabulary, I pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from retinue.model.hf_inputs import visual_from_hf

VISUAL = ("pixel_values", "image_grids", "image_budgets")
"""Inputs that are counted by pictures, not by rows."""


class Words(LogitsProcessor):
    """A processor of transformers, made to pass over ids outside the vocabulary.

    Those of penalties and n-gram bans look scores up by the ids of the prompt. Here the scores get
    one more column, which can never be chosen, and every such id is taken for it.
    """

    def __init__(self, inner: LogitsProcessor) -> None:
        self.inner = inner

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T) ids and (B, V) scores -> (B, V) scores."""
        words = scores.shape[-1]
        known = input_ids.masked_fill((input_ids < 0) | (input_ids >= words), words)
        wider: Tensor = self.inner(known, F.pad(scores, (0, 1), value=-torch.inf))
        return wider[:, :words]


class Generation(GenerationMixin):
    """`generate` for rows that hold placeholders."""

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        found = super()._get_logits_processor(*args, **kwargs)
        rows = self.get_input_embeddings().num_embeddings
        if 0 <= self.plan.spec.image_token_id < rows:
            return found
        # a caller's own processors keep transformers' contract: the ids as they are, V scores
        return LogitsProcessorList(
            Words(one) if type(one).__module__.startswith("transformers.") else one for one in found
        )

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Every row `expand_size` times, each copy with all pictures of its row."""
        pixels, grids, budgets = (model_kwargs.get(name) for name in VISUAL)
        if expand_size > 1 and pixels is not None and input_ids is not None:
            visual = visual_from_hf(self.plan, input_ids, pixels, grids, budgets)
            assert visual is not None
            copies = copied(visual.spans[:, 0].tolist(), rows=len(input_ids), times=expand_size)
            parts = [pixels[i : i + 1] for i in range(len(pixels))]
            if pixels.ndim == 4:
                parts = list(pixels.split(visual.num_views))
            model_kwargs["pixel_values"] = torch.cat([parts[i] for i in copies])
            if grids is not None:
                model_kwargs["image_grids"] = grids[copies]
            if budgets is not None:
                model_kwargs["image_budgets"] = budgets[copies]
        kept = {key: model_kwargs.pop(key, None) for key in VISUAL}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, model_kwargs | {k: v for k, v in kept.items() if v is not None}


def copied(row_of: list[int], *, rows: int, times: int) -> list[int]:
    """Numbers of pictures once every row stands `times` times; row_of: the row of each picture."""
    own = [[i for i, place in enumerate(row_of) if place == row] for row in range(rows)]
    return [i for pictures in own for _ in range(times) for i in pictures]
