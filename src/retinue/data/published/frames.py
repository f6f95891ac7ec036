"""Sets of several pictures: MIMIC-IT, VideoChat's frames, FunQA's videos.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from retinue.core.errors import DataError, MediaError
from retinue.data.published.raw import Raw, Row, listed, load, records, shown, text_of
from retinue.media.image import load_image
from retinue.media.video import open_clip

SIDE = 336


def mimic_it(raw: Raw) -> Iterator[Row]:
    """MIMIC-IT (VST, TVC, SN, LA...): 4 pictures of a longer list, 8 for TVC, in their order.

    Rows that name annotations or people by tags are left out; of VST also those whose pictures
    are missing, where --images is a folder.
    """
    name = raw.path.name
    most = 8 if name.startswith("TVC") else 4
    look = name.startswith("VST") and raw.images is not None
    for row in listed(raw.path, key="data").values():
        ids, asked, told = row["image_ids"], text_of(row, "instruction"), text_of(row, "answer")
        if len(ids) > most:
            ids = [ids[at] for at in sorted(raw.rng.sample(range(len(ids)), most))]
        renamed = [one.replace("SN_IMG", "SN_00_IMG").replace("_color", "_00_color") for one in ids]
        pictures = [raw.picture(f"{one}.png") for one in renamed]
        asked += "".join(map(shown, pictures))
        if "annotations" in asked or "[male]" in told or "[female]" in told:
            continue
        if not look or all(raw.exists(picture) for picture in pictures):
            yield {"input": asked, "output": told}


def mimic_it_images(raw: Raw) -> Iterator[Row]:
    """MIMIC-IT's pictures (VST.json...), base64 -> PNG whose shorter side is 336 (--made)."""
    for name, coded in load(raw.path).items():
        try:
            picture = load_image(base64.b64decode(coded), where=f"{raw.path}: {name}")
        except ValueError:
            raise DataError("no base64", where=f"{raw.path}: {name}") from None
        scale = SIDE / min(picture.size)
        size = tuple(
            SIDE if edge == min(picture.size) else int(edge * scale) for edge in picture.size
        )
        small = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        yield {"input": shown(raw.write(small, f"{name}.png")), "output": ""}


def video_chat(raw: Raw) -> Iterator[Row]:
    """VideoChat's frames: marks of frames go, marks of turns get one form."""
    for row in records(raw.path):
        text = re.sub(r"\bf\d+ ", "", text_of(row, "input")).replace("\n\n###", "\n###")
        for role in ("Human", "Assistant"):
            text = text.replace(f"### {role}:", f"### {role}: ")
        yield {"input": text, "output": text_of(row, "output")}


def funqa(raw: Raw) -> Iterator[Row]:
    """FunQA: 8 frames of videos below 16 s, else 16, 336 x 336, each with its second (--made).

    Tasks of number 1 (where is the funny part?) are left out. images: the folder of the videos.
    """
    for row in records(raw.path):
        task = text_of(row, "task")
        if task.endswith("1"):
            continue
        name = text_of(row, "visual_input")
        shots = _shots(raw, raw.picture(name), stem=Path(name).stem)
        asked = text_of(row, "instruction")
        first = raw.rng.random() < 0.5
        whole = shots + asked if first else f"{asked}\n{shots}".rstrip("\n")
        yield {"input": whole, "output": text_of(row, "output")}


def _shots(raw: Raw, video: str, *, stem: str) -> str:
    with open_clip(video, where=str(raw.path)) as clip:
        stamps, _ = clip.times()
        if not stamps:
            raise MediaError("a video of no frames", where=video)
        base = clip.stream.time_base
        seconds = [
            float((stamp - (stamps[0] or 0)) * base) if stamp is not None and base else float(at)
            for at, stamp in enumerate(stamps)
        ]
        count = min(8 if seconds[-1] < 16 else 16, len(stamps))
        wanted = [round(k * (len(stamps) - 1) / max(count - 1, 1)) for k in range(count)]
        frames = clip.read(wanted)
    lines = []
    for at, frame in zip(wanted, frames, strict=True):
        small = frame.resize((SIDE, SIDE))
        picture = raw.write(small, f"{stem}/{at}.jpg")
        lines.append(f"{seconds[at]:.1f}s: {shown(picture)}\n")
    return "".join(lines)
