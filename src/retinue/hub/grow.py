"""A placeholder token for formats whose vocabulary must hold one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from retinue.text.tokenizer import IMAGE, Tokenizer


def image_token(tokenizer: Tokenizer) -> tuple[int, Callable[[Path], None]]:
    """The id of `<image>`, and what writes the tokenizer files of a vocabulary that has it.

    Where it is missing, transformers' own tokenizer is given it and saved.
    """
    own = tokenizer.id_of(IMAGE)
    if own is not None:
        return own, tokenizer.save
    made = tokenizer.hf()
    made.add_tokens([IMAGE], special_tokens=True)

    def write(folder: Path) -> None:
        made.save_pretrained(folder)

    return int(made.convert_tokens_to_ids(IMAGE)), write


def grown(names: Collection[str], *, rows: int) -> Callable[[str, Tensor], Tensor]:
    """Pads the named tables to `rows` with the mean of their rows; other tensors pass."""

    def grow(name: str, tensor: Tensor) -> Tensor:
        if name not in names or tensor.shape[0] >= rows:
            return tensor
        mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
        more = mean.expand(rows - tensor.shape[0], *tensor.shape[1:])
        return torch.cat([tensor, more])

    return grow
