"""A placeholder token for formats whose vocabulary must hold one."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from retinue.processor import Processor
from retinue.text.tokenizer import IMAGE, Tokenizer


def image_token(processor: Processor) -> tuple[int, Tokenizer]:
    """The id of `<image>` and a tokenizer that has it; appended where there was none."""
    tokenizer = processor.tokenizer
    own = tokenizer.id_of(IMAGE)
    if own is not None:
        return own, tokenizer
    with_image = tokenizer.with_tokens([IMAGE])
    found = with_image.id_of(IMAGE)
    assert found is not None
    return found, with_image


def grown(names: Collection[str], *, rows: int) -> Callable[[str, Tensor], Tensor]:
    """Pads the named tables to `rows` with the mean of their rows; other tensors pass."""

    def grow(name: str, tensor: Tensor) -> Tensor:
        if name not in names or tensor.shape[0] >= rows:
            return tensor
        mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
        more = mean.expand(rows - tensor.shape[0], *tensor.shape[1:])
        return torch.cat([tensor, more])

    return grow
