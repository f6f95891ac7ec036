"""Scorers of boxes. Answer and reference are in the same convention; which one does not matter."""

from __future__ import annotations

from collections.abc import Sequence

from retinue.eval.scorers.base import bad_reference, best, f1
from retinue.eval.scorers.words import normalise
from retinue.media import boxes
from retinue.media.boxes import Box

THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))


def iou(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Overlap of the first box, and `iou50`: accuracy at 0.5 (RefCOCO, arXiv 1608.00272).

    The first bracket counts, or what stands before a closing one; no box at all overlaps nothing.
    """
    found = boxes.parse_boxes(prediction) or boxes.parse_boxes("[" + prediction)

    def score(wanted: str) -> dict[str, float]:
        target = _one(wanted)  # a reference without a box is an error whatever the answer
        value = boxes.iou(found[0], target) if found else 0.0
        return {"iou": value, "iou50": float(value >= 0.5)}

    return best(references, score)


def iou50(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """As `iou`, with accuracy at overlap 0.5 first (RefCOCO, arXiv 1608.00272)."""
    found = iou(prediction, references)
    return {"iou50": found["iou50"], "iou": found["iou"]}


def det(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Average precision over IoU 0.50:0.05:0.95 as COCO computes it (101 recall points).

    Source: COCO's detection task (arXiv 1405.0312). Text carries no confidences:
    the order of the answer is the ranking, and the average is over one picture's boxes. `f1` is at
    IoU 0.5.
    """
    found = boxes.parse_boxes(prediction)

    def score(reference: str) -> dict[str, float]:
        wanted = boxes.parse_boxes(reference)
        values = [average_precision(found, wanted=wanted, threshold=t) for t in THRESHOLDS]
        hits = sum(_matched(found, wanted=wanted, threshold=0.5))
        return {
            "ap": sum(values) / len(values),
            "ap50": values[0],
            "f1": f1(hits, found=len(found), wanted=len(wanted)),
        }

    return best(references, score)


def grounded(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of `<p>phrase</p>[box]` pairs: the phrases are equal and the boxes overlap by >= 0.5.

    The notation is near that of Kosmos-2 (arXiv 2306.14824), the overlap that of Flickr30k
    Entities (arXiv 1505.04870); counting both directions as F1 is our own choice.
    """
    found = _phrases(prediction)

    def score(reference: str) -> dict[str, float]:
        rest, hits, names = _phrases(reference), 0, 0
        wanted = len(rest)
        loose = [phrase for phrase, _ in rest]
        for phrase, box in found:
            fitting = [p for p in rest if p[0] == phrase and boxes.iou(p[1], box) >= 0.5]
            if fitting:
                hits += 1
                rest.remove(fitting[0])
            if phrase in loose:
                names += 1
                loose.remove(phrase)
        return {
            "grounded_f1": f1(hits, found=len(found), wanted=wanted),
            "phrase_f1": f1(names, found=len(found), wanted=wanted),
        }

    return best(references, score)


def average_precision(found: Sequence[Box], *, wanted: Sequence[Box], threshold: float) -> float:
    """Area under the interpolated precision-recall curve of boxes in ranked order."""
    if not wanted:
        return float(not found)
    hits, points = 0, []
    for rank, hit in enumerate(_matched(found, wanted=wanted, threshold=threshold), start=1):
        hits += hit
        points.append((hits / len(wanted), hits / rank))
    total = 0.0
    for step in range(101):
        recall = step / 100
        total += max((precision for r, precision in points if r >= recall - 1e-12), default=0.0)
    return total / 101


def _matched(found: Sequence[Box], *, wanted: Sequence[Box], threshold: float) -> list[bool]:
    """For each box in turn whether it takes a free reference box, the best overlapping one."""
    free, hits = list(wanted), []
    for box in found:
        nearest = max(free, key=lambda other: boxes.iou(box, other), default=None)
        hit = nearest is not None and boxes.iou(box, nearest) >= threshold - 1e-12
        if hit and nearest is not None:
            free.remove(nearest)
        hits.append(hit)
    return hits


def _phrases(text: str) -> list[tuple[str, Box]]:
    return [
        (normalise(region.phrase), (shape[0], shape[1], shape[2], shape[3]))
        for region in boxes.parse(text)
        for shape in region.shapes
        if region.phrase and len(shape) == 4
    ]


def _one(reference: str) -> Box:
    found = boxes.parse_boxes(reference)
    if not found:
        raise bad_reference(reference, lacks="box", scorer="iou")
    return found[0]
