"""The six-frame collage of IG-VLM: which frames are picked, and every grey level of the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cases import cases, compared
from PIL import Image
from safetensors.numpy import load_file

from retinue.core.errors import MediaError
from retinue.media.frames import Collage, pick

CASES = cases("m3-llava", "*video*", having="frames.safetensors")
SIX = Collage().count


def clips(case: Path) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """(recorded facts, frames, collage) of every clip of a case."""
    recorded = json.loads((case / "outputs.json").read_text("utf-8"))["videos"]
    arrays = load_file(case / "frames.safetensors")
    return [
        (facts, arrays[f"n{facts['n_frames']}.frames"], arrays[f"n{facts['n_frames']}.grid"])
        for facts in recorded
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_collage(case: Path) -> None:
    found = clips(case)
    assert found
    for facts, frames, grid in found:
        assert pick(len(frames), SIX) == facts["picked"]
        source = tuple(Image.fromarray(frame) for frame in frames)
        (picture,) = Collage().pictures(source)
        (blank,) = Collage().blanks(source)
        assert [picture.height, picture.width] == facts["grid_hw"]
        assert blank.size == picture.size
        assert np.array_equal(np.asarray(picture), grid), facts
        compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_fewer_frames_are_refused(case: Path) -> None:
    """The original divides by zero; ours is an error as well, one that says why."""
    recorded = json.loads((case / "outputs.json").read_text("utf-8"))
    assert recorded["fewer_than_six"].endswith("Error")
    few = tuple(Image.fromarray(frame) for frame in clips(case)[0][1][: SIX - 1])
    with pytest.raises(MediaError, match=rf"{SIX - 1} frames \(a collage needs {SIX}\)"):
        Collage().pictures(few, where="sample a")
    compared(case)
