"""Gated cross-attention: media keys and values kept, and packed rows, against the original's way.

Six gated blocks (width 1024, 64 latents of width 1024 a picture, 8 heads of 64, feed-forward
halves included), nothing of the language model around them. --dtype bf16: weights in bfloat16.

decode   one word a row after a prompt with 1, 4 or 16 pictures, batch 1 and 8 (--quick: less)
  recompute   what the original does: every step projects the latents of all pictures to keys and
              values, attends to all of them and hides all but the last picture by a mask
  kept        keys and values from the cache, all pictures' still hidden by a mask
  last        ours: the cache holds what the next word sees, the last picture
training   forward and backward of 16 samples (--quick: 6) of 0 to 4 pictures; words follow the
           law of bench_train (lognormal, mean 200, sigma 0.75; --quick: mean 80)
  padded      rows as long as the longest, as many pictures as the most, dense masks
  packed      ours: one row, every run of words attends to its own picture

Outputs (and gradients in training) must agree, or the script fails before a ratio is printed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import common
import torch
from torch import Tensor
from torch.nn import functional as F

from retinue.model.fusions.gated import GatedBlock
from retinue.ops.cross import CrossPlan, Document, plan_runs, runs_of_document
from retinue.ops.malloc import tune_malloc
from retinue.types import Memory

WIDTH, LATENTS, HEADS, HEAD_WIDTH, BLOCKS = 1024, 64, 8, 64, 6
TARGETS = {(1, 4): 1.2, (1, 16): 1.6, (8, 4): 1.9}
TRAINING = 2.0
SIGMA = 0.75
PEER = "recompute"


def make_blocks(dtype: torch.dtype) -> list[GatedBlock]:
    """Blocks with half-open gates."""
    torch.manual_seed(0)
    blocks = []
    for number in range(BLOCKS):
        block = GatedBlock(WIDTH, WIDTH, number=number, heads=HEADS, head_width=HEAD_WIDTH, mult=4)
        with torch.no_grad():
            block.attn_gate.fill_(0.5)
            block.ff_gate.fill_(0.5)
        blocks.append(block.to(dtype))
    return blocks


def dense(block: GatedBlock, x_BTD: Tensor, kv: Tensor, seen_BTS: Tensor) -> Tensor:
    """The original's block: all keys of a row, a mask, zeros where nothing may be seen."""
    attn = block.attn
    q = attn.to_q(attn.norm(x_BTD)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    k, v = kv.unflatten(-1, (2, HEADS, -1)).transpose(1, 3).unbind(2)
    blind_BT1 = ~seen_BTS.any(-1, keepdim=True)
    mask = (seen_BTS | blind_BT1)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    out = out.masked_fill(blind_BT1, 0.0)
    x_BTD = x_BTD + block.attn_gate.tanh() * attn.to_out(out)
    return x_BTD + block.ff_gate.tanh() * block.ff(x_BTD)


def through(
    step: Callable[[GatedBlock, Tensor], Tensor], blocks: Sequence[GatedBlock], x: Tensor
) -> Tensor:
    for block in blocks:
        x = step(block, x)
    return x


# ---------------------------------------------------------------- decoding


def decode_sides(
    blocks: list[GatedBlock], *, rows: int, pictures: int
) -> dict[str, Callable[[], Tensor]]:
    """One step of every side after a prompt of one word and all pictures."""
    dtype = blocks[0].attn_gate.dtype
    media = torch.randn(rows, pictures * LATENTS, WIDTH, dtype=dtype)
    x = torch.randn(rows, 1, WIDTH, dtype=dtype)
    seen = torch.zeros(rows, 1, pictures * LATENTS, dtype=torch.bool)
    seen[..., -LATENTS:] = True
    kept = [block.attn.to_kv(media) for block in blocks]
    first = torch.arange(rows)[:, None] * pictures * LATENTS
    last_BL = first + torch.arange((pictures - 1) * LATENTS, pictures * LATENTS)
    held: dict[int, Any] = {}
    prefill = CrossPlan(keep_BL=last_BL, keep_B=torch.full((rows,), LATENTS))
    for block in blocks:
        block.attn(
            x, Memory(x_SD=media.flatten(0, 1), plan=prefill, held=held), number=block.number
        )
    memory = Memory(x_SD=None, plan=CrossPlan(rows=True), held=held)
    return {
        PEER: lambda: through(lambda b, h: dense(b, h, b.attn.to_kv(media), seen), blocks, x),
        "kept": lambda: through(lambda b, h: dense(b, h, kept[b.number], seen), blocks, x),
        "last": lambda: through(lambda b, h: b(h, memory), blocks, x),
    }


@torch.inference_mode()
def decode(
    blocks: list[GatedBlock], *, rows: int, pictures: int, calls: int
) -> dict[str, common.Timing]:
    """Times of one step; leaves where outputs differ."""
    sides = decode_sides(blocks, rows=rows, pictures=pictures)
    outputs = {name: run().float() for name, run in sides.items()}
    limit = 1e-4 if blocks[0].attn_gate.dtype == torch.float32 else 0.15
    for name, out in outputs.items():
        far = float((out - outputs[PEER]).abs().max())
        common.require(far <= limit, f"{name} is {far:.2e} away from {PEER}")
    print(f"\ndecode, batch {rows}, {pictures} pictures, CPU time of a step:")
    timings = common.alternate(sides, rounds=5, calls=calls, warmup=2)
    common.table(timings, peer=PEER)
    return timings


# ---------------------------------------------------------------- training


class Samples:
    """Words and pictures of some samples, as padded rows and as one packed row."""

    def __init__(self, count: int, mean: int, dtype: torch.dtype) -> None:
        stream = torch.Generator().manual_seed(1)
        rng = random.Random(1)
        drawn = [rng.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA) for _ in range(count)]
        self.lengths = [min(max(int(length), 16), 1400) for length in drawn]
        self.pictures = torch.randint(0, 5, (count,), generator=stream).tolist()
        self.words = [torch.randn(n, WIDTH, generator=stream).to(dtype) for n in self.lengths]
        self.media = [
            torch.randn(m, LATENTS, WIDTH, generator=stream).to(dtype) for m in self.pictures
        ]
        self.marks = [
            sorted(torch.randperm(n // 2, generator=stream)[:m].tolist())
            for n, m in zip(self.lengths, self.pictures, strict=True)
        ]

    def padded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of words, of media, what each word sees, which words are real."""
        B, T, M = len(self.lengths), max(self.lengths), max(self.pictures)
        x = self.words[0].new_zeros(B, T, WIDTH)
        media = x.new_zeros(B, M, LATENTS, WIDTH)
        seen = torch.zeros(B, T, M, LATENTS, dtype=torch.bool)
        real = torch.zeros(B, T, dtype=torch.bool)
        for row, (words, own, marks) in enumerate(
            zip(self.words, self.media, self.marks, strict=True)
        ):
            x[row, : len(words)] = words
            media[row, : len(own)] = own
            real[row, : len(words)] = True
            for number, mark in enumerate(marks):
                seen[row, mark:, :number] = False
                seen[row, mark : len(words), number] = True
        return x, media.flatten(1, 2), seen.flatten(2), real

    def packed(self) -> tuple[Tensor, Memory]:
        """One row of words, and who sees what."""
        runs, at, latents = [], 0, 0
        for length, marks in zip(self.lengths, self.marks, strict=True):
            bounds = [latents + number * LATENTS for number in range(len(marks) + 1)]
            document = Document(
                row=0,
                start=at,
                stop=at + length,
                marks=[at + mark for mark in marks],
                bounds=bounds,
            )
            runs += runs_of_document(
                document, sees="immediate", order="picture_first", unseen="none", width=0
            )
            at, latents = at + length, bounds[-1]
        x = torch.cat(self.words)[None]
        plan = plan_runs(runs, device=x.device)
        return x, Memory(x_SD=torch.cat(self.media).flatten(0, 1), plan=plan)


def train(blocks: list[GatedBlock], *, count: int, mean: int) -> dict[str, common.Timing]:
    """Times of forward and backward; leaves where losses or gradients differ."""
    samples = Samples(count, mean, blocks[0].attn_gate.dtype)
    x_pad, media, seen, real = samples.padded()
    x_one, memory = samples.packed()
    seen_grads: dict[str, tuple[float, Tensor]] = {}

    def finish(name: str, out_ND: Tensor) -> None:
        loss = out_ND.float().square().mean()
        loss.backward()
        grad = blocks[0].attn.to_kv.weight.grad
        assert grad is not None
        seen_grads[name] = float(loss.detach()), grad.float().clone()

    def clear() -> None:
        for block in blocks:
            block.zero_grad(set_to_none=True)

    def padded() -> None:
        clear()
        out = through(lambda b, h: dense(b, h, b.attn.to_kv(media), seen), blocks, x_pad)
        finish("padded", out[real])

    def packed() -> None:
        clear()
        finish("packed", through(lambda b, h: b(h, memory), blocks, x_one)[0])

    sides = {"padded": padded, "packed": packed}
    timings = common.alternate(sides, rounds=3)
    (loss_a, grad_a), (loss_b, grad_b) = seen_grads["padded"], seen_grads["packed"]
    limit = 1e-4 if blocks[0].attn_gate.dtype == torch.float32 else 5e-2
    far = float((grad_a - grad_b).norm() / grad_a.norm())
    common.require(abs(loss_a - loss_b) <= limit * loss_a, f"losses {loss_a} and {loss_b}")
    common.require(far <= limit, f"gradients of keys and values, {far:.2e} apart")
    print(f"\ntraining, {count} samples, {sum(samples.lengths)} words in rows of {x_pad.shape[1]}:")
    common.table(timings, peer="padded")
    return timings


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    tune_malloc()
    blocks = make_blocks(torch.float32 if options.dtype == "fp32" else torch.bfloat16)
    shapes = (
        [(1, 4), (1, 16), (8, 4)] if options.quick else [(1, 1), (1, 4), (1, 16), (8, 1), (8, 4)]
    )
    timings: dict[str, common.Timing] = {}
    ratios: dict[str, dict[str, float]] = {}
    for rows, pictures in shapes:
        found = decode(blocks, rows=rows, pictures=pictures, calls=3 if options.quick else 10)
        name = f"batch{rows}-pictures{pictures}"
        timings |= {f"{name}-{side}": timing for side, timing in found.items()}
        ratios[name] = {
            side: round(found[PEER].min_s / found[side].min_s, 4) for side in ("kept", "last")
        }
        target = TARGETS.get((rows, pictures))
        print(f"x{ratios[name]['last']:.2f}" + (f" (target x{target})" if target else ""))
    count, mean = (6, 80) if options.quick else (16, 200)
    found = train(blocks, count=count, mean=mean)
    timings |= found
    gain = found["padded"].min_s / found["packed"].min_s
    ratios["training"] = {"packed": round(gain, 4)}
    print(f"x{gain:.2f} samples/s (target x{TRAINING})")
    common.finish(
        "bench_xattn",
        ratio=ratios["batch1-pictures4"]["last"],
        target=TARGETS[1, 4],
        against=PEER,
        quick=options.quick,
        timings=timings,
        details={"ratios": ratios, "dtype": options.dtype, "blocks": BLOCKS, "latents": LATENTS},
        variant="" if options.dtype == "fp32" else options.dtype,
    )


if __name__ == "__main__":
    main()
