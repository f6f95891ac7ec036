"""Dialogs: a row per answer, whose input holds the turns before it as text.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from retinue.core.errors import DataError, MediaError
from retinue.data.published.raw import Raw, Row, listed, load, records, shown, text_of

ASKERS = {"human", "user"}
TELLERS = {"gpt", "assistant", "chatgpt", "bing", "bard"}


def rows_of(turns: Sequence[tuple[str, str]], *, before: str = "", wide: bool = True) -> list[Row]:
    """(question, answer) pairs -> a row per answer.

    before: opens every input. wide: an empty line stands before each mark of a turn.
    """
    line = "\n" if wide else ""
    past = ""
    rows: list[Row] = []
    for asked, told in turns:
        past += f"{line}\n### Human: {asked}" if past else asked
        rows.append({"input": f"{before}{past.strip() if rows else past}", "output": told})
        past += f"{line}\n### Assistant: {told}"
    return rows


def turns_of(row: dict[str, Any], *, where: str) -> list[tuple[str, str]]:
    """Questions and answers of `conversations`; what stands outside the alternation is left out."""
    found = row.get("conversations")
    if not isinstance(found, list):
        raise DataError("no 'conversations'", where=where, rule="a list of {from, value}")
    pairs: list[tuple[str, str]] = []
    asked: str | None = None
    for turn in found:
        who, text = str(turn.get("from", "")).lower(), text_of(turn, "value")
        if who in ASKERS:
            asked = text
        elif who in TELLERS and asked is not None:
            pairs.append((asked, text))
            asked = None
    return pairs


def _unmarked(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(a.replace("<image>\n", "").replace("\n<image>", ""), t) for a, t in turns]


def llava(raw: Raw) -> Iterator[Row]:
    """LLaVA-Instruct-150K on COCO's pictures of 2014 (images: their folder)."""
    for row in records(raw.path):
        picture = raw.picture(f"COCO_train2014_{text_of(row, 'image')}", under="coco/train2014")
        turns = _unmarked(turns_of(row, where=str(raw.path)))
        yield from rows_of(turns, before=shown(picture))


def llavar(raw: Raw) -> Iterator[Row]:
    """LLaVAR's 20k conversations: those of the mixed file whose picture is in --images."""
    for row in records(raw.path):
        picture = raw.picture(text_of(row, "image"))
        if raw.exists(picture):
            turns = _unmarked(turns_of(row, where=str(raw.path)))
            yield from rows_of(turns, before=shown(picture))


def lamm(raw: Raw) -> Iterator[Row]:
    """LAMM's 186k conversations; those on Bamboo's pictures only where the picture opens."""
    for row in records(raw.path):
        picture = raw.picture(text_of(row, "image"))
        if "bamboo" in row["image"]:
            try:
                raw.open(picture)
            except MediaError:
                continue
        turns = _unmarked(turns_of(row, where=str(raw.path)))
        yield from rows_of(turns, before=shown(picture))


def svit(raw: Raw) -> Iterator[Row]:
    """SVIT on Visual Genome, whose raw/annotations/vg/image_data.json stands in its folder.

    The picture of a single question comes before or after it, as a coin says.
    """
    meta = raw.path.parent.parent / "raw" / "annotations" / "vg" / "image_data.json"
    places = {one["image_id"]: "VG_100K" + one["url"].partition("VG_100K")[2] for one in load(meta)}
    for row in records(raw.path):
        picture = shown(raw.picture(places[row["image_id"]], under="raw"))
        for dialog in row["conversations"]:
            turns = turns_of({"conversations": dialog["content"]}, where=str(raw.path))
            if len(dialog["content"]) > 2:
                yield from rows_of(turns, before=picture, wide=False)
                continue
            ((asked, told),) = turns
            first = raw.rng.random() < 0.5
            yield {"input": picture + asked if first else asked + picture, "output": told}


def sharegpt(raw: Raw) -> Iterator[Row]:
    """ShareGPT: a row per answer; conversations may open with an answer, which is left out."""
    for row in records(raw.path):
        yield from rows_of(turns_of(row, where=str(raw.path)))


MARK = "You have access of the following tools:"


def toolbench(raw: Raw) -> Iterator[Row]:
    """ToolBench (ToolLLaMA): thoughts and calls as answers, what functions return as questions.

    Of the system message the list of tools stays.
    """
    path = raw.path
    rows = records(path) if path.suffix != ".json" else iter(_toolbench(raw))
    for row in rows:
        system, turns, asked = "", [], ""
        for turn in row["conversations"]:
            who, text = turn["from"], text_of(turn, "value").strip()
            if who == "system":
                _, mark, tools = text.partition(MARK)
                system = f"Toolbench System Message -- {mark}{tools}\n" if mark else f"{text}\n"
            elif who == "assistant":
                turns.append((asked, text))
                asked = ""
            else:
                asked = f"{asked}\n{text}" if asked else text
        yield from rows_of(turns, before=system)


def _toolbench(raw: Raw) -> list[dict[str, Any]]:
    found = load(raw.path)
    return found if isinstance(found, list) else listed(raw.path, key="data")
