"""A placeholder token for formats whose vocabulary must hold one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from retinue.convert.weights import Weights
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


EMBED, HEAD = "lm.model.embed_tokens.weight", "lm.lm_head.weight"


def marker_rows(weights: Weights, vocab: int) -> Tensor | None:
    """Embeddings of image marks that LLaVA's first stage trained, where its file has only those."""
    found = next((name for name in weights if name.endswith("embed_tokens.weight")), None)
    if found is None or weights.shape(found)[0] >= vocab:
        return None
    return weights.read(found)


def added_rows(rows: Tensor, *, vocab: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Changes to a base's tables: `rows` are the last of `vocab`, the head's are a mean."""

    def embed(table: Tensor) -> Tensor:
        return torch.cat([table[: vocab - len(rows)], rows.to(table.dtype)])

    return {EMBED: embed, HEAD: lambda table: grown([HEAD], rows=vocab)(HEAD, table)}
