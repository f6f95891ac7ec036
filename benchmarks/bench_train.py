"""Training a LLaVA-like model: our packed step against transformers' Trainer with padded batches.

Both sides start from one state dict and see the same samples in the same order, lengths as in
LLaVA's data (`peer.samples`), bf16 by autocast over fp32 weights, vision tower frozen.

dims S   forward + backward: `Trainer.training_step` against `Trainer.backward` of ours, its layers
         compiled one by one (`parallel.compile: true`); eager beside it without --quick
dims XS  the whole optimizer loop: `Trainer.train` (AdamW fused, clip 1.0) against `Trainer.fit`
loss     peak memory of the loss with ever more tokens that have no target

--device cuda --dims 7b: LLaVA-1.5-7B's shapes with random weights, see `train_gpu` (not run on a
GPU yet).
The losses of both sides must agree (2e-3), or the script fails before a ratio is printed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import common
import peer
import torch
from loss_memory import report_loss_memory
from train_sides import FitSide, Memo, StepSide, TrainSide, agree

from retinue.types import Example

TARGETS = {"s": 3.2, "xs": 2.4}
PEER = "transformers-Trainer"
TYPICAL, TYPICAL_QUICK = (8, 11), (3, 262)
"""(samples, seed) of batches near the mean of random ones of 8: 29 % padding, 13 % supervised."""


def forward_backward(
    batches: Sequence[list[Example]], *, rounds: int, eager: bool
) -> tuple[dict[str, common.Timing], dict[str, Any]]:
    """Dims S: the gradients of every batch, times of all batches together."""
    dims = peer.DIMS["s"]
    theirs = peer.make_peer(dims)
    ours = peer.twin_of(theirs, dims)
    memo = {PEER: Memo()}
    sides: dict[str, Callable[[], object]] = {
        PEER: StepSide(theirs, batches, dims=dims, model=ours, memo=memo[PEER])
    }
    for name in ("retinue", "retinue-compiled") if eager else ("retinue-compiled",):
        memo[name] = Memo()
        ours = ours if len(sides) == 1 else peer.twin_of(theirs, dims)
        side = FitSide(ours, batches, memo=memo[name], compiled=name != "retinue")
        sides[name] = side.gradients
    timings = common.alternate(sides, rounds=rounds)
    return timings, agree(memo, peer=PEER, what="dims S, forward + backward")


def whole_loop(
    steps: Sequence[list[Example]], *, rounds: int
) -> tuple[dict[str, common.Timing], dict[str, Any]]:
    """Dims XS: optimizer steps from the same weights, ours eager and with compiled layers."""
    dims = peer.DIMS["xs"]
    theirs = peer.make_peer(dims)
    memo = {name: Memo() for name in (PEER, "retinue", "retinue-compiled")}
    start = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours = [peer.twin_of(theirs, dims) for _ in range(2)]
    sides: dict[str, Callable[[], object]] = {
        PEER: TrainSide(theirs, steps, start=start, model=ours[0], memo=memo[PEER]),
        "retinue": FitSide(ours[0], steps, memo=memo["retinue"], compiled=False).updates,
        "retinue-compiled": FitSide(
            ours[1], steps, memo=memo["retinue-compiled"], compiled=True
        ).updates,
    }
    timings = common.alternate(sides, rounds=rounds)
    return timings, agree(memo, peer=PEER, what="dims XS, whole loop")


def show(title: str, timings: dict[str, common.Timing], details: dict[str, Any]) -> None:
    print(f"\n{title}, CPU time:")
    common.table(timings, peer=PEER)
    for name, row in details.items():
        losses = " ".join(f"{loss:.4f}" for loss in row["losses"])
        norms = " ".join(f"{norm:.4f}" for norm in row["gradient_norms"])
        print(f"{name}: losses {losses}; gradient norms {norms}")


def tokens(batches: Sequence[list[Example]]) -> dict[str, int]:
    """Counts of all batches together, printed."""
    rows = [peer.counts(batch) for batch in batches]
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    waste = 1 - total["real_tokens"] / total["padded_tokens"]
    print("; ".join(f"{value} {key.replace('_', ' ')}" for key, value in total.items()), end="")
    print(f"; {100 * waste:.0f} % of the padded tokens are padding")
    return total


def on_cpu(*, quick: bool) -> None:
    small, large = peer.DIMS["xs"], peer.DIMS["s"]
    size, seed = TYPICAL_QUICK if quick else TYPICAL
    batches = [peer.samples(size, large, seed=seed)]
    details: dict[str, Any] = {"targets": TARGETS, "precision": "bf16 autocast"}
    details["tokens"] = {"s": tokens(batches)}
    timings, details["s"] = forward_backward(batches, rounds=3, eager=not quick)
    show("dims S, forward + backward", timings, details["s"])
    ratios = {f"s {name}": timings[PEER].min_s / timing.min_s for name, timing in timings.items()}
    every = {f"s {name}": timing for name, timing in timings.items()}
    gc.collect()
    if not quick:
        steps = [peer.samples(4, small, seed=100 + number) for number in range(4)]
        details["tokens"]["xs"] = tokens(steps)
        timings, details["xs"] = whole_loop(steps, rounds=3)
        show(f"dims XS, {len(steps)} optimizer steps", timings, details["xs"])
        ratios |= {
            f"xs {name}": timings[PEER].min_s / timing.min_s for name, timing in timings.items()
        }
        every |= {f"xs {name}": timing for name, timing in timings.items()}
    details["loss_memory"] = report_loss_memory(torch.device("cpu"))
    details["ratios"] = {name: round(ratio, 4) for name, ratio in ratios.items()}
    for name, ratio in ratios.items():
        if PEER not in name:
            print(f"{name}: x{ratio:.2f} of target x{TARGETS[name.split()[0]]:g}")
    common.finish(
        "bench_train",
        ratio=ratios["s retinue-compiled"],
        target=TARGETS["s"],
        against=PEER,
        quick=quick,
        timings=every,
        details=details,
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dims", choices=["s", "7b"], default="s", help="7b wants an accelerator")
    args = parser.parse_args()
    if (args.device == "cuda") != (args.dims == "7b"):
        parser.error("--device cuda goes with --dims 7b, and the other way round")
    if args.device == "cuda":
        from train_gpu import on_gpu

        on_gpu(quick=args.quick)
    else:
        on_cpu(quick=args.quick)


if __name__ == "__main__":
    main()
