"""A params file of ModelZoo as one of our recipes, with its model, data and freezing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.cli.params import (
    keep_of,
    optim_of,
    precision_of,
    schedule_of,
    sections,
    views_of,
)
from retinue.convert.modelzoo import import_modelzoo
from retinue.convert.modelzoo_fields import Fields
from retinue.convert.modelzoo_keys import modelzoo_keys
from retinue.convert.modelzoo_types import check_types
from retinue.core.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class ParamsRun:
    """recipe: ours; checkpoint: what to start from; notes: lines to say once."""

    recipe: dict[str, Any]
    checkpoint: str | None
    tokenizer: str | None
    steps: int
    notes: list[str] = field(default_factory=list)


def recipe_of(
    data: Mapping[str, Any], *, where: str, mode: str = "train", tokenizer: str | None = None
) -> ParamsRun:
    """The recipe of a params file. Raises ConfigError or CheckpointError naming what has no place.

    tokenizer: a folder; default: the one that data_params.json beside the HDF5 files names.
    """
    check_types(data, where=where)
    found = sections(data, where=where)
    f = Fields(found.get("init") or {}, where=f"{where}: init")
    fit = dict(found.get("fit") or {})
    model = f.need("model")
    made = import_modelzoo(model, where=f"{where}: model")
    loader = fit.get("train_dataloader")
    if not isinstance(loader, Mapping):
        raise ConfigError("no train_dataloader", where=where)
    loader = dict(loader)
    own = Fields(loader, where=f"{where}: train_dataloader")
    size, batch = own.need("image_data_size"), int(own.need("batch_size"))
    views, stream = views_of(loader.get("transforms"), size, where=f"{where}: transforms")
    precision, clip = precision_of(f.take("precision"), where=f"{where}: precision")
    lr, schedule = schedule_of(f.need("schedulers"), where=f"{where}: schedulers")
    optim = {**optim_of(f.need("optimizer"), where=f"{where}: optimizer"), "lr": lr, "clip": clip}
    loop = Fields(f.take("loop", {}), where=f"{where}: loop")
    steps = loop.take("max_steps", loop.take("num_steps"))
    epochs = loop.take("num_epochs")
    if steps is None and epochs is None:
        raise ConfigError("no length", where=f"{where}: loop", rule="max_steps or num_epochs")
    eval_every = loop.take("eval_frequency")
    loop.skip("eval_steps", "steps_per_epoch")
    accumulate = int(loop.take("grad_accum_steps", 1))
    loop.done()
    checkpoint = Fields(f.take("checkpoint", {}), where=f"{where}: checkpoint")
    every = checkpoint.take("steps")
    checkpoint.skip("autoload_last_checkpoint", "disable_strict_checkpoint_loading")
    checkpoint.skip("save_initial_checkpoint", "checkpoint_name")
    checkpoint.done()
    log = Fields(f.take("logging", {}), where=f"{where}: logging")
    log_every = int(log.take("log_steps", 1))
    log.skip("log_level", "wsc_log_level", "enable_act_frequency")
    log.done()
    keep = keep_of(f.take("callbacks"), where=f"{where}: callbacks")
    seed = int(f.take("seed", 0))
    f.skip("backend", "device", "model_dir", "loggers", "autorestart")
    f.only("sparsity", None)
    f.done()
    if model.get("loss_scaling", "num_tokens") != "num_tokens" or model.get("loss_weight") not in (
        1,
        1.0,
    ):
        raise ConfigError(
            f"loss_scaling {model.get('loss_scaling')!r} with loss_weight "
            f"{model.get('loss_weight')!r}",
            where=f"{where}: model",
            rule="a run divides by the number of trained tokens: num_tokens with weight 1.0",
        )
    config = made.config
    text: Any = config.text_config
    micro = max(1, batch // accumulate)
    data_section = data_of(loader, where=f"{where}: train_dataloader")
    val = fit.get("val_dataloader")
    notes: list[str] = []
    if mode == "train_and_eval" and isinstance(val, Mapping):
        data_section |= validation_of(val, where=f"{where}: val_dataloader")
    stage = {
        "name": "fit",
        "trainable": trainable_of(model.get("freeze"), made.config, where=f"{where}: model.freeze"),
        "global_batch": batch,
        "micro_batch": micro,
        "optim": optim,
        "schedule": schedule,
        **({"epochs": float(epochs)} if steps is None else {"steps": int(steps)}),
    }
    words = tokenizer or tokenizer_of(loader)
    spec = config.spec
    recipe = {
        "model": {
            "lm": {"config": text.to_dict()},
            "encoders": {
                name: {"kind": spec["encoders"][name]["kind"], "config": encoder.to_dict()}
                for name, encoder in config.encoders.items()
            },
            "connector": spec["connector"],
            "fusion": spec["fusion"],
            "image_token_id": spec["image_token_id"],
            "views": views,
            "streams": {"rgb": stream},
            "template": "vicuna_v1",
            "tokenizer": {"from": words} if words else None,
            "max_tokens": text.max_position_embeddings,
            "seed": seed,
        },
        "train": {
            "stages": [stage],
            "precision": precision,
            "validate_every": int(eval_every)
            if mode == "train_and_eval" and isinstance(eval_every, int)
            else None,
        },
        "data": data_section,
        "checkpoint": {"every": every, "keep": keep},
        "report": {"every": log_every},
        "seed": seed,
    }
    return ParamsRun(
        recipe=recipe,
        checkpoint=fit.get("ckpt_path"),
        tokenizer=words,
        steps=int(steps or 0),
        notes=notes,
    )


def data_of(loader: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Our data section of a dataloader; order and mixture follow our own samplers."""
    from retinue.data.hdf5 import Rows
    from retinue.data.modelzoo import ModelZooDataSpec, dirs_of

    spec = ModelZooDataSpec.parse(loader, where=where)
    refused = {"data_subset": spec.data_subset, "num_samples": spec.num_samples}
    for name, value in refused.items():
        if value is not None:
            raise ConfigError(f"{name}: {value!r}", where=where, rule="our sources are used whole")
    common = {"format": "hdf5", "media_root": spec.img_data_dir}
    if spec.mixture is None:
        sources: list[dict[str, Any]] = [
            {"path": one, **common} for one in dirs_of(spec.data_dir or [])
        ]
    else:
        counts = [len(Rows(dirs_of(part.data_dir))) for part in spec.mixture]
        shares = [part.weight / sum(p.weight for p in spec.mixture) for part in spec.mixture]
        pairs = list(zip(counts, shares, strict=True))
        total = max(count / share for count, share in pairs if share > 0.05)
        sources = [
            {"path": one, "ratio": total * share / count, **common}
            for part, (count, share) in zip(spec.mixture, pairs, strict=True)
            for one in dirs_of(part.data_dir)
        ]
    return {
        "sources": sources,
        "sampler": "shuffle" if spec.shuffle else "sequential",
        "seed": spec.shuffle_seed,
        "drop_last": spec.drop_last,
        "workers": spec.num_workers,
    }


