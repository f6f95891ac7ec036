"""Greedy decoding after one picture: our loop on the inference twin against transformers' generate.

Dims S, a context of 600 tokens (a picture of 576 and 24 of text), a forced number of new tokens,
bf16, batches of 1 and 8. What counts is the CPU time per new token after the first: pictures and
prompt are outside (their times are printed too). The ids of both sides must be equal in fp32, or
the script fails before any time is taken. Beside the twin, our loop on transformers' own layers,
which is what models without a twin get (not with --quick).

--quant KIND: batch 1 alone, with our twin on few-bit weights as a third side; what these lose is
printed as KL. The ratio of the last line is then that side's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import decode_quant
import peer
import torch
from torch import Tensor

from retinue.decode.loop import Runner, stream
from retinue.decode.sampling import SamplingParams
from retinue.model.lm.fused import Twin, inference_twin
from retinue.ops.collate import collate
from retinue.ops.malloc import tune_malloc
from retinue.types import Batch

DIMS = peer.DIMS["s"]
CONTEXT = 600
TARGETS = {1: 1.5, 8: 1.75}
PEER = "transformers-generate"


@dataclass(slots=True)
class Watch:
    """CPU seconds spent on tokens after the first, over all calls; fewest until the first."""

    begun: float = 0.0

    decoding: float = 0.0
    prompt: float = float("inf")
    stamps: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        """transformers hands the prompt over first, then every step's ids."""
        self.stamps.append(time.process_time())

    def end(self) -> None:
        first, last = self.stamps[1], self.stamps[-1]
        self.prompt = min(self.prompt, first - self.begun)
        self.decoding += last - first

    def begin(self) -> None:
        self.stamps.clear()
        self.begun = time.process_time()


class NoText:
    """Ids stay ids, as in generate."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return ""


def prompts(rows: int) -> Batch:
    """`rows` different prompts, each of CONTEXT tokens with one picture."""
    generator = torch.Generator().manual_seed(rows)
    words = CONTEXT - DIMS.image_tokens
    made = [peer.sample(str(row), words, DIMS, generator, with_image=True) for row in range(rows)]
    return collate(made, pad_side="left")


def peer_side(model: Any, ours: Any, batch: Batch, *, new: int, watch: Watch) -> Callable[[], Any]:
    assert batch.visual is not None
    inputs = {
        "input_ids": batch.tokens,
        "attention_mask": torch.ones_like(batch.tokens),
        "pixel_values": peer.pixels(batch, ours, dtype=next(model.parameters()).dtype),
    }
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def run() -> list[list[int]]:
        watch.begin()
        found = model.generate(**inputs, max_new_tokens=new, do_sample=False, streamer=watch)
        ids: list[list[int]] = found[:, batch.tokens.shape[1] :].tolist()
        return ids

    return run


def our_side(runner: Runner, batch: Batch, *, new: int, watch: Watch) -> Callable[[], Any]:
    params = SamplingParams(max_new_tokens=new, temperature=0.0, ignore_eos=True)
    rows = len(batch.tokens)

    def run() -> list[list[int]]:
        ids: list[list[int]] = [[] for _ in range(rows)]
        watch.begin()
        watch.put(batch.tokens)
        for delta in stream(runner, batch, params=params, decoder=NoText(), eos_ids=[]):
            ids[delta.row].append(delta.token)
            if delta.row == rows - 1:
                watch.put(batch.tokens)
        watch.end()
        return ids

    return run


def check_ids(models: tuple[Any, Any], *, rows: int, new: int) -> None:
    """Every side's ids in fp32, or exit code 1."""
    theirs, ours = models
    batch, twin = prompts(rows), inference_twin(ours)
    common.require(isinstance(twin, Twin), "our model has no inference twin")
    wanted = peer_side(theirs, ours, batch, new=new, watch=Watch())()
    for name, runner in {"twin": twin, "layers": ours}.items():
        found = our_side(runner, batch, new=new, watch=Watch())()
        common.require(found == wanted, f"fp32 ids of {name} at batch {rows}")
    print(f"fp32, batch {rows}: {new} ids of every row are equal")


