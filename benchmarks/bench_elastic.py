"""One training step at five scales: our elastic objective against five separate forwards.

Dims XS of `peer` with pictures of 336 px, two samples (--quick: one) of one picture with 576 visual
tokens and 200 text tokens after it, 90 of them supervised; before it 35 text tokens (short) or 300
(long). bf16 by autocast over fp32 weights, the tower frozen, forward and backward, no optimizer.
--dims s: language model and tower of 12 layers; our layers are compiled one by one, as
`parallel.compile: true` does (--no-compile: eager). --quick measures the short prefix only.

five-forwards  vision tower, projector, language model and full logits once per scale, five graphs
               alive until one backward: what M3's code does, on transformers' modules
packed         all scales in one row, the text before the picture shared where it is long
accumulated    one scale after the other, then once back through the projector
single         our step at 576 tokens, no smaller scale

The mean losses must agree (2e-3), or the script fails before a ratio is printed. Peak memory counts
tensors made during the step.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import common
import peer
import torch
from loss_memory import Peak
from torch import Tensor
from torch.nn import functional as F
from train_sides import TRAINABLE, Given, Memo, agree, gradient_norm
from transformers import LlavaForConditionalGeneration

from retinue.model.freeze import apply_rules
from retinue.model.nest import make_elastic
from retinue.model.retinue import Retinue
from retinue.ops.malloc import tune_malloc
from retinue.parallel.spec import ParallelSpec
from retinue.train.prepare import prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer
from retinue.types import IGNORE, Batch, Example, Span

SCALES = [1, 9, 36, 144, 576]
PREFIXES = {"short": 35, "long": 300}
AFTER = 200
PEER = "five-forwards"
CHEAPER = {"short": 2.2, "long": 2.7}
"""Times cheaper than five forwards."""
DEARER = {"short": 2.5, "long": 2.8}
"""At most so many times the cost of the single scale."""


def samples(number: int, prefix: int, dims: peer.Dims) -> list[Example]:
    """Samples of one length: prefix, picture, text."""
    generator = torch.Generator().manual_seed(prefix)
    made = []
    for place in range(number):
        one = peer.sample(str(place), prefix + AFTER, dims, generator, with_image=True)
        text = [token for token in one.tokens if token != dims.image_id]
        run = [dims.image_id] * dims.image_tokens
        tokens = [*text[:prefix], *run, *text[prefix:]]
        trained = int(0.45 * AFTER)
        labels = [IGNORE] * (len(tokens) - trained) + tokens[-trained:]
        span = Span(start=prefix, length=len(run), item=0)
        made.append(replace(one, tokens=tokens, labels=labels, spans=[span]))
    return made


class FiveForwards:
    """The whole model once per scale; losses of all scales are averaged and go back together."""

    def __init__(
        self, theirs: LlavaForConditionalGeneration, batch: Batch, pixels: Tensor, *, prefix: int
    ) -> None:
        self.theirs, self.pixels, self.prefix = theirs.train(), pixels, prefix
        self.memo = Memo()
        rows = len(batch.ids)
        tokens = batch.tokens[0].unflatten(0, (rows, -1))
        run = tokens.shape[1] - prefix - AFTER
        self.before, self.after = tokens[:, :prefix], tokens[:, prefix + run :]
        assert batch.labels is not None
        labels = batch.labels[0].unflatten(0, (rows, -1))
        self.labels = labels[:, prefix + run :]

    def __call__(self) -> None:
        self.theirs.zero_grad(set_to_none=True)
        total = torch.zeros(())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for scale in SCALES:
                total = total + self.loss(scale) / len(SCALES)
        total.backward()
        self.memo.losses[:] = [float(total.detach())]
        self.memo.norms[:] = [gradient_norm(self.theirs)]

    def loss(self, scale: int) -> Tensor:
        theirs = self.theirs.model
        with torch.no_grad():
            seen = theirs.vision_tower(self.pixels, output_hidden_states=True).hidden_states[-2]
        x_NLD = theirs.multi_modal_projector(seen[:, 1:])
        side = int(x_NLD.shape[1] ** 0.5)
        block = int((x_NLD.shape[1] / scale) ** 0.5)
        x_NDRC = x_NLD.transpose(1, 2).unflatten(2, (side, side))
        words = F.avg_pool2d(x_NDRC.float(), block).flatten(2).transpose(1, 2)
        embed = theirs.language_model.embed_tokens
        x_BTD = torch.cat([embed(self.before), words, embed(self.after)], 1)
        h_BTD = theirs.language_model(inputs_embeds=x_BTD, use_cache=False).last_hidden_state
        logits = self.theirs.lm_head(h_BTD).float()
        kept = logits[:, -AFTER:].flatten(0, 1)
        return F.cross_entropy(kept, self.labels.flatten(), ignore_index=IGNORE)


class Ours:
    """Forward and backward of our trainer with an objective."""

    def __init__(
        self, model: Retinue, examples: Sequence[Example], *, objective: dict[str, Any]
    ) -> None:
        self.model, self.memo = model, Memo()
        stage = StageSpec.parse(
            {
                "name": "elastic",
                "trainable": TRAINABLE,
                "steps": 1,
                "global_batch": len(examples),
                "optim": {"lr": 1e-4},
                "objective": objective,
            }
        )
        table = apply_rules(model, stage.trainable, lr=1e-4)
        prepare(model, compute=ParallelSpec())
        self.trainer = Trainer(
            model, stage=stage, table=table, data=Given([examples]), total=1, precision="bf16"
        )

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        ((_, (batch,)),) = self.trainer.data.steps()
        assert batch.supervised is not None
        loss = self.trainer.backward(
            batch, divisor=len(batch.supervised), pictures=True, metrics={}
        )
        self.memo.losses[:] = [float(loss)]
        self.memo.norms[:] = [gradient_norm(self.model)]


def peak_mib(run: Any) -> float:
    """Most MiB of tensors that a step holds at once, gradients included."""
    gc.collect()
    with Peak() as peak:
        run()
    return round(peak.peak / 2**20, 1)


def measure(
    name: str, dims: peer.Dims, *, number: int, compiled: bool
) -> tuple[dict[str, common.Timing], dict[str, Any]]:
    """Times and facts of one length of prefix; leaves where losses differ."""
    theirs = peer.make_peer(dims)
    model = peer.twin_of(theirs, dims)
    examples = samples(number, PREFIXES[name], dims)
    batch = peer.packed(examples)
    pixels = peer.pixels(batch, model, dtype=torch.float32)
    make_elastic(model, scales=SCALES)
    sides: dict[str, Any] = {
        PEER: FiveForwards(theirs, batch, pixels, prefix=PREFIXES[name]),
        "packed": Ours(model, examples, objective={"kind": "elastic"}),
        "accumulated": Ours(model, examples, objective={"kind": "elastic", "form": "accumulated"}),
        "single": Ours(model, examples, objective={"kind": "sft"}),
    }
    peaks = {key: peak_mib(side) for key, side in sides.items()}  # before anything is compiled
    if compiled:
        for layer in model.lm.layers:
            layer.compile(dynamic=True)
    timings = common.alternate(
        sides, rounds=3, warmup=int(compiled)
    )  # the peaks warmed eager sides
    memo = {key: side.memo for key, side in sides.items() if key != "single"}
    details: dict[str, Any] = agree(memo, peer=PEER, what=f"{name} prefix")
    details["peak_mib"] = peaks
    return timings, details


def show(name: str, timings: dict[str, common.Timing], details: dict[str, Any]) -> dict[str, float]:
    """Print one table; returns its two ratios."""
    print(f"\n{name} prefix ({PREFIXES[name]} tokens), CPU time of forward and backward:")
    common.table(timings, peer=PEER)
    for side in (PEER, "packed", "accumulated"):
        print(f"{side}: loss {details[side]['losses'][0]:.5f}", end="; ")
        print(f"gradient norm {details[side]['gradient_norms'][0]:.4f}")
    print("peak MiB: " + ", ".join(f"{side} {mib}" for side, mib in details["peak_mib"].items()))
    ratios = {
        "cheaper": timings[PEER].min_s / timings["packed"].min_s,
        "dearer": timings["packed"].min_s / timings["single"].min_s,
    }
    print(
        f"x{ratios['cheaper']:.2f} cheaper than five forwards (target x{CHEAPER[name]}), "
        f"x{ratios['dearer']:.2f} the cost of one scale (target <= x{DEARER[name]})"
    )
    return {key: round(value, 4) for key, value in ratios.items()}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--dims", choices=["xs", "s"], default="xs")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="our layers compiled one by one",
    )
    args = parser.parse_args()
    tune_malloc()
    dims = replace(peer.DIMS[args.dims], side=336)
    every: dict[str, common.Timing] = {}
    details: dict[str, Any] = {
        "precision": "bf16 autocast",
        "dims": vars(dims),
        "compiled": args.compile,
        "scales": SCALES,
        "targets": {"cheaper": CHEAPER, "dearer": DEARER},
        "ratios": {},
    }
    for name in list(PREFIXES)[:1] if args.quick else PREFIXES:
        timings, details[name] = measure(
            name, dims, number=1 if args.quick else 2, compiled=args.compile
        )
        details["ratios"][name] = show(name, timings, details[name])
        every |= {f"{name} {side}": timing for side, timing in timings.items()}
    common.finish(
        "bench_elastic",
        ratio=details["ratios"]["short"]["cheaper"],
        target=CHEAPER["short"],
        against=PEER,
        quick=args.quick,
        timings=every,
        details=details,
    )


if __name__ == "__main__":
    main()
