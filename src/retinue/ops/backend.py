"""Which forms of the operations run, what this machine offers, and which device is used.

The only place, with the other files of `ops/` and `parallel/`, that asks torch for a kind of
accelerator: everything else is written against a `torch.device`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch

from retinue.core.errors import ConfigError, EnvError

Form = Literal["plain", "fast"]
FORMS: tuple[Form, ...] = ("plain", "fast")


def _initial() -> Form:
    asked = os.environ.get("RETINUE_OPS", "fast")
    if asked not in FORMS:
        raise ConfigError(
            f"unknown form {asked!r}", where="RETINUE_OPS", rule=f"one of {', '.join(FORMS)}"
        )
    return asked


# A module variable, not a ContextVar: compiled layers guard on it instead of breaking the graph.
_form: Form = _initial()


def form(asked: Form | None = None) -> Form:
    """The form an operation takes: what the call asks for, else the switch."""
    return asked or _form


@contextlib.contextmanager
def override(asked: Form) -> Iterator[None]:
    """Run every operation inside the block in its "plain" or its "fast" form."""
    assert asked in FORMS, asked
    global _form
    before, _form = _form, asked
    try:
        yield
    finally:
        _form = before


# ---------------------------------------------------------------- what torch offers


@cache
def varlen() -> Callable[..., Any] | None:
    """`torch.nn.attention.varlen.varlen_attn`, or None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast(Callable[..., Any], varlen_attn)


@cache
def varlen_keywords() -> frozenset[str]:
    """Keywords of `varlen_attn`: they changed between releases (is_causal, then window_size)."""
    found = varlen()
    return frozenset(inspect.signature(found).parameters) if found else frozenset()


@cache
def cpu_flash() -> bool:
    """Whether the private CPU attention operations exist and answer as expected."""
    names = ("", "_backward")
    base = "_scaled_dot_product_flash_attention_for_cpu"
    if not all(hasattr(torch.ops.aten, base + name) for name in names):
        return False
    x = torch.zeros(1, 1, 2, 8)
    try:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            x, x, x, 0.0, True, attn_mask=None, scale=1.0
        )
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            x, x, x, x, out, lse, 0.0, True, attn_mask=None, scale=1.0
        )
    except (RuntimeError, TypeError):
        return False
    return out.shape == x.shape and len(grads) == 3


@cache
def cpu_prepack() -> bool:
    """Whether oneDNN takes bf16 weights in its own layout, with the right product."""
    from retinue.ops.linear import pack_weight, packed_product

    try:
        w_OI, x_NI = torch.eye(16, dtype=torch.bfloat16), torch.ones(1, 16, dtype=torch.bfloat16)
        y_NO = packed_product(x_NI, pack_weight(w_OI), None)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return bool(torch.equal(y_NO, x_NI))


def report() -> dict[str, str]:
    """What `retinue doctor` prints about the operations: name -> one readable value."""
    device, reason = pick_device("auto")
    yes = {True: "yes", False: "no"}
    return {
        "torch": torch.__version__,
        "device": f"{device.type} ({reason})",
        "threads": f"{torch.get_num_threads()} in use, {default_threads()} allowed",
        "form": _form,
        "varlen attention": ", ".join(sorted(varlen_keywords())) or "no",
        "cpu attention kernels": yes[cpu_flash()],
        "compiled attention gradient": yes[_compiled_attention()],
        "cpu prepacked bf16": yes[cpu_prepack()],
        "kernels of few bits": _few_bits(device.type),
        "torch linear_cross_entropy": yes[hasattr(torch.nn.functional, "linear_cross_entropy")],
    }


def _compiled_attention() -> bool:
    from retinue.ops.native.attention import compiled_backward

    return compiled_backward() is not None


def _few_bits(device: str) -> str:
    from retinue.ops.quantized_kernels import int4_kernel, int8_kernel

    found = {"int8": int8_kernel(device), "int4": int4_kernel(device)}
    return ", ".join(name for name, kernel in found.items() if kernel) or "no"


# ---------------------------------------------------------------- devices


def pick_device(asked: str = "auto") -> tuple[torch.device, str]:
    """The device to work on and why: (device, reason).

    `asked`: auto, cpu, cuda, cuda:<n> or mps. Raises EnvError when the machine lacks it and
    ConfigError when the name is none of these.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if asked == "auto":
        if has_cuda:
            return torch.device("cuda"), torch.cuda.get_device_name(0)
        if has_mps:
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), "no accelerator found"
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"unknown device {asked!r}", rule="one of auto, cpu, cuda, cuda:<n>, mps")
    present = {"cpu": True, "cuda": has_cuda, "mps": has_mps}[device.type]
    if present and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        present = False
    if not present:
        fix = "take device=auto or cpu, or install a torch built for it"
        raise EnvError(f"device {asked!r} is not on this machine", fix=fix)
    return device, "asked for"


def visible_room() -> list[tuple[torch.device, int]]:
    """The accelerators that this process may use, with their free bytes; none without CUDA."""
    if not torch.cuda.is_available():
        return []
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [(device, torch.cuda.mem_get_info(device)[0]) for device in devices]


def default_threads() -> int:
    """Cores this process may use: OMP_NUM_THREADS if set, never above affinity and cgroup quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    chosen = int(asked) if asked.isdigit() and int(asked) else cores
    return max(1, min(cores, chosen, _cgroup_cores() or cores))


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """CPU quota in whole cores, rounded up; None without a limit. Reads cgroup v2, then v1."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0:
        return None
    return -(-int(quota) // int(period))


def autocast(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision in `dtype` on `device`; dtype None or float32 changes nothing."""
    if dtype is None or dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what was asked of it (for clocks); nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_stats(device: torch.device) -> dict[str, int]:
    """Bytes of tensors on `device`: {"allocated", "peak"}; {} on a CPU, where torch keeps none."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        return {"allocated": used, "peak": used}
    return {}