def measure(
    models: tuple[Any, Any], *, rows: int, new: int, rounds: int, layers: bool
) -> tuple[dict[str, common.Timing], dict[str, Any]]:
    """Times per call of new - 1 tokens a row, and what to record beside them.

    layers: also our loop on transformers' layers.
    """
    theirs, ours = models
    batch, twin = prompts(rows), inference_twin(ours)
    watches = {PEER: Watch(), "retinue-twin": Watch(), "retinue-layers": Watch()}
    sides = {
        PEER: peer_side(theirs, ours, batch, new=new, watch=watches[PEER]),
        "retinue-twin": our_side(twin, batch, new=new, watch=watches["retinue-twin"]),
        "retinue-layers": our_side(ours, batch, new=new, watch=watches["retinue-layers"]),
    }
    if not layers:
        del sides["retinue-layers"]
    timings = common.alternate(
        sides, rounds=rounds, clock=lambda: sum(watch.decoding for watch in watches.values())
    )
    print(f"bf16, batch {rows}, context {CONTEXT}, {new} new tokens, CPU time after the first:")
    common.table(timings, peer=PEER)
    made = rows * (new - 1)
    details = {
        name: {
            "tokens_per_s": round(made / timing.min_s, 1),
            "ms_per_step": round(1e3 * timing.min_s / (new - 1), 3),
            "prompt_s": round(watches[name].prompt, 3),
        }
        for name, timing in timings.items()
    }
    for name, row in details.items():
        print(f"{name}: {row['tokens_per_s']} tokens/s, prompt and picture {row['prompt_s']} s")
    return timings, details


def measure_quant(models: tuple[Any, Any], kind: str, *, head: bool, quick: bool) -> None:
    """Times of generate and of our twin in bf16 and in few bits, and what the few bits lose."""
    theirs, ours = models
    new, batch = 64, prompts(1)
    small = decode_quant.few_bits(ours, kind, head=head)
    loss = decode_quant.divergence(ours, small, prompts(2))
    decode_quant.say(kind, small, loss)
    watches = {PEER: Watch(), "retinue-twin": Watch(), f"retinue-{kind}": Watch()}
    runners = {"retinue-twin": inference_twin(ours), f"retinue-{kind}": inference_twin(small)}
    common.require(all(isinstance(r, Twin) for r in runners.values()), "no inference twin")
    sides = {PEER: peer_side(theirs, ours, batch, new=new, watch=watches[PEER])}
    for name, runner in runners.items():
        sides[name] = our_side(runner, batch, new=new, watch=watches[name])
    timings = common.alternate(
        sides,
        rounds=5 if quick else 12,
        clock=lambda: sum(watch.decoding for watch in watches.values()),
    )
    print(f"bf16 and {kind}, batch 1, context {CONTEXT}, {new} new tokens, CPU time:")
    common.table(timings, peer=PEER)
    speeds = {name: round((new - 1) / timing.min_s, 1) for name, timing in timings.items()}
    prompt = {name: round(watch.prompt, 3) for name, watch in watches.items()}
    for name in sides:
        print(f"{name}: {speeds[name]} tokens/s, prompt and picture {prompt[name]} s")
    common.finish(
        "bench_decode",
        ratio=timings[PEER].min_s / timings[f"retinue-{kind}"].min_s,
        target=decode_quant.TARGETS.get(kind, 1.0),
        against=PEER,
        quick=quick,
        timings=timings,
        details={"quant": kind, "head": head, "tokens_per_s": speeds, "prompt_s": prompt, **loss},
        variant=f"quant_{kind}{'_head' if head else ''}",
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--quant", help="a kind of `retinue ls quants`")
    parser.add_argument("--quant-head", action="store_true", help="the output head too")
    args = parser.parse_args()
    tune_malloc()
    theirs = peer.make_peer(DIMS).eval()
    models = (theirs, peer.twin_of(theirs, DIMS).eval())
    check_ids(models, rows=1, new=16 if args.quick else 48)
    check_ids(models, rows=2 if args.quick else 8, new=8 if args.quick else 24)
    models = (models[0].to(torch.bfloat16), models[1].to(torch.bfloat16))
    if args.quant:
        measure_quant(models, args.quant, head=args.quant_head, quick=args.quick)
        return
    timings: dict[str, common.Timing] = {}
    details: dict[str, Any] = {"targets": {f"batch {n}": t for n, t in TARGETS.items()}}
    ratios = {}
    for rows in (8, 1):
        new = 24 if args.quick else 64
        rounds = (5 if rows == 1 else 3) if args.quick else (12 if rows == 1 else 6)
        found, details[f"batch {rows}"] = measure(
            models, rows=rows, new=new, rounds=rounds, layers=not args.quick
        )
        timings |= {f"{name}, batch {rows}": timing for name, timing in found.items()}
        ratios[rows] = found[PEER].min_s / found["retinue-twin"].min_s
        print(f"batch {rows}: x{ratios[rows]:.2f} of target x{TARGETS[rows]:g}")
    details["ratios"] = {f"batch {n}": round(ratio, 4) for n, ratio in ratios.items()}
    details |= {"context": CONTEXT, "dims": vars(DIMS), "dtype": "bfloat16"}
    common.finish(
        "bench_decode",
        ratio=ratios[1],
        target=TARGETS[1],
        against=PEER,
        quick=args.quick,
        timings=timings,
        details=details,
    )


if __name__ == "__main__":
    main()
