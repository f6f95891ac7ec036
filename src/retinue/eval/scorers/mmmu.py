"""Scorer of MMMU by the rules of its evaluation, for letters and for free answers.

Source: MMMU (arXiv 2311.16502) and the rules of https://github.com/MMMU-Benchmark/MMMU.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

_OPTION = re.compile(r"\(([A-Z])\) (.*)", re.DOTALL)
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_SIGNS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What an answer stands behind in a sentence; in the last one also `=`."""
_MARKS = ",.!?;:'"


def mmmu(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Letter, option's text or number, found in the answer as MMMU's evaluation finds it.

    References: the letter, then the options as `(A) text`; without options, answers that each
    count as right. Where no option is named the original guesses; so does this, by the answer's
    checksum, so that equal answers score alike. Source: MMMU (arXiv 2311.16502).
    """
    options = {found[1]: found[2] for one in references if (found := _OPTION.fullmatch(one))}
    if options:
        keys = [one for one in references if not _OPTION.fullmatch(one)]
        return {"mmmu": float(chosen(prediction, options) in keys)}
    return {"mmmu": float(met(open_answers(prediction), references))}


def chosen(response: str, options: Mapping[str, str]) -> str:
    """The letter of an answer; options: letter -> text.

    Tried in turn: `(A)`, `A `, `A.`, and in answers of more than five words an option's text. Of
    several the one that stands last.
    """
    for mark in _MARKS:
        response = response.strip(mark)
    text = f" {response} "
    low = text.lower()
    bracketed = [letter for letter in options if f"({letter})" in text]
    spaced = [letter for letter in options if f"{letter} " in text]
    dotted = [letter for letter in options if f"{letter}." in text]
    said = [letter for letter, words in options.items() if words.lower() in low]
    ways = [(bracketed, lambda letter: text.rfind(f"({letter})"))]
    ways += [(found, lambda letter: text.rfind(f" {letter} ")) for found in (spaced, dotted)]
    if len(text.split()) > 5:
        ways.append((said, lambda letter: low.rfind(options[letter].lower())))
    for found, place in ways:
        if found:
            return max(found, key=place)
    letters = list(options)
    return letters[zlib.crc32(response.encode()) % len(letters)]


def open_answers(response: str) -> list[str | float]:
    """What a free answer may mean: the ends of its telling sentences, and the numbers in them."""
    text = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)
    found = []
    for number, sentence in enumerate(sentences):
        signs = (*_SIGNS, "=") if number == len(sentences) - 1 else _SIGNS
        ends = [sentence.split(sign)[-1].strip() for sign in signs if sign in sentence]
        # The shortest end, but one that is empty gives way to whatever comes after it.
        shortest = ""
        for end in ends:
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _MARKS:
            found.append(shortest)
    found = found or [text]
    found += [number for part in tuple(found) for number in numbers(part)]
    return list(dict.fromkeys(one for part in found for one in normal(part)))


def numbers(text: str) -> list[str]:
    """Numbers in a text: with commas, in scientific notation, then plain ones."""
    return [number for form in _NUMBERS for number in form.findall(text)]


def normal(text: str) -> list[str | float]:
    """A number rounded to two digits, else lower case; a single character with a blank beside."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
    return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def met(found: Sequence[str | float], answers: Sequence[str]) -> bool:
    """Whether an answer's text stands in one of the texts found, or its number among them."""
    wanted = [one for answer in answers for one in normal(answer)]
    for one in found:
        if isinstance(one, float):
            if one in wanted:
                return True
        elif any(isinstance(text, str) and text in one for text in wanted):
            return True
    return False


DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
DOMAIN_OF = {subject: domain for domain, own in DOMAINS.items() for subject in own}
