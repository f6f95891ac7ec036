"""JPEG file of about one megapixel -> normalised float32 tensor for a 336 px CLIP tower.

The peer is transformers: its `load_image` (upright, RGB) and CLIPImageProcessor (Pillow backend;
the other needs torchvision). Every side reads, decodes, turns upright, resizes, crops and
normalises the same files. A second peer leaves out the turning and the conversion to RGB
(`Image.open` and the processor): less work than ours, printed and recorded beside the first. Exact
mode must have the peer's very bits, fast mode may be one grey level away: the script fails
otherwise.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.image_utils import load_image as transformers_load
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from retinue.media.image import Decoder, image_size, load_image, load_pixels
from retinue.media.views import StreamSpec
from retinue.media.whole import Single
from retinue.ops.pixels import normalize

SIDE = 336
QUALITY = 85
TARGETS = {"fast": 2.5, "fast+simplejpeg": 3.3}
PEER = "transformers-load_image+CLIPImageProcessor"
BARE = "Image.open+CLIPImageProcessor"


def photos() -> list[bytes]:
    """JPEGs of 1280 x 854 and 854 x 1280, quality 85: mosaics of scikit-learn's two photographs."""
    one, two = load_sample_images().images
    mosaic = np.vstack([np.hstack([one, two]), np.hstack([two, one])])
    found = []
    for array in (mosaic, np.rot90(mosaic)):
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(array)).save(out, "JPEG", quality=QUALITY)
        found.append(out.getvalue())
    return found


def transformers_side(
    files: list[Path], *, load: Callable[[str], Image.Image]
) -> Callable[[], list[torch.Tensor]]:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )

    def run() -> list[torch.Tensor]:
        return [processor(load(str(path)), return_tensors="pt")["pixel_values"] for path in files]

    return run


def exact_side(files: list[Path]) -> Callable[[], list[torch.Tensor]]:
    stream, policy = StreamSpec(size=SIDE), Single()

    def run() -> list[torch.Tensor]:
        return [finished(policy.views(load_image(path), stream)[0], stream) for path in files]

    return run


def fast_side(files: list[Path], *, decoder: Decoder) -> Callable[[], list[torch.Tensor]]:
    stream, policy = StreamSpec(size=SIDE, mode="fast"), Single()

    def run() -> list[torch.Tensor]:
        return [
            finished(policy.views(load_pixels(path, decoder=decoder), stream)[0], stream)
            for path in files
        ]

    return run


def finished(pixels: torch.Tensor, stream: StreamSpec) -> torch.Tensor:
    return normalize(
        pixels, mean=stream.mean, std=stream.std, dtype=torch.float32, rescale=stream.rescale
    )


def levels(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Grey levels 0..255 of normalised tensors."""
    stream = StreamSpec(size=SIDE)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (stream.mean, stream.std))
    return [((x * std + mean) * 255).round() for x in tensors]


def main() -> None:
    args = common.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, data in enumerate(photos()):
            files.append(Path(folder) / f"{number}.jpg")
            files[-1].write_bytes(data)
        compare(files, quick=args.quick)


def compare(files: list[Path], *, quick: bool) -> None:
    mean_bytes = sum(path.stat().st_size for path in files) // len(files)
    sides = {
        PEER: transformers_side(files, load=transformers_load),
        BARE: transformers_side(files, load=Image.open),
        "exact": exact_side(files),
        "fast": fast_side(files, decoder="pil"),
    }
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        print("simplejpeg is not installed: its side is left out", file=sys.stderr)
    else:
        sides["fast+simplejpeg"] = fast_side(files, decoder="simplejpeg")

    wanted, found = sides[PEER](), {name: run() for name, run in sides.items()}
    for ours, theirs in zip(found["exact"], wanted, strict=True):
        common.require(torch.equal(ours, theirs), "exact mode has not the peer's bits")
    off = {}
    for name in (name for name in sides if name.startswith("fast")):
        pairs = zip(levels(found[name]), levels(wanted), strict=True)
        off[name] = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
        common.require(off[name] <= 1, f"{name} is {off[name]} grey levels away")

    timings = common.alternate(sides, rounds=8 if quick else 30, calls=3, warmup=2)
    print(f"{len(files)} JPEGs, {mean_bytes} bytes each, CPU time of all:")
    common.table(timings, peer=PEER)
    ratios = {name: timings[PEER].min_s / timings[name].min_s for name in sides}
    for name, target in TARGETS.items():
        if name in ratios:
            bare = timings[BARE].min_s / timings[name].min_s
            print(
                f"{name}: x{ratios[name]:.2f} of target x{target:g} (x{bare:.2f} to {BARE}), "
                f"{off[name]:g} grey level off"
            )
    common.finish(
        "bench_images",
        ratio=ratios["fast"],
        target=TARGETS["fast"],
        against=PEER,
        quick=quick,
        timings=timings,
        details={
            "ratios": {name: round(ratio, 4) for name, ratio in ratios.items()},
            "ratios_to_bare_peer": {
                name: round(timings[BARE].min_s / timings[name].min_s, 4) for name in sides
            },
            "targets": TARGETS,
            "grey_levels_off": off,
            "exact_is_bit_identical": True,
            "files_height_width": [image_size(path) for path in files],
            "jpeg_quality": QUALITY,
            "mean_bytes": mean_bytes,
            "side": SIDE,
        },
    )


if __name__ == "__main__":
    main()
