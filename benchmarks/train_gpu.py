"""bench_train --device cuda --dims 7b: LLaVA-1.5-7B's shapes, random weights, LoRA and full.

Our packed step beside the padded step of transformers, same weights (shared, not copied), same
samples, same optimizer (8-bit AdamW of bitsandbytes where it is installed, else fused AdamW).
Tokens/s count real tokens. MFU is the arithmetic of the real tokens over the device's dense bf16
peak: 2 FLOP per weight and token forward, 2 for the gradient of what it reads, 2 for the weight's
own where it trains; attention's products are left out.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import common
import peer
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from retinue.model.freeze import apply_rules
from retinue.ops.attention import attend, plan_documents
from retinue.ops.backend import Form
from retinue.ops.cross_entropy import linear_cross_entropy_sum
from retinue.train.spec import StageSpec
from retinue.types import Example

PEER = "transformers-padded"
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
RATE, RANK = 2e-5, 128
BF16_LOSS = 2e-2  # one loss in bf16 after 32 layers on other kernels; the operations have 2x rules
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def within_twice(what: str, *, exact: Tensor, plain: Tensor, fast: Tensor) -> None:
    """Exit code 1 where the fast form errs more than twice as much as the plain one in bf16."""
    allowed = 2 * float((plain.float() - exact).abs().max()) + 1e-5
    found = float((fast.float() - exact).abs().max())
    print(f"{what}: error {found:.3g}, allowed {allowed:.3g}")
    common.require(found <= allowed, what)


def check_operations(device: torch.device) -> None:
    """Packed attention at 7B's heads and the loss at its vocabulary, gradients too."""
    torch.manual_seed(0)
    lengths = [700, 380, 640]
    segments = torch.repeat_interleave(torch.arange(1, 4), torch.tensor(lengths))[None].to(device)
    plan = plan_documents(segments)
    heads = [torch.randn(1, 32, sum(lengths), 128, device=device).bfloat16() for _ in range(3)]
    grad = torch.randn(1, sum(lengths), 32, 128, device=device).bfloat16()

    def attention(dtype: torch.dtype, form: Form) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in heads]
        out = attend(*leaves, plan=plan, backend=form)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]

    hidden = torch.randn(512, 4096, device=device).bfloat16()
    weight = (0.02 * torch.randn(32064, 4096, device=device)).bfloat16()
    targets = torch.randint(32064, (512,), device=device)

    def loss(dtype: torch.dtype, form: Form) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        value, _ = linear_cross_entropy_sum(*leaves, targets, backend=form)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    for name, run, parts in (
        ("attention", attention, ("output", "dq", "dk", "dv")),
        ("loss", loss, ("sum", "d hidden", "d weight")),
    ):
        exact = run(torch.float32, "plain")
        plain, fast = run(torch.bfloat16, "plain"), run(torch.bfloat16, "fast")
        for part, *values in zip(parts, exact, plain, fast, strict=True):
            within_twice(f"{name}, {part}", exact=values[0], plain=values[1], fast=values[2])


def optimizer_for(model: nn.Module) -> tuple[Any, str]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        import bitsandbytes
    except ImportError:
        return torch.optim.AdamW(parameters, lr=RATE, fused=True), "AdamW fused"
    return bitsandbytes.optim.AdamW8bit(parameters, lr=RATE), "AdamW 8-bit"


def flops(model: nn.Module, batches: Sequence[list[Example]], dims: peer.Dims) -> float:
    """Of one pass over the batches, real tokens only."""
    real = sum(len(example.tokens) for batch in batches for example in batch)
    supervised = sum(example.num_supervised for batch in batches for example in batch)
    pictures = sum(len(example.items) for batch in batches for example in batch)
    total = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "embed" in name:
            continue
        if "vision_tower" in name or name.startswith("encoders."):
            total += 2 * parameter.numel() * pictures * (dims.image_tokens + 1)
            continue
        tokens = supervised if "lm_head" in name else real
        if "projector" in name or name.startswith("connector."):
            tokens = pictures * dims.image_tokens
        total += (6 if parameter.requires_grad else 4) * parameter.numel() * tokens
    return total


