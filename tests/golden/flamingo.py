"""What the tests of Instruct-Flamingo share: a case's model, and its rows as our batch."""

import json
from dataclasses import replace

import torch
from cases import cases
from safetensors.torch import load_file

from retinue.hub.flamingo import open_flamingo
from retinue.hub.load import load_with_report, make_processor
from retinue.hub.stream import fill, skeleton
from retinue.types import IGNORE, Batch, Grid, Visual

SYSTEM = "instruct-flamingo"
TOLERANCE = 2e-5  # stated by the cases: twice this for logits of a whole model in another order


def recordings(pattern, having):
    """(case folder, stem, facts) of every JSON that holds the key `having`."""
    found = []
    for case in cases(SYSTEM, "*"):
        for file in sorted(case.glob(pattern)):
            facts = json.loads(file.read_text("utf-8"))
            if isinstance(facts, dict) and having in facts:
                found.append((case, file.name.removesuffix(".json"), facts))
    return found


def ids_of(found):
    return [f"{case.name}-{name}" for case, name, _ in found]


def model_case(case, facts):
    """The folder whose weights a recording used: its own, or the one that it names."""
    return (
        (case / facts["uses_checkpoint"].split()[0]).resolve()
        if "uses_checkpoint" in facts
        else case
    )


def tower(folder):
    return next((folder / "vision").glob("*.pt"))


def load(folder, *more):
    """Model and processor of a model case, more checkpoint files laid over the released one."""
    path = ",".join(str(file) for file in [folder / "flamingo.pt", *more])
    found = load_with_report(
        path, base=folder / "lm", encoders={"clip": tower(folder)}, dtype=torch.float32
    )
    assert found.coverage.complete, str(found.coverage)
    return found.model, found.processor


def load_version(folder, version):
    """As `load`, the version of OpenFlamingo said instead of found out."""
    opened = open_flamingo(
        folder / "flamingo.pt",
        base=folder / "lm",
        encoders={"clip": tower(folder)},
        version=version,
    )
    model = skeleton(opened.config)
    fill(model, opened.sources, dtype=torch.float32, device="cpu", where="test")
    return model.eval(), make_processor(opened)


def pictures(vision_x, ids_BT, image_id):
    """Visual of recorded rows: the first media of a row stand at its marks."""
    pixels, spans = [], []
    for row, ids in enumerate(ids_BT):
        for number, column in enumerate((ids == image_id).nonzero().flatten().tolist()):
            pixels.append(vision_x[row, number, 0])
            spans.append([row, column, 1])
    if not pixels:
        return None
    spans = torch.tensor(spans)
    size = tuple(pixels[0].shape[-2:])
    return Visual(
        pixels={"rgb": torch.stack(pixels)},
        grids=[Grid(size=size)] * len(pixels),
        budgets=[None] * len(pixels),
        spans=spans,
        index=spans[:, 0] * ids_BT.shape[1] + spans[:, 1],
    )


def batch(ids_BT, mask_BT, *, visual=None, labels=None):
    """Padded rows as recorded; labels are shifted here."""
    segments = (mask_BT > 0).long()
    shifted = None
    if labels is not None:
        shifted = torch.full_like(labels, IGNORE)
        shifted[:, :-1] = labels[:, 1:]
    return Batch(
        ids=[f"row {row}" for row in range(len(ids_BT))],
        tokens=ids_BT,
        positions=(segments.cumsum(1) - 1).clamp_min(0),
        segments=segments,
        labels=shifted,
        supervised=None if labels is None else (shifted.flatten() != IGNORE).nonzero().flatten(),
        visual=visual,
    )


def without_labels(one):
    return replace(one, labels=None, supervised=None)


def tensors(case, name):
    return load_file(case / f"{name}.safetensors")
