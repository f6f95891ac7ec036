"""CIDEr, BLEU and METEOR of captions, over a whole set."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.measures.meteor import meteor
from retinue.eval.scorers.base import mean

Row = Mapping[str, Any]
Grams = Counter[tuple[str, ...]]
LONGEST, SIGMA = 4, 6.0
_WORD = re.compile(r"n't\b|[a-z0-9]+(?:-[a-z0-9]+)*|'[a-z]+")


def cider(rows: Sequence[Row]) -> dict[str, float]:
    """CIDEr-D: similarity of tf-idf weighted 1- to 4-grams, times 10; BLEU-1 to BLEU-4; METEOR.

    Source: CIDEr (arXiv 1411.5726) in COCO's form (https://github.com/tylin/coco-caption). Words
    are parted by a rule of our own close to the Penn Treebank's; COCO's tool asks for Java. METEOR
    is there where its own program can run (`measures.meteor`).
    """
    given = [[grams(one) for one in row["references"]] for row in rows]
    said = [" ".join(tokens(str(row["text"]))) for row in rows]
    wanted = [[" ".join(tokens(one)) for one in row["references"]] for row in rows]
    judged = meteor(said, wanted)
    return {
        "cider": mean(cider_each(rows, given)),
        **bleu(rows, given),
        **({} if judged is None else {"meteor": judged}),
    }


def cider_each(rows: Sequence[Row], given: Sequence[Sequence[Grams]] | None = None) -> list[float]:
    """CIDEr-D of every caption among these; given: the references' grams if they are known."""
    if given is None:
        given = [[grams(one) for one in row["references"]] for row in rows]
    seen = Counter[tuple[str, ...]]()
    for references in given:
        seen.update({gram for reference in references for gram in reference})
    total = math.log(max(len(rows), 1))
    scores = []
    for row, references in zip(rows, given, strict=True):
        found = weighted(grams(str(row["text"])), seen=seen, total=total)
        wanted = [weighted(reference, seen=seen, total=total) for reference in references]
        scores.append(10 * mean([mean(similarity(found, other)) for other in wanted]))
    return scores


def bleu(rows: Sequence[Row], given: Sequence[Sequence[Grams]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 over all captions together, as COCO's evaluation has it.

    given: the references' grams. The length of reference is the one closest to the caption's,
    the shorter of two. Source: https://github.com/tylin/coco-caption (bleu).
    """
    right, made = [0] * LONGEST, [0] * LONGEST
    length, wanted = 0, 0
    for row, references in zip(rows, given, strict=True):
        found = grams(str(row["text"]))
        for gram, count in found.items():
            most = max((reference[gram] for reference in references), default=0)
            right[len(gram) - 1] += min(count, most)
            made[len(gram) - 1] += count
        own = words_of(found)
        length += own
        wanted += min((abs(words_of(one) - own), words_of(one)) for one in references)[1]
    ratio = (length + 1e-15) / (wanted + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, figures = 1.0, {}
    for n in range(LONGEST):
        product *= (right[n] + 1e-15) / (made[n] + 1e-9)
        figures[f"bleu{n + 1}"] = brevity * product ** (1 / (n + 1))
    return figures


def words_of(counts: Grams) -> int:
    """Number of words of a caption."""
    return sum(count for gram, count in counts.items() if len(gram) == 1)


def tokens(text: str) -> list[str]:
    """Words in lower case without punctuation; `it's` is two."""
    return _WORD.findall(text.lower().replace("n't", " n't"))


def grams(text: str) -> Grams:
    """Runs of 1 to 4 words with their counts."""
    words = tokens(text)
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )


def weighted(counts: Grams, *, seen: Grams, total: float) -> tuple[list[dict[Any, float]], int]:
    """tf-idf by length of the gram, and the number of 2-grams, COCO's length of a caption."""
    vectors: list[dict[Any, float]] = [{} for _ in range(LONGEST)]
    for gram, count in counts.items():
        idf = total - math.log(max(1.0, float(seen[gram])))
        vectors[len(gram) - 1][gram] = count * idf
    return vectors, sum(count for gram, count in counts.items() if len(gram) == 2)


def similarity(
    found: tuple[list[dict[Any, float]], int], wanted: tuple[list[dict[Any, float]], int]
) -> list[float]:
    """Clipped cosine of each length of gram, less where the captions differ in length."""
    penalty = math.exp(-((found[1] - wanted[1]) ** 2) / (2 * SIGMA**2))
    values = []
    for own, other in zip(found[0], wanted[0], strict=True):
        norms = math.hypot(*own.values()) * math.hypot(*other.values())
        product = sum(min(weight, other[g]) * other[g] for g, weight in own.items() if g in other)
        values.append(penalty * product / norms if norms else 0.0)
    return values
