"""Pixels, grids and sizes of LLaVA's image path: pad, square, anyres, and the demo's pre-step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file

from retinue.media.anyres import AnyRes
from retinue.media.chat import chat_image, chat_image_size
from retinue.media.image import image_size, load_image, load_pixels
from retinue.media.resize import canvas_size, colour_of, size_of, to_pil
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.media.whole import Pad, Single
from retinue.ops.pixels import normalize

pytestmark = pytest.mark.golden

PIXEL = 1e-5  # stated by the cases' READMEs
SUM = 1e-3  # stated for sums of tens of thousands of float32 values


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def stream_of(config: Path, *, side: int | None = None, mode: str = "exact") -> StreamSpec:
    data = read(config)
    crop = data["crop_size"]
    return StreamSpec.parse(
        {
            "size": side or (crop["height"], crop["width"]),
            "mean": data["image_mean"],
            "std": data["image_std"],
            "rescale": data["rescale_factor"],
            "mode": mode,
        }
    )


def policy_of(mode: str) -> ViewPolicy:
    """`image_aspect_ratio` of the original: anything but pad and anyres is CLIP's own.

    The originals' transformers misreads pictures of three rows, and the recorded cases hold one.
    """
    return Pad() if mode == "pad" else Single(axes="guessed")


def tensor(path: Path, policy: ViewPolicy, stream: StreamSpec) -> torch.Tensor:
    pixels, grid = policy.views(load_image(path), stream)
    assert grid == policy.grid(image_size(path), stream)
    return normalize(pixels, mean=stream.mean, std=stream.std, rescale=stream.rescale)


def check_sums(found: torch.Tensor, entry: dict[str, Any], prefix: str = "") -> None:
    wide = found.double()
    assert wide.sum().item() == pytest.approx(entry[f"{prefix}sum"], abs=SUM)
    assert wide.abs().sum().item() == pytest.approx(entry[f"{prefix}abs_sum"], abs=SUM)


PROCESSING = cases("m3-llava", "*image-processing*", having="preprocessor_config.json")
ANYRES = cases("m3-llava", "*anyres*", having="outputs.json")
CHAT = cases("m3-llava", "*conversation*", having="process_image_sizes.json")


@pytest.mark.parametrize("case", PROCESSING, ids=lambda case: case.name)
def test_tensors_of_every_mode(case: Path) -> None:
    stream = stream_of(case / "preprocessor_config.json")
    wanted = load_file(case / "outputs.safetensors")
    assert wanted
    for key, value in wanted.items():
        stem, _, mode = key.rpartition(".")
        found = tensor(case / "inputs" / f"{stem}.png", policy_of(mode), stream)[0]
        torch.testing.assert_close(found, value, atol=PIXEL, rtol=0)
    compared(case)


@pytest.mark.parametrize("case", PROCESSING, ids=lambda case: case.name)
def test_sums_and_canvas_of_every_image(case: Path) -> None:
    stream = stream_of(case / "preprocessor_config.json")
    outputs = read(case / "outputs.json")
    assert list(stream.mean) == outputs["image_mean"]
    assert list(stream.std) == outputs["image_std"]
    for image in outputs["images"]:
        path = case / "inputs" / image["file"]
        size = image_size(path)
        assert list(size[::-1]) == image["size"]
        assert list(canvas_size(size, stream.size)[::-1]) == image["pad_canvas"]
        assert list(colour_of(stream.mean)) == image["pad_colour"]
        for mode in image.keys() - {"file", "size", "pad_canvas", "pad_colour"}:
            found = tensor(path, policy_of(mode), stream)
            assert list(found.shape) == image[mode]["shape"]
            check_sums(found, image[mode])
    compared(case)


@pytest.mark.parametrize("case", PROCESSING, ids=lambda case: case.name)
def test_real_sizes(case: Path) -> None:
    outputs = read(case / "outputs.json")
    listed = {image["file"] for image in outputs["images"]}
    reals = [key for key in outputs if key.startswith("real_")]
    for entry in (entry for key in reals for entry in outputs[key]):
        width, height = entry["synth"][:2]
        path = next(
            path
            for path in sorted((case / "inputs").glob("*.png"))
            if path.name not in listed and image_size(path) == (height, width)
        )
        side = entry["shape"][-1]
        stream = stream_of(case / "preprocessor_config.json", side=side)
        found = tensor(path, policy_of(entry["mode"]), stream)[0]
        assert list(found.shape) == entry["shape"]
        # the recorded sum was taken in float32 over 340,000 values
        assert found.double().sum().item() == pytest.approx(entry["sum"], abs=0.05)
        points = {
            "corner": found[:, 0, 0],
            "centre": found[:, side // 2, side // 2],
        }
        for name, point in points.items():
            assert point.tolist() == pytest.approx(entry[name], abs=PIXEL)
        row = [key for key in entry if key.startswith("row")]
        for key in row:  # row100_col_0_335
            y, columns = int(key.split("_")[0][3:]), [int(x) for x in key.split("_")[2:]]
            for x, wanted in zip(columns, entry[key], strict=True):
                assert found[:, y, x].tolist() == pytest.approx(wanted, abs=PIXEL)


@pytest.mark.parametrize("case", PROCESSING, ids=lambda case: case.name)
def test_fast_mode_is_within_one_grey_level(case: Path) -> None:
    config = case / "preprocessor_config.json"
    for path in sorted((case / "inputs").glob("*.png")):
        for policy in (Pad(), Single()):
            exact, _ = policy.views(load_image(path), stream_of(config))
            fast, _ = policy.views(load_pixels(path), stream_of(config, mode="fast"))
            assert (exact.int() - fast.int()).abs().max() <= 1, path.name


def tower(case: Path) -> Path:
    name = read(case / "model" / "config.json")["mm_vision_tower"]
    return case / name / "preprocessor_config.json"


@pytest.mark.parametrize("case", ANYRES, ids=lambda case: case.name)
def test_anyres_views(case: Path) -> None:
    outputs, tensors = read(case / "outputs.json"), load_file(case / "outputs.safetensors")
    policy = AnyRes.parse({"pinpoints": outputs["pinpoints"]})
    stream = stream_of(tower(case))
    for entry in outputs["images"]:
        path = case / "inputs" / entry["file"]
        size = image_size(path)
        assert list(size[::-1]) == entry["size"]
        assert list(policy.resolution(size)[::-1]) == entry["best_resolution"]
        grid = policy.grid(size, stream)
        assert [grid.cols, grid.rows] == entry["grid_w_h"]
        assert grid.overview
        assert grid.num_views == entry["crops"]

        padded = path.with_name(f"{path.stem}_padded.png")
        canvas = policy.canvas(load_image(path), stream)
        assert canvas.tobytes() == load_image(padded).tobytes()

        found = tensor(path, policy, stream)
        check_sums(found, entry, "pixel_")
        if f"{path.stem}.pixel_values" in tensors:
            wanted = tensors[f"{path.stem}.pixel_values"]
            torch.testing.assert_close(found, wanted, atol=PIXEL, rtol=0)

        fast, _ = policy.views(load_pixels(path), stream_of(tower(case), mode="fast"))
        exact, _ = policy.views(load_image(path), stream)
        assert (exact.int() - fast.int()).abs().max() <= 1
    compared(case)


@pytest.mark.parametrize("case", ANYRES, ids=lambda case: case.name)
def test_anyres_table_of_real_resolutions(case: Path) -> None:
    outputs = read(case / "outputs.json")
    pinpoints = outputs["real_pinpoints"]
    side = math.gcd(*(number for pair in pinpoints for number in pair))
    policy, stream = AnyRes.parse({"pinpoints": pinpoints}), StreamSpec(size=side)
    for entry in outputs["real_table"]:
        size = (entry["size"][1], entry["size"][0])
        assert list(policy.resolution(size)[::-1]) == entry["best"]
        grid = policy.grid(size, stream)
        assert [grid.cols, grid.rows] == entry["grid"]
    compared(case)


@pytest.mark.parametrize("case", CHAT, ids=lambda case: case.name)
def test_sizes_of_the_chat_picture(case: Path) -> None:
    for entry in read(case / "process_image_sizes.json"):
        size = (entry["size"][1], entry["size"][0])
        assert list(chat_image_size(size, mode=entry["mode"])[::-1]) == entry["out"]
        if size[0] * size[1] < 500_000:
            image = to_pil(torch.zeros(3, *size, dtype=torch.uint8))
            assert list(size_of(chat_image(image, mode=entry["mode"]))[::-1]) == entry["out"]
    compared(case)
