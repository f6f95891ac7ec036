"""Pictures sorted into folders by their class, as ImageNet is stored, as conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.data.published.raw import Raw

QUESTION, ANSWER = "Classify the image.", "This is a {}"
"""Wording of SPHINX's tuning example."""

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")


def imagefolder(raw: Raw) -> Iterator[dict[str, Any]]:
    """Folders of pictures, one per class; --names says what each is called (SPHINX's tuning).

    Rows are conversations: {"image": path below the folder, "conversations": [...]}; folders and
    pictures in the order of their names. Raises DataError for a folder without a name in the map,
    and where there is no folder of pictures.
    """
    if not raw.path.is_dir():
        raise DataError("is no folder", where=str(raw.path), fix="name the folder of the classes")
    classes = sorted(path for path in raw.path.iterdir() if path.is_dir())
    names = None if raw.names is None else class_names(raw.names)
    lost = [] if names is None else [path.name for path in classes if path.name not in names]
    if lost and raw.names is not None:
        raise DataError(
            f"{len(lost)} folders have no name, {lost[0]} the first",
            where=str(raw.names),
            rule="one name for every folder",
            fix="add them, or move the folders away",
        )
    for folder in classes:
        called = folder.name if names is None else names[folder.name]
        answer = ANSWER.format(called)
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in ENDINGS:
                yield {
                    "image": raw.picture(file.relative_to(raw.path).as_posix()),
                    "conversations": [
                        {"from": "human", "value": QUESTION},
                        {"from": "gpt", "value": answer},
                    ],
                }


def class_names(path: Path) -> Mapping[str, str]:
    """Folder -> name of its class, from one of the files in use.

    JSON {"n01440764": "tench"}, Keras' {"0": ["n01440764", "tench"]}, or lines `n01440764 tench,
    Tinca tinca`, whose first name counts. Raises DataError for any other.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot be read", where=str(path), rule=str(error)) from None
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, dict):
        pairs = [value if isinstance(value, list) else [key, value] for key, value in data.items()]
    else:
        pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        pairs = [[*pair[:1], *(rest.partition(",")[0] for rest in pair[1:])] for pair in pairs]
    found: dict[str, str] = {}
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) and part.strip() for part in pair):
            raise DataError(
                f"{pair!r:.60} is no folder and its name",
                where=str(path),
                rule='lines `folder name`, JSON {"folder": "name"} or {"0": ["folder", "name"]}',
            )
        found[pair[0]] = pair[1].strip()
    return found
