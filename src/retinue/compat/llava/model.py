"""The model as the original's users call it: prompts with one placeholder id per picture.

Legend: B rows, T tokens, V views, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retinue.compat.llava.names import IMAGE_TOKEN_INDEX
from retinue.compat.llava.pictures import ImageProcessor
from retinue.core.errors import RequestError
from retinue.hub.elastic import make_elastic
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.processor_hf import hf_inputs
from retinue.types import IGNORE, Example, Item


class LlavaModel:
    """A loaded model behind the original's `generate`; all else is the model's own.

    model, processor: ours, for everything that the original does not offer.
    """

    def __init__(self, model: Retinue, processor: Processor) -> None:
        self.model, self.processor = model, processor
        self.image_processor = ImageProcessor(processor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)

    @torch.inference_mode()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Any = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        *,
        matryoshka_vis_token_scale: int | None = None,
        **sampling: Any,
    ) -> Tensor:
        """New ids (B, T) behind prompts (B, T) in which each id -200 stands for a picture.

        images: what `process_images` gives, pictures of all rows in reading order; image_sizes:
        their (width, height) in pixels, needed where pictures are cut into tiles;
        matryoshka_vis_token_scale: visual tokens per view, None = all; sampling: keywords of
        transformers' `generate`, beams among them.
        Raises RequestError where pictures and placeholders do not match in number, ConfigError for
        a scale that is no number of tokens the model can make.
        """
        ids = inputs if inputs is not None else sampling.pop("input_ids", None)
        if ids is None:
            raise RequestError("generate without input ids", fix="pass tokenizer_image_token's")
        rows = ids.tolist() if ids.ndim == 2 else [ids.tolist()]
        batch = self.processor.collate(
            self.examples(rows, images, image_sizes, scale=matryoshka_vis_token_scale),
            pad_side="left",
        )
        made = hf_inputs(self.processor, batch).to(self.model.device)
        if "pixel_values" in made:
            made["pixel_values"] = made["pixel_values"].to(self.model.dtype)
        sampling.pop("attention_mask", None)  # prompts are padded anew
        found: Tensor = self.model.generate(**made, **_plain(sampling))
        return found[:, made["input_ids"].shape[1] :]

    def examples(
        self,
        rows: Sequence[Sequence[int]],
        images: Any,
        image_sizes: Sequence[tuple[int, int]] | None,
        *,
        scale: int | None,
    ) -> list[Example]:
        """The rows with as many placeholders as their pictures need."""
        if scale is not None and not self._elastic():
            make_elastic(self.model, self.processor, rounding="original")
        items = self.items(images, image_sizes, scale=scale)
        wanted = sum(list(row).count(IMAGE_TOKEN_INDEX) for row in rows)
        if wanted != len(items):
            raise RequestError(
                f"{len(items)} pictures for {wanted} placeholders in the prompt",
                rule=f"every picture needs one id {IMAGE_TOKEN_INDEX}",
                fix="write one <image> for each picture",
            )
        left = iter(items)
        examples = []
        for number, row in enumerate(rows):
            places = [at for at, id in enumerate(row) if id == IMAGE_TOKEN_INDEX]
            own = [next(left) for _ in places]
            numbered = [(at, k) for k, at in enumerate(places)]
            labels = [IGNORE] * len(row)
            examples.append(self.processor.expand(f"row {number}", row, labels, numbered, own))
        return examples

    def _elastic(self) -> bool:
        """Whether the model pools by the original's rule already."""
        connector = self.processor.plan.spec.connector
        return getattr(connector, "rounding", None) == "original"

    def items(
        self, images: Any, image_sizes: Sequence[tuple[int, int]] | None, *, scale: int | None
    ) -> list[Item]:
        """Prepared pictures as items. Raises RequestError where the sizes are missing."""
        if images is None:
            return []
        pixels = [part if part.ndim == 4 else part[None] for part in images]
        if image_sizes is None:
            if any(len(part) > 1 for part in pixels):
                raise RequestError(
                    "pictures cut into tiles without image_sizes",
                    rule="the size of the whole picture decides how tiles are arranged",
                    fix="pass image_sizes=[image.size, ...]",
                )
            image_sizes = [(int(part.shape[-1]), int(part.shape[-2])) for part in pixels]
        stream = next(iter(self.processor.spec.streams))
        items = []
        for part, size in zip(pixels, image_sizes, strict=True):
            grid = self.image_processor.grid(size)
            tokens = self.processor.plan.tokens_for(grid, scale)
            items.append(
                Item(pixels={stream: part.float()}, grid=grid, num_tokens=tokens, budget=scale)
            )
        return items


def _plain(sampling: dict[str, Any]) -> dict[str, Any]:
    """Greedy calls without the fields of sampling, of which transformers would complain."""
    if sampling.get("do_sample"):
        return {key: value for key, value in sampling.items() if value is not None}
    return {k: v for k, v in sampling.items() if k not in ("temperature", "top_p", "top_k")}
