"""ModelZoo's params files as our recipes: every field mapped, known to change nothing, or named.

Both layouts are read: `trainer:` of 2.4 and later, and `train_input`, `optimizer`, `runconfig` of
2.3. Reference: multimodal_simple of Cerebras ModelZoo 2.3 and 2.10.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue.convert.modelzoo_fields import Fields
from retinue.convert.modelzoo_find import model_section
from retinue.core.errors import ConfigError
from retinue.core.yamlio import load_yaml

PARTS = {
    "LinearLR": "linear",
    "Linear": "linear",
    "CosineDecayLR": "cosine",
    "CosineDecay": "cosine",
    "ConstantLR": "constant",
    "Constant": "constant",
    "PolynomialLR": "polynomial",
    "Polynomial": "polynomial",
}
"""ModelZoo's schedulers, in either spelling -> our parts."""
QUIET = (
    *("ComputeNorm", "CheckLoss", "NaNChecker", "ModelEvalMetrics", "ScopedTrainFlags"),
    *("ScopedValidateFlags", "GlobalFlags", "CountParams", "LogOptimizerParamGroup", "Profiler"),
    *("LogInputSummaries", "LoadCheckpointStates", "SaveCheckpointState", "RateProfiler"),
)
"""Callbacks that do not change what is learnt."""
PRECISIONS = ("bfloat16", "cbfloat16")
RUN = ("max_steps", "num_steps", "num_epochs", "steps_per_epoch")


def params_of(recipe: str) -> dict[str, Any] | None:
    """The data of a params file; None for one of our own recipes and for names of recipes."""
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    data, _ = load_yaml(path)
    if not isinstance(data, Mapping) or not isinstance(data.get("model") or {}, Mapping):
        return None
    return dict(data) if model_section(data) is not None else None