def validation_of(loader: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The held-out source of a validation dataloader."""
    (source, *more) = data_of(loader, where=where)["sources"]
    if more:
        raise ConfigError("several data_dirs", where=where, rule="one folder is held out")
    return {"validation": source["path"], "validation_root": source["media_root"]}


def tokenizer_of(loader: Mapping[str, Any]) -> str | None:
    """The tokenizer that data_params.json of the first data folder names."""
    from retinue.data.modelzoo import dirs_of

    place = loader.get("data_dir") or (loader.get("mixture") or [{}])[0].get("data_dir")
    file = Path(dirs_of(place)[0]) / "data_params.json" if place else None
    if file is None or not file.exists():
        return None
    said = json.loads(file.read_text("utf-8")).get("processing", {}).get("huggingface_tokenizer")
    if said is None:
        return None
    beside = file.parent.parent / said
    return str(beside) if beside.exists() else str(said)


def trainable_of(freeze: Any, config: Any, *, where: str) -> dict[str, str]:
    """`trainable:` rules of the `freeze` expressions, over the original's names."""
    from retinue.hub.stream import skeleton
    from retinue.model.freeze_regex import frozen_by, rules_of

    keys = modelzoo_keys(config)
    ours = [name for name, _ in skeleton(config).named_parameters()]
    theirs = {name: keys.from_retinue(name) or name for name in ours}
    if not freeze:
        return {"**": "full"}
    leaves = dict.fromkeys(
        name.rpartition(".")[0] for name in theirs.values() if name.endswith((".weight", ".bias"))
    )
    try:
        frozen = frozen_by(list(freeze), parameters=theirs.values(), modules=leaves)
    except ConfigError as error:
        raise ConfigError(error.what, where=where, rule=error.rule) from None
    return rules_of(ours, {name for name in ours if theirs[name] in frozen})
