"""Scenes: determinism by literal digests, what options allow, drawings that fill their boxes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from PIL import Image as PILImage
from PIL import ImageChops

from retinue.core.errors import ConfigError
from retinue.world.contact import contact_sheet
from retinue.world.draw import draw_scene
from retinue.world.glyphs import GLYPHS
from retinue.world.options import COLOURS, LETTERS, SHAPES, WorldOptions
from retinue.world.outlines import OUTLINES
from retinue.world.scene import Scene, Thing, sample_scene

MIXED = WorldOptions(size=(96, 128), words=1, figures=1)


@pytest.mark.parametrize(
    ("seed", "options", "digest"),
    [
        (0, WorldOptions(), "33ab12c0094025a5"),
        (7, MIXED, "bd0a2d219db1d125"),
        (3, WorldOptions(words=2, figures=2, max_objects=1), "442045aa98b14fcb"),
    ],
)
def test_a_seed_is_a_scene(seed: int, options: WorldOptions, digest: str) -> None:
    assert sample_scene(Random(seed), options=options).digest() == digest


def test_a_scene_in_full() -> None:
    first, *_, last = sample_scene(Random(0), options=WorldOptions()).things
    assert (first.name, first.size, first.place) == ("blue star", "large", "top left")
    assert first.box == (0.44, 0.79, 20.07, 20.41)
    assert (last.name, last.size, last.place) == ("purple diamond", "small", "bottom")


def test_all_numbers_of_objects_are_equally_likely() -> None:
    rng, counts = Random(1), [0] * 5
    for _ in range(2000):
        counts[len(sample_scene(rng, options=WorldOptions()).things)] += 1
    assert counts[0] == 0
    assert all(400 < count < 600 for count in counts[1:])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": 10}, "at least 24"),
        ({"min_objects": 5}, "min_objects 5 > max_objects 4"),
        ({"shapes": 1, "colours": 2}, "cannot make 4"),
        ({"objects": "letters", "letters": 2, "colours": 1}, "2 letters x 1 colours cannot"),
        ({"objects": "letters", "skip_shapes": 1}, "skip_shapes 1"),
        ({"words": 2, "figures": 2}, "need 12 cells"),
        ({"background": "dark", "colours": 10}, "black"),
        ({"word_letters": [3, 2]}, "word_letters"),
        ({"colors": 3}, "did you mean 'colours'"),
    ],
)
def test_impossible_options_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorldOptions.parse(bad, where="world")


def test_tables_agree() -> None:
    assert set(SHAPES) == set(OUTLINES)
    assert set(LETTERS) <= set(GLYPHS)
    assert all([len(row) for row in rows] == [5] * 7 for rows in GLYPHS.values())
    assert len(set(GLYPHS.values())) == len(GLYPHS) == 36
    assert len(set(COLOURS.values())) == len(COLOURS) == len(SHAPES) == 10


@pytest.mark.parametrize("shape", [*SHAPES, *LETTERS])
def test_a_shape_touches_all_sides_of_its_box(shape: str) -> None:
    box = (10.0, 14.0, 50.0, 54.0)
    thing = Thing(shape=shape, colour="black", size="large", cell=(0, 0), box=box)
    scene = Scene(size=(64, 64), background=(255, 255, 255), things=(thing,))
    assert _extent(scene) == pytest.approx(box, abs=1.01)


def test_objects_may_be_letters() -> None:
    options = WorldOptions(objects="letters", letters=5, colours=3)
    found = {t.shape for n in range(60) for t in sample_scene(Random(n), options=options).things}
    assert found == set(LETTERS[:5])


def test_words_and_figures_fill_their_boxes() -> None:
    scene = replace(sample_scene(Random(2), options=MIXED), things=())
    (word,) = scene.words
    assert _extent(replace(scene, figures=())) == pytest.approx(word.box, abs=1.5)
    (figure,) = scene.figures
    head = 0.12 * (figure.box[3] - figure.box[1])  # the head stands out of the joints' box
    assert _extent(replace(scene, words=())) == pytest.approx(figure.box, abs=head + 1)


@pytest.mark.parametrize("small", [False, True])
def test_every_two_shapes_look_different_at_64_pixels(small: bool) -> None:
    side = WorldOptions().scale * 64 / 3 * (WorldOptions().small if small else 1.0)
    pictures = {}
    for shape in SHAPES:
        thing = Thing(
            shape=shape,
            colour="black",
            size="large",
            cell=(1, 1),
            box=(24, 24, 24 + side, 24 + side),
        )
        scene = Scene(size=(64, 64), background=(255, 255, 255), things=(thing,))
        pictures[shape] = draw_scene(scene).convert("L")
    for one in SHAPES:
        for other in SHAPES:
            if one < other:
                difference = ImageChops.difference(pictures[one], pictures[other])
                changed = sum(difference.tobytes()) / 255
                assert changed > 0.08 * side**2, (one, other, changed / side**2)


def test_contact_sheet_holds_the_pictures() -> None:
    scenes = [sample_scene(Random(seed), options=MIXED) for seed in range(5)]
    sheet = contact_sheet(scenes, columns=3, zoom=2, gap=4)
    assert sheet.size == (3 * (256 + 4) + 4, 2 * (192 + 4) + 4)
    pixel = draw_scene(scenes[4]).getpixel((5, 7))
    assert sheet.getpixel((4 + 260 + 10, 4 + 196 + 14)) == pixel


def _extent(scene: Scene) -> tuple[int, int, int, int]:
    picture = draw_scene(scene)
    ground = PILImage.new("RGB", picture.size, scene.background)
    box = (
        ImageChops.difference(picture, ground)
        .convert("L")
        .point(lambda v: 255 * (v > 24))
        .getbbox()
    )
    assert box is not None
    return box
