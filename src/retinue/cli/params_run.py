"""ModelZoo's run modes on a params file: train, train_and_eval, eval, eval_all, validate only."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retinue.cli.common import note
from retinue.cli.params_recipe import ParamsRun, recipe_of
from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    from retinue.model.retinue import Retinue
    from retinue.types import Batch

Mode = Literal["train", "eval", "train_and_eval", "eval_all"]


def run_params(
    data: dict[str, Any],
    *,
    name: str,
    mode: Mode,
    folder: Path,
    device: str,
    checkpoint: str | None = None,
    tokenizer: str | None = None,
    validate_only: bool = False,
    max_steps: int | None = None,
) -> int:
    """Do what the params file and the mode say in `folder`; the exit code. Raises RetinueError."""
    made = recipe_of(data, where=name, mode=mode, tokenizer=tokenizer)
    for line in made.notes:
        note(line)
    if max_steps is not None:
        stage = made.recipe["train"]["stages"][0]
        stage.pop("epochs", None)
        stage["steps"] = max_steps
    start = checkpoint or made.checkpoint
    if start is not None:
        made.recipe["model"] = from_checkpoint(made, Path(start), name=name, folder=folder)
    elif made.tokenizer is None:
        raise ConfigError(
            "no tokenizer",
            where=name,
            rule="a params file names none, and no data_params.json stands beside its data",
            fix="--tokenizer FOLDER",
        )
    if validate_only:
        return validate(made, name=name)
    if mode in ("train", "train_and_eval"):
        from retinue.cli.run_spec import model_data
        from retinue.cli.train import train
        from retinue.train.spec import RunSpec

        spec = RunSpec.parse(made.recipe, where=name)
        model_data(spec.model, where=f"{name}: model")
        result = train(spec, name=name, out=folder, device=device)
        return result.exit_code
    models = sorted(folder.glob("checkpoints/step-*")) or [folder / "model"]
    models = [model for model in models if (model / "config.json").exists()]
    if mode == "eval":
        models = [Path(made.recipe["model"]["from"])] if start is not None else models[-1:]
    if not models:
        raise ConfigError(f"no checkpoint in {folder}", where=name, fix="--checkpoint-path PATH")
    for model in models:
        loss, count = evaluate(made, model, name=name, device=device)
        note(f"{model}: loss {loss:.6f} over {count:.0f} tokens")
    return 0


def from_checkpoint(made: ParamsRun, start: Path, *, name: str, folder: Path) -> dict[str, Any]:
    """The model section that begins at a checkpoint: a folder, or a .mdl with this params file."""
    kept = {key: made.recipe["model"][key] for key in ("views", "streams", "max_tokens")}
    if start.is_dir():
        return {"from": str(start), **kept}
    if not start.exists():
        raise ConfigError(f"no checkpoint {start}", where=name)
    whole = folder / "init"
    whole.mkdir(parents=True, exist_ok=True)
    link = whole / start.name
    link.unlink(missing_ok=True)
    os.symlink(start.resolve(), link)
    shutil.copy(name, whole / "params.yaml")
    for file in Path(made.tokenizer or "").glob("tokenizer*") if made.tokenizer else ():
        shutil.copy(file, whole / file.name)
    return {"from": str(whole), **kept}


def validate(made: ParamsRun, *, name: str) -> int:
    """Resolve everything, build on the meta device, read one batch and check that shapes fit."""
    from retinue.cli.run_spec import model_data
    from retinue.data.formats.hdf5 import Hdf5
    from retinue.hub.stream import skeleton
    from retinue.model.freeze import apply_rules
    from retinue.train.spec import RunSpec

    spec = RunSpec.parse(made.recipe, where=name)
    model_data(spec.model, where=f"{name}: model")
    processor, config = processor_of(made, name=name)
    model = skeleton(config)
    stage = spec.train.stages[0]
    table = apply_rules(model, stage.trainable, lr=stage.optim.lr, id_of=processor.tokenizer.id_of)
    source = spec.data.sources[0]
    rows = Hdf5.open(source.path, media_root=source.media_root)
    count = min(len(rows), stage.micro_batch)
    batch = processor.collate(
        [processor.example(rows[i], train=True) for i in range(count)], train=True
    )
    width = rows.rows[0].data.shape[1]
    check_batch(batch, model, width=width, where=f"{name}: {source.path}")
    views = 0 if batch.visual is None else len(batch.visual.grids)
    note(
        f"{name}: {table.total:,} parameters, {table.trainable:,} of them trained; a batch of "
        f"{count} rows, {tuple(batch.tokens.shape)} tokens, {views} pictures"
    )
    return 0


def check_batch(batch: Batch, model: Retinue, *, width: int, where: str) -> None:
    """Raise ConfigError unless a batch fits a model, which may be on the meta device.

    width: of a whole row. Compared are ids with the vocabulary, rows with the longest position, and
    the pictures' way through encoders and connector, without values, with the places kept for them.
    """
    import torch

    text = model.config.get_text_config()
    ids = batch.tokens[batch.tokens != model.plan.spec.image_token_id]
    if len(ids) and int(ids.max()) >= text.vocab_size:
        raise ConfigError(
            f"id {int(ids.max())}", where=where, rule=f"vocab_size is {text.vocab_size}"
        )
    if width > text.max_position_embeddings:
        raise ConfigError(
            f"rows of {width} tokens",
            where=where,
            rule=f"max_position_embeddings is {text.max_position_embeddings}",
        )
    if batch.visual is None:
        return
    pixels = {stream: tensor.to("meta") for stream, tensor in batch.visual.pixels.items()}
    with torch.no_grad():
        words = model.look(replace(batch.visual, pixels=pixels))
    assert words is not None
    given, kept = sum(words.lengths), len(batch.visual.index)
    if given != kept or words.x_TD.shape[-1] != model.plan.lm_width:
        raise ConfigError(
            f"{given} visual tokens of width {words.x_TD.shape[-1]}",
            where=where,
            rule=f"the rows keep {kept} places, the language model is {model.plan.lm_width} wide",
        )


def processor_of(made: ParamsRun, *, name: str) -> tuple[Any, Any]:
    """The processor and config of a run, no weights read."""
    from retinue.hub.load import make_processor
    from retinue.hub.sources import Opened, open_folder
    from retinue.model.spec import RetinueConfig

    model = made.recipe["model"]
    if "from" in model:
        opened = open_folder(model["from"])
        opened.processor |= {key: model[key] for key in ("views", "streams")}
        return make_processor(opened), opened.config
    config = RetinueConfig(
        text_config=model["lm"]["config"],
        encoders={key: one["config"] for key, one in model["encoders"].items()},
        spec={
            "encoders": {key: {"kind": one["kind"]} for key, one in model["encoders"].items()},
            "connector": model["connector"],
            "fusion": model["fusion"],
            "image_token_id": model["image_token_id"],
        },
    )
    settings = {key: model[key] for key in ("views", "streams", "template", "max_tokens")}
    opened = Opened(
        format="retinue",
        folder=Path(name),
        config=config,
        processor=settings,
        tokenizer=Path(model["tokenizer"]["from"]),
        sources=[],
    )
    return make_processor(opened), config


def evaluate(made: ParamsRun, model: Path, *, name: str, device: str) -> tuple[float, float]:
    """(mean loss, trained tokens) of a checkpoint on the validation or training rows."""
    import torch

    from retinue.data.formats import open_format
    from retinue.hub.load import load
    from retinue.ops.backend import pick_device

    place, _ = pick_device(device)
    loaded, processor = load(model, device=place)
    data = made.recipe["data"]
    source = data["sources"][0]
    path = data.get("validation") or source["path"]
    root = data.get("validation_root") or source["media_root"]
    rows = open_format(path, format="hdf5", media_root=root)
    micro = made.recipe["train"]["stages"][0]["micro_batch"]
    total = count = 0.0
    for at in range(0, len(rows), micro):
        examples = [
            processor.example(rows[i], train=True) for i in range(at, min(at + micro, len(rows)))
        ]
        with torch.no_grad():
            out = loaded.run(processor.collate(examples, train=True).to(place))
        assert out.loss_sum is not None
        assert out.num_supervised is not None
        total, count = total + float(out.loss_sum), count + float(out.num_supervised)
    return total / max(count, 1.0), count
