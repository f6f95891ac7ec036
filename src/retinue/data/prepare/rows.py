"""A tokenized sample as the five rows of ModelZoo's `data`, with places and paths of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEATURES = ("text_input_ids", "loss_mask", "labels", "key_padding_mask", "token_modality_idx")
ABSENT = "None"
"""What stands in `img_path` where there is no picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """data: (5, T) int32; places: (pictures, patches) int32; paths: as many, ABSENT at the end."""

    data: NDArray[np.int32]
    places: NDArray[np.int32]
    paths: list[str]

    @property
    def has_image(self) -> bool:
        return self.paths[0] != ABSENT if self.paths else False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """T: max_seq_length; pictures: max_num_img; patches: num_patches; pad: pad_id."""

    length: int
    pictures: int
    patches: int
    pad: int


def make_row(
    ids: Sequence[int],
    weights: Sequence[float],
    attends: Sequence[bool],
    pictures: Sequence[tuple[int, str]],
    *,
    sizes: Sizes,
) -> Row:
    """Inputs are all ids but the last, labels all but the first; pictures: (first id, path)."""
    count, T = len(ids) - 1, sizes.length
    data = np.zeros((5, T), np.int32)
    data[0], data[2], data[3] = sizes.pad, sizes.pad, 1
    data[0, :count], data[2, :count] = ids[:-1], ids[1:]
    data[1, :count] = np.asarray(weights[1:]).astype(np.int32)
    data[3, :count] = 1 - np.asarray(attends[:-1], dtype=np.int32)
    places = np.full((sizes.pictures, sizes.patches), T, np.int32)
    paths = [ABSENT] * sizes.pictures
    for number, (first, path) in enumerate(pictures):
        places[number] = np.arange(first, first + sizes.patches)
        data[4, first : first + sizes.patches] = 1
        paths[number] = path
    return Row(data=data, places=places, paths=paths)
