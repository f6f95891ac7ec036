"""A contact sheet of scenes, for documentation and for looking at the world."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from retinue.world.draw import draw_scene
from retinue.world.scene import Scene


def contact_sheet(
    scenes: Sequence[Scene], *, columns: int = 8, zoom: int = 1, gap: int = 2
) -> Image.Image:
    """The pictures in rows of `columns`, each pixel enlarged `zoom` times, on a grey ground."""
    assert scenes, "a contact sheet needs at least one scene"
    pictures = [draw_scene(scene) for scene in scenes]
    tall = max(picture.height for picture in pictures) * zoom + gap
    wide = max(picture.width for picture in pictures) * zoom + gap
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (wide * min(columns, len(pictures)) + gap, tall * rows + gap), "grey")
    for index, picture in enumerate(pictures):
        place = (gap + wide * (index % columns), gap + tall * (index // columns))
        enlarged = picture.resize(
            (picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST
        )
        sheet.paste(enlarged, place)
    return sheet
