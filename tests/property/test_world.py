"""TinyWorld's answers follow from its scenes: every question is read back and answered anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.media import boxes
from retinue.world.options import WorldOptions
from retinue.world.scene import PLACES, Scene, Thing, sample_scene
from retinue.world.tasks import TASKS
from retinue.world.tasks.base import QA

PATIENT = settings(deadline=None)  # a busy machine is no failure
OPTIONS = st.builds(
    WorldOptions,
    size=st.sampled_from([(64, 64), (48, 96), (120, 75)]),
    min_objects=st.integers(0, 2),
    max_objects=st.integers(3, 5),
    objects=st.sampled_from(["shapes", "letters"]),
    letters=st.integers(3, 31),
    shapes=st.integers(3, 10),
    colours=st.integers(3, 9),
    repeat=st.sampled_from([0.0, 0.5, 1.0]),
    jitter=st.sampled_from([0.0, 1.0]),
    words=st.integers(0, 1),
    figures=st.integers(0, 1),
    boxes=st.sampled_from(["sphinx", "llava", "compact"]),
)
SEEDS = st.integers(0, 2**32)


def _found(scene: Scene, words: str) -> list[Thing]:
    """The objects that a phrase can mean, judged by its words and the boxes alone."""
    match = re.fullmatch(
        r"object (at the|left of the|right of the|above the|below the) (.*)", words
    )
    if match is None:
        return [t for t in scene.things if set(words.split()) - {"object"} <= {t.colour, t.shape}]
    if match[1] == "at the":
        return [thing for thing in scene.things if _place(scene, thing) == match[2]]
    (other,) = _found(scene, match[2])
    return [t for t in scene.things if t is not other and _related(scene, t, match[1][:-4], other)]


def _middle(thing: Thing) -> tuple[float, float]:
    return (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2


def _cell(scene: Scene, thing: Thing) -> tuple[int, int]:
    x, y = _middle(thing)
    return int(3 * y // scene.size[0]), int(3 * x // scene.size[1])


def _place(scene: Scene, thing: Thing) -> str:
    row, column = _cell(scene, thing)
    return PLACES[row][column]


def _related(scene: Scene, one: Thing, word: str, other: Thing) -> bool:
    (row, column), (other_row, other_column) = _cell(scene, one), _cell(scene, other)
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[word]


def _one(scene: Scene, words: str) -> Thing:
    found = _found(scene, words)
    assert len(found) == 1, f"{words!r} means {len(found)} objects"
    return found[0]


def _exists(scene: Scene, words: str) -> str:
    return "yes" if _found(scene, words) else "no"


def _is(scene: Scene, words: str) -> str:
    match = re.fullmatch(r"(.*) (left of|right of|above|below) the (.*)", words)
    assert match is not None
    true = _related(scene, _one(scene, match[1]), match[2], _one(scene, match[3]))
    return "yes" if true else "no"


def _number(scene: Scene, words: str) -> str:
    noun = words.removesuffix(" objects")
    singular = noun if noun != words else re.sub(r"(?<=s)es$|s$", "", noun)
    return str(len(_found(scene, singular)))


ORACLES: dict[str, tuple[str, Callable[[Scene, str], str]]] = {
    "colour": (r"What color is the (.*)\?", lambda s, w: _one(s, w).colour),
    "shape": (r"What shape is the (.*)\?", lambda s, w: _one(s, w).shape),
    "size": (r"Is the (.*) small or large\?", lambda s, w: _one(s, w).size),
    "place": (r"Where is the (.*)\?", lambda s, w: _place(s, _one(s, w))),
    "exist": (r"Is there an? (.*)\?", _exists),
    "relation": (r"Is the (.*)\?", _is),
    "count": (r"How many (objects) are there\?", lambda s, w: str(len(s.things))),
    "count_of": (r"How many (.*) are there\?", _number),
}


def _questions(name: str, scene: Scene, seed: int, options: WorldOptions) -> list[QA]:
    found = TASKS.get(name)(scene, rng=Random(seed), options=options)
    assert all(qa.task == name and qa.answer in qa.accepted for qa in found)
    asked = [qa.question for qa in found]
    assert len(set(asked)) == len(asked)
    return found


@pytest.mark.parametrize("name", sorted(ORACLES))
@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_answers_follow_from_the_scene(name: str, options: WorldOptions, seed: int) -> None:
    scene = sample_scene(Random(seed), options=options)
    pattern, oracle = ORACLES[name]
    for qa in _questions(name, scene, seed, options):
        match = re.fullmatch(pattern, qa.question)
        assert match is not None, qa.question
        assert qa.answer == oracle(scene, match[1]), qa.question


@pytest.mark.parametrize("name", ["rec", "rec_relation"])
@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_boxes_are_those_of_the_named_object(name: str, options: WorldOptions, seed: int) -> None:
    scene = sample_scene(Random(seed), options=options)
    for qa in _questions(name, scene, seed, options):
        wanted = _one(scene, qa.question.removeprefix("Find the ").removesuffix("."))
        (box,) = boxes.read(qa.answer, size=scene.size, style=options.boxes)
        assert box == pytest.approx(wanted.box, abs=0.51 * max(scene.size) / 100)


@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_region_words_and_detections_agree(options: WorldOptions, seed: int) -> None:
    scene = sample_scene(Random(seed), options=options)
    for qa in _questions("reg", scene, seed, options):
        (box,) = boxes.read(qa.question, size=scene.size, style=options.boxes)
        assert max(scene.things, key=lambda t: boxes.iou(t.box, box)).name == qa.answer
    for qa in _questions("det", scene, seed, options):
        kind = qa.question.removeprefix("Find all ").removesuffix(".")
        number = len(boxes.parse_boxes(qa.answer))
        assert number == (len(scene.figures) if kind == "people" else int(_number(scene, kind)))
    for qa in _questions("reldet", scene, seed, options):
        for triple in qa.answer.split("; "):
            sentence = re.sub(r" (left of|above) ", r" \1 the ", triple)
            assert _is(scene, sentence) == "yes"


@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_scenes_hold_what_the_options_allow(options: WorldOptions, seed: int) -> None:
    scene = sample_scene(Random(seed), options=options)
    assert scene == sample_scene(Random(seed), options=options)
    assert options.min_objects <= len(scene.things) <= options.max_objects
    assert len({thing.name for thing in scene.things}) == len(scene.things)
    assert [t.cell for t in scene.things] == sorted({t.cell for t in scene.things})
    extents = [item.box for group in (scene.things, scene.words, scene.figures) for item in group]
    height, width = scene.size
    for index, (x1, y1, x2, y2) in enumerate(extents):
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert all(boxes.iou(extents[index], other) == 0 for other in extents[:index])
    for thing in scene.things:
        assert _cell(scene, thing) == thing.cell


@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_words_poses_and_captions(options: WorldOptions, seed: int) -> None:
    scene = sample_scene(Random(seed), options=options)
    assert [qa.answer for qa in _questions("ocr", scene, seed, options)] == [
        word.text for word in scene.words
    ]
    for qa in _questions("rec_text", scene, seed, options):
        (word,) = [w for w in scene.words if qa.question == f"Find the text {w.text}."]
        (box,) = boxes.read(qa.answer, size=scene.size, style=options.boxes)
        assert box == pytest.approx(word.box, abs=0.51 * max(scene.size) / 100)
    for qa in _questions("pose", scene, seed, options):
        joints = boxes.parse_pose(qa.answer)
        assert list(joints) == [name for name, _ in scene.figures[0].joints]
    (dense,) = _questions("caption_dense", scene, seed, options)
    found = re.findall(r"an? (small|large) (\w+) (\w+) at the ([\w ]+)", dense.answer)
    assert found == [(t.size, t.colour, t.shape, t.place) for t in scene.things]
    (short,) = _questions("caption", scene, seed, options)
    assert (
        re.findall(r"an? (\w+ \w+)(?:,| and|$)", short.answer)
        == [thing.name for thing in scene.things]
        or not scene.things
    )


@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_an_inventory_names_every_object_and_tells_the_truth(
    options: WorldOptions, seed: int
) -> None:
    scene = sample_scene(Random(seed), options=options)
    (told,) = _questions("inventory", scene, seed, options)
    if not scene.things:
        assert told.answer == "an empty picture"
        return
    named = []
    for phrase in told.answer.split(", "):
        words, said = phrase.removeprefix("the ").split(" is ")
        thing = _one(scene, words)
        named.append(thing)
        attributes, _, place = said.partition(" at the ")
        assert not place or place == _place(scene, thing)
        known = {thing.colour, thing.shape, thing.size, "a", "an"}
        assert set(attributes.split()) <= known, phrase
    assert sorted(thing.name for thing in named) == sorted(thing.name for thing in scene.things)


@PATIENT
@given(options=OPTIONS, seed=SEEDS)
def test_questions_about_several_pictures(options: WorldOptions, seed: int) -> None:
    scene = sample_scene(Random(seed), options=options)
    for qa in _questions("multi_image", scene, seed, options):
        words = re.sub(r"Which picture has an? (.*)\?", r"\1", qa.question)
        assert [k for k, s in enumerate(qa.scenes, 1) if _found(s, words)] == [int(qa.answer)]
        assert scene in qa.scenes
    for qa in _questions("video", scene, seed, options):
        words = re.sub(r"Which way does the (.*) move\?", r"\1", qa.question)
        track = [_middle(_one(frame, words)) for frame in qa.scenes]
        (x1, y1), (x2, y2) = track[0], track[-1]
        dx, dy = x2 - x1, y2 - y1
        across = "right" if dx > 0 else "left"
        assert qa.answer == (across if abs(dx) > abs(dy) else "down" if dy > 0 else "up")
        for frame in qa.scenes:
            mover = _one(frame, words)
            rest = [thing for thing in frame.things if thing is not mover]
            assert all(boxes.iou(mover.box, thing.box) == 0 for thing in rest)
