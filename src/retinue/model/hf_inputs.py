"""transformers' keyword inputs as a Batch, so that `generate`, PEFT and Trainer drive our path.

Legend: B rows, T new tokens, S cached tokens, I pictures, V views of one, N views in all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retinue.core.errors import RequestError
from retinue.model.spec import Plan
from retinue.types import Batch, Cache, Grid, Visual

MEDIA = "media"
"""Attribute of transformers' caches under which `Cache.cross` travels with them."""


def batch_from_hf(
    plan: Plan,
    *,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past: Any,
    pixel_values: Tensor | None,
    image_grids: Tensor | None,
    image_budgets: Tensor | None = None,
) -> tuple[Batch, Cache | None]:
    """Padded rows -> Batch of the new tokens, and a Cache around `past` if there is one.

    attention_mask: (B, S + T) or absent (no padding); inputs_embeds stand for text only.
    """
    if input_ids is None and inputs_embeds is None:
        raise RequestError("neither input_ids nor inputs_embeds was given", rule="one is needed")
    if input_ids is None:
        assert inputs_embeds is not None
        input_ids = torch.zeros(
            inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device
        )
    rows, new = input_ids.shape
    seen = 0 if past is None else int(past.get_seq_length())
    if getattr(past, "is_compileable", False):
        raise RequestError(
            f"a {type(past).__name__} as cache",
            rule="keys and values must be those of the tokens so far, no more",
            fix="leave cache_implementation out: the dynamic cache is the default",
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise RequestError(
            f"an attention_mask of {attention_mask.ndim} dimensions", rule="rows and tokens: 2"
        )
    if attention_mask is None:
        attention_mask = torch.ones(rows, seen + new, dtype=torch.long, device=input_ids.device)
    segments = attention_mask.long()
    if position_ids is None:
        position_ids = (segments.cumsum(1) - 1).clamp_min(0)[:, -new:]
    cache = None
    if past is not None:
        # beams of one prompt show the same pictures: reordering rows leaves the media as they are
        media = vars(past).setdefault(MEDIA, {})
        cache = Cache(lm=past, segments_BS=segments[:, :seen] if seen else None, cross=media)
    batch = Batch(
        ids=[f"row {row}" for row in range(rows)],
        tokens=input_ids,
        positions=position_ids.expand(rows, new),
        segments=segments[:, -new:],
        visual=visual_from_hf(plan, input_ids, pixel_values, image_grids, image_budgets),
    )
    return batch, cache


def visual_from_hf(
    plan: Plan,
    ids_BT: Tensor,
    pixel_values: Tensor | None,
    image_grids: Tensor | None,
    image_budgets: Tensor | None = None,
) -> Visual | None:
    """Pictures of a padded batch; each takes the next placeholders in reading order."""
    if pixel_values is None:
        # one new id alone may be the model's own word
        if ids_BT.shape[1] > 1 and bool((ids_BT == plan.spec.image_token_id).any()):
            raise RequestError(
                "input_ids hold image placeholders, and there are no pixel_values",
                rule=f"each id {plan.spec.image_token_id} stands for a visual token",
                fix="pass all that the processor returned: model(**inputs)",
            )
        return None
    streams = {shape.stream for shape in plan.shapes.values()} or {"rgb"}
    pixels_NCHW = pixel_values.flatten(0, 1) if pixel_values.ndim == 5 else pixel_values
    if image_grids is None:
        size = (int(pixels_NCHW.shape[-2]), int(pixels_NCHW.shape[-1]))
        grids = [Grid(size=size)] * len(pixels_NCHW)
    else:
        grids = [grid_from_row(row) for row in image_grids.tolist()]
        if pixel_values.ndim == 5:
            kept = [part[: grid.num_views] for part, grid in zip(pixel_values, grids, strict=True)]
            pixels_NCHW = torch.cat(kept)
    budgets: list[int | None] = [None] * len(grids)
    if image_budgets is not None:
        budgets = [int(budget) or None for budget in image_budgets]
    if len(budgets) != len(grids):
        raise RequestError(
            f"{len(budgets)} image_budgets for {len(grids)} pictures", rule="one number each"
        )
    lengths = [plan.placeholders_for(g, b) for g, b in zip(grids, budgets, strict=True)]
    index = (ids_BT.flatten() == plan.spec.image_token_id).nonzero().flatten()
    if plan.spec.fusion.surplus_marks and len(index) > sum(lengths):
        index = first_marks(ids_BT == plan.spec.image_token_id, sum(lengths))
    if len(index) != sum(lengths):
        raise RequestError(
            f"{len(index)} image placeholders for {len(grids)} pictures "
            f"of {sum(lengths)} visual tokens",
            rule=f"each visual token needs one id {plan.spec.image_token_id} in input_ids",
            fix="prepare text and images together with this model's AutoProcessor",
        )
    firsts = index[torch.tensor([sum(lengths[:i]) for i in range(len(lengths))], dtype=torch.long)]
    width = ids_BT.shape[1]
    spans = torch.stack(
        [firsts // width, firsts % width, torch.tensor(lengths, device=index.device)], dim=1
    )
    return Visual(
        pixels=dict.fromkeys(streams, pixels_NCHW),
        grids=grids,
        budgets=budgets,
        spans=spans,
        index=index,
    )


def first_marks(marks_BT: Tensor, count: int) -> Tensor:
    """Flat positions of `count` marks, as many in every row, the first of each."""
    rows = len(marks_BT)
    if count % rows:
        raise RequestError(
            f"{count} pictures in {rows} rows with more marks than that",
            rule="where marks may lack a picture, every row has as many pictures",
        )
    early = marks_BT & (marks_BT.cumsum(1) <= count // rows)
    return early.flatten().nonzero().flatten()


def grid_from_row(row: list[int]) -> Grid:
    """[rows, cols, overview, height, width] -> Grid."""
    return Grid(rows=row[0], cols=row[1], overview=bool(row[2]), size=(row[3], row[4]))


def grid_to_row(grid: Grid) -> list[int]:
    """The inverse of `grid_from_row`."""
    return [grid.rows, grid.cols, int(grid.overview), *grid.size]
