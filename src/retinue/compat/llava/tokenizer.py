"""The tokenizer as the original's users call it, and prompts with `<image>` marks as ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retinue.compat.llava.names import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from retinue.core.errors import RequestError
from retinue.text.tokenizer import Tokenizer


class LlavaTokenizer:
    """Our tokenizer with the names that transformers' have.

    Ids are those of the tokenizer class that the model was trained with (the slow LLaMA one, in
    its legacy form where the folder says so), whatever transformers makes of the folder today;
    what stands here not is asked of `hf`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def hf(self) -> Any:
        """transformers' own tokenizer over the same files."""
        return self.tokenizer.hf()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.hf, name)

    def __len__(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def eos_token_id(self) -> int | None:
        return self.tokenizer.eos_id

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_id

    def __call__(self, text: str | Sequence[str], return_tensors: str | None = None) -> Any:
        """`input_ids` and `attention_mask` of a text or several, bos in front."""
        from transformers import BatchEncoding

        one = isinstance(text, str)
        rows = [self.tokenizer.call(part) for part in ([text] if isinstance(text, str) else text)]
        ids = rows[0] if one and return_tensors is None else rows
        mask = [1] * len(rows[0]) if ids is rows[0] else [[1] * len(row) for row in rows]
        return BatchEncoding({"input_ids": ids, "attention_mask": mask}, tensor_type=return_tensors)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, bos in front."""
        return self.tokenizer.call(text)

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        """Text of ids (T,); placeholders of pictures leave no trace."""
        listed: Iterable[int] = ids.tolist() if isinstance(ids, Tensor) else ids
        words = [id for id in listed if id >= 0]
        return self.tokenizer.decode(words, skip_special=skip_special_tokens)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False) -> list[str]:
        """Texts of rows of ids."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]


def tokenizer_image_token(
    prompt: str,
    tokenizer: Any,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> Any:
    """Ids of a prompt: the text between marks is tokenized run by run, one bos stands in front.

    tokenizer: that of `load_pretrained_model`, or one of transformers; return_tensors: "pt" gives
    an int64 tensor (T,), None a list. Raises RequestError for another kind of tensor.
    """
    if return_tensors not in (None, "pt"):
        raise RequestError(
            f"return_tensors={return_tensors!r}", rule="only 'pt' (torch) or None is known"
        )
    runs = [list(tokenizer(run).input_ids) for run in prompt.split(DEFAULT_IMAGE_TOKEN)]
    bos = tokenizer.bos_token_id
    skip = int(bos is not None and runs[0][:1] == [bos])
    ids: list[int] = runs[0][:skip]
    for number, run in enumerate(runs):
        ids += [image_token_index] * bool(number) + run[skip:]
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)