def sides_of(
    theirs: Any, ours: Any, batches: Sequence[list[Example]], *, losses: dict[str, float]
) -> dict[str, Callable[[], object]]:
    """One optimizer step per batch for each side."""
    device = next(ours.parameters()).device
    padded = [peer.padded(batch, ours, dtype=torch.bfloat16) for batch in batches]
    padded = [{key: x.to(device) for key, x in inputs.items()} for inputs in padded]
    packed = [peer.packed(batch).to(device) for batch in batches]
    steppers = {PEER: optimizer_for(theirs)[0], "retinue": optimizer_for(ours)[0]}

    def step(name: str, loss: Tensor) -> None:
        loss.backward()
        steppers[name].step()
        steppers[name].zero_grad(set_to_none=True)
        losses.setdefault(name, float(loss.detach()))

    def peer_pass() -> None:
        for inputs in padded:
            step(PEER, theirs(**inputs).loss)

    def our_pass() -> None:
        for batch in packed:
            out = ours.run(batch)
            step("retinue", out.loss_sum / len(batch.supervised))

    return {PEER: peer_pass, "retinue": our_pass}


def freeze(theirs: Any, ours: Any, *, mode: str) -> tuple[Any, Any]:
    """Both sides with the same trainable weights."""
    rule: Any = {"lora": {"r": RANK, "alpha": 2 * RANK}} if mode == "lora" else "full"
    rules = {"encoders.**": "frozen", "connector.**": "full", "lm.**": rule}
    stage = {"name": mode, "trainable": rules, "steps": 1, "global_batch": 1}
    spec = StageSpec.parse({**stage, "optim": {"lr": RATE}})
    apply_rules(ours, spec.trainable, lr=RATE)
    if mode == "lora":
        theirs = get_peft_model(
            theirs,
            LoraConfig(
                r=RANK,
                lora_alpha=2 * RANK,
                target_modules=r".*language_model.*\.(" + "|".join(LINEARS) + ")",
            ),
        )
    for name, parameter in theirs.named_parameters():
        trained = "projector" in name or "lora_" in name or mode == "full"
        parameter.requires_grad_(trained and "vision_tower" not in name)
    return theirs.train(), ours.train().to(torch.bfloat16)


def on_gpu(*, quick: bool) -> None:
    """LoRA, then full; the ratio of the last line is LoRA's tokens/s."""
    dims, device = peer.DIMS["7b"], torch.device("cuda")
    check_operations(device)
    batches = [peer.samples(4, dims, seed=seed) for seed in ((11,) if quick else (11, 12))]
    real = sum(len(example.tokens) for batch in batches for example in batch)
    peak = next((p for k, p in PEAKS.items() if k in torch.cuda.get_device_name()), None)
    details: dict[str, Any] = {"tokens": [peer.counts(batch) for batch in batches]}
    every: dict[str, common.Timing] = {}
    ratios = {}
    for mode in ("lora",) if quick else ("lora", "full"):
        base = peer.make_peer(dims, dtype=torch.bfloat16, device="cuda")
        twin = peer.twin_of(base, dims, share=mode == "lora")
        theirs, ours = freeze(base, twin, mode=mode)
        losses: dict[str, float] = {}
        sides = sides_of(theirs, ours, batches, losses=losses)
        timings = common.alternate(sides, rounds=3, clock=common.cuda_clock)
        off = abs(losses[PEER] - losses["retinue"])
        common.require(off <= BF16_LOSS, f"{mode}: first losses {losses}")
        work = {PEER: flops(theirs, batches, dims), "retinue": flops(ours, batches, dims)}
        print(f"\n{mode}, {optimizer_for(ours)[1]}, first losses {losses}:")
        common.table(timings, peer=PEER)
        for name, timing in timings.items():
            used = f", MFU {work[name] / timing.min_s / peak:.3f}" if peak else ""
            print(f"{name}: {real / timing.min_s:.0f} tokens/s{used}")
            details[f"{mode} {name}"] = {
                "tokens_per_s": real / timing.min_s,
                "mfu": work[name] / timing.min_s / peak if peak else None,
                "first_loss": losses[name],
            }
            every[f"{mode} {name}"] = timing
        ratios[mode] = timings[PEER].min_s / timings["retinue"].min_s
        del base, twin, theirs, ours, sides
        gc.collect()
        torch.cuda.empty_cache()
    common.finish(
        "bench_train",
        ratio=ratios["lora"],
        target=1.0,
        against=PEER,
        quick=quick,
        timings=every,
        details={**details, "ratios": ratios},
        device="cuda",
    )
