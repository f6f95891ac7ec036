"""Web documents and captions as OpenFlamingo's pre-training reads them.

Source: mlfoundations/open_flamingo (arXiv 2308.01390); documents of MMC4 (arXiv 2304.06939).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from retinue.data.formats.base import RefusedError

IMAGE, CHUNK = "<image>", "<|endofchunk|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDocument:
    """Text with `<image>` marks, the end-of-sequence token last, and its pictures' bytes."""

    text: str
    images: list[bytes]


def assign(scores: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """(row, column) pairs, one per row or column, with the largest sum of scores, by row.

    The Hungarian method with potentials (Kuhn 1955), rows and columns in any number.
    """
    turned = bool(scores) and len(scores) > len(scores[0])
    costs = [[-value for value in row] for row in scores]
    if turned:
        costs = [list(column) for column in zip(*costs, strict=True)]
    n, m = len(costs), len(costs[0]) if costs else 0
    row_u, column_v = [0.0] * (n + 1), [0.0] * (m + 1)
    owner = [0] * (m + 1)
    for row in range(1, n + 1):
        owner[0], at = row, 0
        least, came, done = [float("inf")] * (m + 1), [0] * (m + 1), [False] * (m + 1)
        while owner[at]:
            done[at], own, delta, nearest = True, owner[at], float("inf"), 0
            for column in range(1, m + 1):
                if done[column]:
                    continue
                cost = costs[own - 1][column - 1] - row_u[own] - column_v[column]
                if cost < least[column]:
                    least[column], came[column] = cost, at
                if least[column] < delta:
                    delta, nearest = least[column], column
            for column in range(m + 1):
                if done[column]:
                    row_u[owner[column]] += delta
                    column_v[column] -= delta
                else:
                    least[column] -= delta
            at = nearest
        while at:
            owner[at], at = owner[came[at]], came[at]
    pairs = [(owner[column] - 1, column - 1) for column in range(1, m + 1) if owner[column]]
    return sorted((column, row) if turned else (row, column) for row, column in pairs)


def is_pair(names: Collection[str]) -> bool:
    """Whether the parts of a shard's sample (by their endings) are an image-text pair."""
    return "txt" in names and any(name in names for name in ("png", "jpg", "jpeg"))


def caption(text: str, *, eos: str) -> str:
    """An image-text pair as one sequence."""
    return f"{IMAGE}{text.strip()}{CHUNK}{eos}"


def web_document(
    row: Mapping[str, Any],
    *,
    threshold: float,
    most: int,
    eos: str,
    min_bytes: int = 11000,
    folder: Path | None = None,
) -> WebDocument:
    """An MMC4 document: pictures stand before the sentences that they match best.

    threshold: least similarity of a pair; most: pictures kept; min_bytes: smaller ones are dropped.
    folder: where pictures lie that the record only names. They keep their own order, not that of
    the sentences, as the original has it. Raises RefusedError where no picture is left.
    """
    scores, images = [], []
    for info, similarity in zip(row["image_info"], row["similarity_matrix"], strict=False):
        data = base64.b64decode(info["image_base64"]) if "image_base64" in info else b""
        if not data and folder is not None and (folder / info["image_name"]).is_file():
            data = (folder / info["image_name"]).read_bytes()
        if data and len(data) >= min_bytes:
            images.append(data)
            scores.append(similarity)
    pairs = [(i, s) for i, s in assign(scores) if scores[i][s] >= threshold] if scores else []
    if not pairs:
        raise RefusedError("no picture left", rule=f"one must match a sentence by {threshold}")
    sentences = list(row["text_list"])
    for _, place in pairs[:most]:
        sentences[place] = f"{CHUNK}{IMAGE}{sentences[place]}"
    return WebDocument(
        text=tidied(" ".join(sentences), eos=eos), images=[images[i] for i, _ in pairs[:most]]
    )


def told_document(
    row: Mapping[str, Any], *, most: int, eos: str, lossy: bool = True
) -> WebDocument:
    """A generated sequence with `_!_IMAGE0_!_` marks and a map of pictures.

    lossy: where it has too many, the text of the last picture kept is lost, as in the original.
    """
    marks = re.findall(r"_!_IMAGE\d+_!_", row["example"])
    text = re.sub(r"_!_IMAGE\d+_!_", CHUNK + IMAGE, row["example"])
    places = [found.start() for found in re.finditer(IMAGE, text)]
    if len(places) > most:
        text = text[: places[most - int(lossy)]]
    encoded = [row["image_map"][mark]["base64_image"] for mark in marks[:most]]
    return WebDocument(text=tidied(text, eos=eos), images=[base64.b64decode(e) for e in encoded])


def tidied(text: str, *, eos: str) -> str:
    """Marks without blanks around them, no chunk end before the first picture, one at the end."""
    text = text.replace(CHUNK, "", 1).replace(f" {CHUNK}", CHUNK)
    text = text.replace(f"{IMAGE} ", IMAGE).replace(f" {IMAGE}", IMAGE)
    return f"{text}{CHUNK}{eos}"


def refuse(ids: Sequence[int], *, image_id: int, fewest: int, rng: Random) -> str | None:
    """Why the original would pass a tokenized document over; None if it would not.

    A single picture is refused half of the time, and always where nothing follows it.
    """
    count = sum(token == image_id for token in ids)
    if count < fewest:
        return f"Fewer than {fewest} images in sample"
    if count == 1 and rng.random() <= 0.5:
        return "Only one image in sample"
    if count == 1 and ids[-1] == image_id:
        return "Only one image at end of sample, so labels will all be -100"
    return None
