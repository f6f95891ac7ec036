"""Coordinates as text and on pictures: literal forms and round trips."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinue.media import boxes
from retinue.media.boxes import Shape

PATIENT = settings(deadline=None)  # a busy machine is no failure
SIZES = st.tuples(st.integers(8, 2000), st.integers(8, 2000))


def test_sphinx_form_pads_to_a_square() -> None:
    # a 50 x 100 picture has 25 rows of padding above it
    assert boxes.write([(10, 5, 60, 45)], size=(50, 100)) == "[0.100,0.300,0.600,0.700]"
    assert boxes.write([(10, 5)], size=(50, 100)) == "[0.100,0.300]"
    two = boxes.write([(0, 0, 10, 10), (20, 20, 40, 40)], size=(100, 100))
    assert two == "[0.000,0.000,0.100,0.100;0.200,0.200,0.400,0.400]"


def test_other_forms() -> None:
    box = (10, 5, 60, 45)
    forms = {style: boxes.write([box], size=(50, 100), style=style) for style in boxes.STYLES}
    assert forms["llava"] == "[0.10,0.30,0.60,0.70]"
    assert forms["compact"] == "[10 30 60 70]"
    assert forms["thousand"] == "[100,100,600,900]"
    assert forms["pixels"] == "[10,5,60,45]"


def test_parse_reads_phrases_points_and_several_boxes() -> None:
    text = "A <p>man</p> [0.1,0.2,0.3,0.4] [see] <p>two dogs</p> [0.1,0.2,0.3,0.4;0.5,0.5,0.7,0.8]"
    man, dogs = boxes.parse(text)
    assert (man.phrase, man.shapes) == ("man", ((0.1, 0.2, 0.3, 0.4),))
    assert text[man.start : man.end] == "<p>man</p> [0.1,0.2,0.3,0.4]"
    assert dogs.phrase == "two dogs"
    assert len(dogs.shapes) == 2
    assert boxes.parse("nose [0.5,0.25]; empty []")[0].shapes == ((0.5, 0.25),)
    assert boxes.parse_boxes("[1, 2, 3, 4] and [1 2]") == [(1, 2, 3, 4)]
    assert boxes.parse("nothing [at all]") == []


@pytest.mark.parametrize("tags", [True, False])
def test_poses_round_trip(tags: bool) -> None:
    joints = {"nose": (50.0, 20.0), "left_shoulder": (60.0, 30.0)}
    text = boxes.write_pose(joints, size=(100, 100), style="compact", tags=tags)
    assert text.count("<p>") == (2 if tags else 0)
    assert boxes.parse_pose(text) == joints


@PATIENT
@given(
    size=SIZES,
    shape=st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda s: len(s) % 2 == 0),
    source=st.sampled_from(["square", "square100", "unit", "thousand", "pixels"]),
    target=st.sampled_from(["square", "square100", "unit", "thousand", "pixels"]),
)
def test_conversion_is_invertible(
    size: tuple[int, int],
    shape: list[float],
    source: boxes.Convention,
    target: boxes.Convention,
) -> None:
    there = boxes.convert(tuple(shape), source=source, target=target, size=size)
    back = boxes.convert(there, source=target, target=source, size=size)
    # offsets of up to 1000 pixels cost digits of numbers near 0, hence the scale of the picture
    assert back == pytest.approx(shape, abs=1e-9 * max(size))


@PATIENT
@given(size=SIZES, fractions=st.tuples(*[st.floats(0, 1)] * 4), data=st.data())
def test_reading_undoes_writing_up_to_the_digits(
    size: tuple[int, int], fractions: tuple[float, ...], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(boxes.STYLES)))
    height, width = size
    box: Shape = tuple(f * (height if i % 2 else width) for i, f in enumerate(fractions))
    style = boxes.STYLES[name]
    full = {"square": 1, "square100": 100, "thousand": 1000}.get(style.convention)
    step = 0.5 * 10**-style.digits * (max(size) / full if full else 1)
    (again,) = boxes.read(boxes.write([box], size=size, style=name), size=size, style=name)
    assert again == pytest.approx(box, abs=step * 1.001 + 1e-9)


@PATIENT
@given(st.text(max_size=60))
def test_parsing_never_fails(text: str) -> None:
    assert all(region.shapes for region in boxes.parse(text))
    boxes.parse_pose(text)


def test_draw_paints_boxes_dots_and_limbs_only() -> None:
    plain = Image.new("RGB", (100, 50), "white")
    marked = boxes.draw(plain, "<p>it</p>[0.1,0.3,0.6,0.7] [0.900,0.500]")
    assert marked.getpixel((10, 20)) == (255, 0, 0)  # left edge, 25 rows of padding taken off
    assert marked.getpixel((30, 25)) == (255, 255, 255)
    assert marked.getpixel((90, 25)) == (0, 0, 255)
    assert plain.getpixel((10, 20)) == (255, 255, 255)
    pose = boxes.draw(plain, "left knee[0.2,0.5] left hip[0.8,0.5]", radius=1)
    assert pose.getpixel((50, 25)) == (0, 128, 0)
    assert boxes.draw(plain, "nothing").tobytes() == plain.tobytes()


def test_iou_of_empty_boxes_is_zero() -> None:
    assert boxes.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert boxes.iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