def sections(data: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Either layout under the names of the later one: init, fit, validate."""
    if "trainer" in data:
        trainer = data["trainer"]
        if isinstance(trainer, list):
            if len(trainer) != 1:
                raise ConfigError(
                    f"{len(trainer)} trainers in one file", where=where, fix="one file for each"
                )
            (inner,) = trainer
            trainer = inner.get("trainer", inner) if isinstance(inner, Mapping) else inner
        extra = set(data) - {"trainer"}
        if extra:
            raise ConfigError(f"unknown sections {', '.join(sorted(extra))}", where=where)
        return Fields(trainer, where=f"{where}: trainer").data
    run = Fields(data.get("runconfig") or {}, where=f"{where}: runconfig")
    optimizer = dict(data.get("optimizer") or {})
    rates = optimizer.pop("learning_rate", None)
    kind = str(optimizer.pop("optimizer_type", "AdamW"))
    clip = optimizer.pop("max_gradient_norm", None)
    for name in ("loss_scaling_factor", "log_summaries"):
        optimizer.pop(name, None)
    model = dict(Fields(data, where=where).need("model"))
    init: dict[str, Any] = {
        "model": model,
        "seed": run.take("seed", 0),
        "optimizer": {kind: optimizer},
        "schedulers": rates,
        "precision": {
            "fp16_type": model.get("fp16_type", "bfloat16"),
            "enabled": model.get("mixed_precision", True),
            "max_gradient_norm": clip,
        },
        "loop": {
            "max_steps": run.take("max_steps"),
            "num_epochs": run.take("num_epochs"),
            "eval_frequency": run.take("eval_frequency"),
            "eval_steps": run.take("eval_steps"),
            "grad_accum_steps": run.take("grad_accum_steps", 1),
        },
        "checkpoint": {"steps": run.take("checkpoint_steps")},
        "logging": {"log_steps": run.take("log_steps", 1)},
    }
    path = run.take("checkpoint_path")
    run.skip("model_dir", "keep_checkpoints", "save_initial_checkpoint", "num_workers_per_csx")
    run.skip("disable_strict_checkpoint_loading", "load_checkpoint_states", "use_cs_grad_accum")
    run.skip("num_csx", "eval_interval", "drop_data", "max_checkpoints", "logging")
    keep = run.take("max_checkpoints")
    if keep is not None:
        init["callbacks"] = [{"KeepNCheckpoints": {"n": keep}}]
    run.done()
    extra = set(data) - {"model", "optimizer", "runconfig", "train_input", "eval_input"}
    if extra:
        raise ConfigError(f"unknown sections {', '.join(sorted(extra))}", where=where)
    val = data.get("eval_input")
    return {
        "init": init,
        "fit": {
            "train_dataloader": data.get("train_input"),
            "val_dataloader": val,
            "ckpt_path": path,
        },
    }


def schedule_of(value: Any, *, where: str) -> tuple[float, dict[str, Any]]:
    """(largest rate, our schedule) of a scheduler list or a single rate."""
    if isinstance(value, int | float):
        return float(value), {"kind": "constant"}
    found = [part for one in _schedulers(value, where=where) for part in one]
    parts: list[dict[str, Any]] = []
    for number, (name, given) in enumerate(found):
        place = f"{where}.{number}"
        if name not in PARTS:
            raise ConfigError(f"scheduler {name!r}", where=place, rule=f"known: {', '.join(PARTS)}")
        f, kind = Fields(given, where=place), PARTS[name]
        f.skip("cycle", "verbose")
        part: dict[str, Any]
        if kind == "constant":
            part = {"kind": kind, "start": float(f.take("learning_rate", 0.0))}
        else:
            start = float(f.need("initial_learning_rate"))
            part = {"kind": kind, "start": start, "end": float(f.take("end_learning_rate", 0.0))}
        if kind == "polynomial":
            part["power"] = float(f.take("power", 1.0))
        steps = f.take("total_iters", aliases=("steps", "decay_steps"))
        f.done()
        if steps is not None:
            part["steps"] = int(steps)
        parts.append(part)
    if not parts:
        raise ConfigError("no scheduler", where=where, rule="a list of them, or one rate")
    top = max(max(part["start"], part.get("end", 0.0)) for part in parts)
    for part in parts:
        for key in {"start", "end"} & set(part):
            part[key] /= top or 1.0
    return top, {"kind": "list", "parts": parts}


def _schedulers(value: Any, *, where: str) -> list[list[tuple[str, dict[str, Any]]]]:
    """(name, fields) of every member, sequences flattened."""
    items = value if isinstance(value, list) else [value]
    found = []
    for item in items:
        if not isinstance(item, Mapping):
            raise ConfigError(f"{item!r:.60} is no scheduler", where=where)
        if "scheduler" in item:
            fields = {key: one for key, one in item.items() if key != "scheduler"}
            found.append([(str(item["scheduler"]), fields)])
            continue
        for name, given in item.items():
            if name in ("SequentialLR", "Sequential"):
                inner = _schedulers(
                    Fields(given or {}, where=f"{where}: {name}").need("schedulers"), where=where
                )
                members = [part for one in inner for part in one]
                sums, total = [], 0
                for _, fields in members[:-1]:
                    total += int(fields.get("total_iters") or 0)
                    sums.append(total)
                if given.get("milestones") not in (None, sums):
                    raise ConfigError(
                        f"milestones {given['milestones']}",
                        where=where,
                        rule=f"the running sums of the members' total_iters: {sums}",
                    )
                found.append(members)
            else:
                fields = Fields(given or {}, where=f"{where}: {name}").data
                found.append([(str(name), fields)])
    return found


def optim_of(value: Any, *, where: str) -> dict[str, Any]:
    """Our optimizer of an `optimizer` section without its rate."""
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError("one optimizer with its fields", where=where)
    ((name, given),) = value.items()
    if name != "AdamW":
        raise ConfigError(f"optimizer {name!r}", where=where, rule="known: AdamW")
    f = Fields(given or {}, where=f"{where}.{name}")
    f.only("correct_bias", True)
    f.only("amsgrad", False)
    f.skip("learning_rate", "lr")
    found = {
        "kind": "adamw_plain_eps",
        "betas": list(f.take("betas", [0.9, 0.999])),
        "eps": float(f.take("eps", 1e-6)),
        "weight_decay": float(f.take("weight_decay", 0.0)),
        "decay": "modelzoo",
    }
    f.done()
    return found


def views_of(transforms: Any, size: Any, *, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(view policy, stream) that a `transforms` list means. Raises ConfigError for another one."""
    steps = [dict(step) for step in transforms or []]
    names = [str(step.get("name")) for step in steps]
    stream: dict[str, Any] = {
        "size": [int(side) for side in size[1:]],
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    }
    by_name = dict(zip(names, steps, strict=True))
    if len(by_name) < len(names):
        raise ConfigError(f"transforms {', '.join(names)}", where=where, rule="each step once")
    if "normalize" in by_name:
        how = Fields(by_name["normalize"], where=f"{where}: normalize")
        stream |= {key: list(how.need(key)) for key in ("mean", "std")}
    core = [name for name in names if name not in ("to_tensor", "normalize", "to_dtype")]
    resized = by_name.get("resize", {})
    stream["interpolation"] = resized.get("interpolation", "bilinear")
    target = resized.get("size")
    square = target == stream["size"] or target == stream["size"][0]
    padded = (["expand_to_square", "resize"], ["expand_to_square", "resize", "center_crop"])
    if core in padded and square:
        colour = by_name["expand_to_square"].get("background_color") or [0, 0, 0]
        return {"kind": "pad", "colour": list(colour)}, stream
    if core == ["resize"] and target == stream["size"]:
        return {"kind": "squash"}, stream
    if core == ["resize", "center_crop"] and isinstance(target, int):
        return {"kind": "single", "shortest_edge": target}, stream
    raise ConfigError(
        f"transforms {', '.join(names) or 'none'}",
        where=where,
        rule="known: expand_to_square + resize (+ center_crop); resize + center_crop; resize to "
        "[height, width]; each with to_tensor and normalize",
    )


def precision_of(value: Any, *, where: str) -> tuple[str, float | None]:
    """(ours, gradient clip) of a `precision` section."""
    f = Fields(value or {}, where=where)
    enabled = bool(f.take("enabled", True))
    kind = f.take("fp16_type", "bfloat16")
    clip = f.take("max_gradient_norm")
    f.skip("loss_scaling_factor", "initial_loss_scale", "steps_per_increase", "min_loss_scale")
    f.skip("max_loss_scale", "log_loss_scale", "precision_opt_level")
    f.only("max_gradient_value", None)
    f.done()
    if enabled and kind not in PRECISIONS:
        raise ConfigError(
            f"fp16_type {kind!r}", where=where, rule=f"known: {', '.join(PRECISIONS)}"
        )
    return "bf16" if enabled else "fp32", None if clip is None else float(clip)


def keep_of(callbacks: Any, *, where: str) -> int | None:
    """How many checkpoints to keep; other callbacks are known to change nothing, or refused."""
    keep = None
    for callback in callbacks or []:
        items = callback.items() if isinstance(callback, Mapping) else [(str(callback), None)]
        for name, given in items:
            if name == "KeepNCheckpoints":
                fields = Fields(given or {}, where=f"{where}: {name}")
                keep = int(fields.need("n"))
                fields.done()
            elif name not in QUIET:
                raise ConfigError(
                    f"callback {name!r}", where=where, rule=f"known: {', '.join(sorted(QUIET))}"
                )
    return keep
