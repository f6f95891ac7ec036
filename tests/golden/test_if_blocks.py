"""Instruct-Flamingo's resampler and gated blocks by themselves."""

import json

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file

from retinue.model.connectors.perceiver import Perceiver, PerceiverSpec
from retinue.model.encoders.base import EncoderShape
from retinue.model.fusions.gated import GatedBlock
from retinue.ops.cross import Document, plan_runs, runs_of_document
from retinue.types import Memory

SYSTEM = "instruct-flamingo"
TOLERANCE = 2e-5  # stated by the cases; 1e-4 for the resampler


def parts(having):
    """(case folder, name) of every recording of one kind, found by what its facts hold."""
    for case in cases(SYSTEM, "*"):
        for file in sorted(case.glob("*.io.safetensors")):
            name = file.name.removesuffix(".io.safetensors")
            facts = json.loads((case / f"{name}.json").read_text("utf-8"))
            if having in facts:
                yield pytest.param(case, name, facts, id=f"{case.name}-{name}")


def weights(case, name):
    found = load_file(case / f"{name}.weights.safetensors")
    return {key: value.float() for key, value in found.items()}


def settings(kwargs):
    """The original's arguments in our words; what it leaves out has its defaults."""
    words = {
        "depth": "depth",
        "dim_head": "head_width",
        "heads": "heads",
        "num_latents": "latents",
        "max_num_media": "media",
        "max_num_frames": "frames",
        "ff_mult": "ff_mult",
    }
    return {ours: kwargs[theirs] for theirs, ours in words.items() if theirs in kwargs}


@pytest.mark.parametrize(("case", "name", "facts"), list(parts("x_shape")))
def test_perceiver(case, name, facts):
    kwargs = facts["kwargs"]
    shape = EncoderShape(
        width=kwargs["dim"],
        grid=(1, 1),
        num_layers=1,
        prefix=0,
        size=(1, 1),
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    spec = PerceiverSpec.parse(
        {"kind": "perceiver", "of": {"kind": "take", "encoder": "clip"}, **settings(kwargs)},
        where="test",
    )
    module = Perceiver(spec, {"clip": shape}, 4)
    module.load_state_dict(weights(case, name), strict=True)
    recorded = load_file(case / f"{name}.io.safetensors")
    with torch.no_grad():
        out = module.resample(recorded["x"])
    assert list(out.shape) == facts["out_shape"]
    torch.testing.assert_close(out, recorded["out"], atol=1e-4, rtol=0)
    compared(case)


def block_of(case, name, facts):
    block = GatedBlock(
        facts["dim"],
        facts["dim_visual"],
        number=0,
        heads=facts["heads"],
        head_width=facts["dim_head"],
        mult=facts["ff_mult"],
    )
    block.load_state_dict(weights(case, name), strict=True)
    return block


def run(block, x_BTD, media, places, *, sees, order):
    """The block on rows whose marks stand at `places`; all media of a row are there."""
    B, T = x_BTD.shape[:2]
    M, L = media.shape[1:3]
    runs = []
    for row in range(B):
        bounds = [(row * M + number) * L for number in range(M + 1)]
        document = Document(
            row=row,
            start=0,
            stop=T,
            marks=places[row].nonzero().flatten().tolist(),
            bounds=bounds,
        )
        runs += runs_of_document(document, sees=sees, order=order, unseen="even", width=T)
    return apply(block, x_BTD, media, runs)


def apply(block, x_BTD, media, runs):
    memory = Memory(x_SD=media.flatten(0, 2), plan=plan_runs(runs, device=x_BTD.device))
    with torch.no_grad():
        return block(x_BTD, memory)


@pytest.mark.parametrize(("case", "name", "facts"), list(parts("media_locations")))
def test_gated_block(case, name, facts):
    block = block_of(case, name, facts)
    io = load_file(case / f"{name}.io.safetensors")
    x, media, places = io.pop("x"), io.pop("media"), io.pop("media_locations")
    step = io.pop("x_step", None)
    sees = "immediate" if facts["only_attend_immediate_media"] else "previous"
    (B, T), (M, L) = x.shape[:2], media.shape[1:3]
    for output, recorded in io.items():
        if output == "out_step_cached":
            runs = cached(places, M=M, L=L, T=step.shape[1], sees=sees)
            out = apply(block, step, media, runs)
        elif output == "out_no_locations":  # recorded of the attention alone, before its gate
            runs = [
                (row * T, (row + 1) * T, row * M * L, (row + 1) * M * L, False) for row in range(B)
            ]
            plan = plan_runs(runs, device=x.device)
            with torch.no_grad():
                out = block.attn(x, Memory(x_SD=media.flatten(0, 2), plan=plan), number=0)
        else:
            after = output == "out_attend_previous_false"
            order = "text_first" if after else "picture_first"
            out = run(block, x, media, places, sees=sees, order=order)
        torch.testing.assert_close(out, recorded, atol=TOLERANCE, rtol=0, msg=output)
    compared(case)


def cached(places, *, M, L, T, sees):
    """After a prompt every token is at the time of its last mark."""
    runs = []
    for row, count in enumerate(places.sum(1).tolist()):
        document = Document(
            row=row,
            start=0,
            stop=T,
            marks=[0] * count,
            bounds=[(row * M + number) * L for number in range(M + 1)],
        )
        runs += runs_of_document(document, sees=sees, order="picture_first", unseen="even", width=T)
    return runs
