"""The Porter stemmer with NLTK's changes to it, which ROUGE's usual implementation stems with.

Source: Porter, "An algorithm for suffix stripping" (1980); the deviations that NLTK documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import pairwise

IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
    "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing",
    "cannings": "canning", "canning": "canning", "howe": "howe", "proceed": "proceed",
    "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip

SECOND = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
    ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"),
    ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"),
    ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"),
    ("fulli", "ful"),
)  # fmt: skip
THIRD = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
    ("ness", ""),
)  # fmt: skip
FOURTH = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip

Rule = tuple[str, str, Callable[[str], bool]]


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a word, in lower case."""
    word = word.lower()
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (plurals, participles, final_y, second, third, fourth, final_e, double_l):
        word = step(word)
    return word


def consonant(word: str, at: int) -> bool:
    """A y is one at the beginning and after a vowel."""
    if word[at] == "y":
        return at == 0 or not consonant(word, at - 1)
    return word[at] not in "aeiou"


def measure(text: str) -> int:
    """How many times a vowel is followed by a consonant."""
    kinds = [consonant(text, at) for at in range(len(text))]
    return sum(after and not before for before, after in pairwise(kinds))


def short_end(text: str) -> bool:
    """Consonant, vowel, consonant other than w, x, y; or a word of just a vowel and a consonant."""
    if len(text) == 2:
        return not consonant(text, 0) and consonant(text, 1)
    return (
        len(text) > 2
        and consonant(text, len(text) - 3)
        and not consonant(text, len(text) - 2)
        and consonant(text, len(text) - 1)
        and text[-1] not in "wxy"
    )


def double_end(text: str) -> bool:
    return len(text) > 1 and text[-1] == text[-2] and consonant(text, len(text) - 1)


def first_fit(word: str, rules: Iterable[Rule]) -> str:
    """The first ending that fits decides, whether its condition holds or not."""
    for ending, instead, holds in rules:
        if word.endswith(ending):
            rest = word[: len(word) - len(ending)]
            return rest + instead if holds(rest) else word
    return word


def always(_: str) -> bool:
    return True


def counts(rest: str) -> bool:
    return measure(rest) > 0


def plurals(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    return first_fit(
        word,
        [("sses", "ss", always), ("ies", "i", always), ("ss", "ss", always), ("s", "", always)],
    )


def participles(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if counts(word[:-3]) else word
    for ending in ("ed", "ing"):
        if word.endswith(ending):
            rest = word[: len(word) - len(ending)]
            if any(not consonant(rest, at) for at in range(len(rest))):
                return mended(rest)
    return word


def mended(rest: str) -> str:
    """What is left when a participle's ending is gone, as a word again."""
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if double_end(rest):
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if measure(rest) == 1 and short_end(rest) else rest


def final_y(word: str) -> str:
    rest = word[:-1]
    change = word.endswith("y") and len(rest) > 1 and consonant(rest, len(rest) - 1)
    return rest + "i" if change else word


def second(word: str) -> str:
    if word.endswith("alli") and counts(word[:-4]):
        return second(word[:-2])
    rules: list[Rule] = [(ending, instead, counts) for ending, instead in SECOND]
    return first_fit(word, [*rules, ("logi", "log", lambda _: counts(word[:-3]))])


def third(word: str) -> str:
    return first_fit(word, [(ending, instead, counts) for ending, instead in THIRD])


def fourth(word: str) -> str:
    def long(rest: str) -> bool:
        return measure(rest) > 1

    def after_s_or_t(rest: str) -> bool:
        return long(rest) and rest[-1] in "st"

    return first_fit(
        word, [(ending, "", after_s_or_t if ending == "ion" else long) for ending in FOURTH]
    )


def final_e(word: str) -> str:
    rest = word[:-1]
    if not word.endswith("e"):
        return word
    return rest if measure(rest) > 1 or (measure(rest) == 1 and not short_end(rest)) else word


def double_l(word: str) -> str:
    return word[:-1] if word.endswith("ll") and measure(word[:-1]) > 1 else word
