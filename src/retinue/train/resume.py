"""From a run to a state and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retinue.core.errors import ConfigError
from retinue.core.log import get_logger
from retinue.model.freeze import plain
from retinue.train.context import Run
from retinue.train.random import random_state, set_random_state
from retinue.train.sinks.jsonl import FILE, read_rows
from retinue.train.spec import RunSpec
from retinue.train.state import (
    Checkpoints,
    TrainState,
    load_optimizer_state,
    load_weights,
    optimizer_state,
    read_state,
)
from retinue.train.trainer import Trainer


def save_checkpoint(run: Run, number: int, trainer: Trainer) -> None:
    """Every process takes part, the first one writes; the file knows nothing of their number."""
    moments = run.ranks.whole(run.model, optimizer_state(trainer.optimizer))
    with run.ranks.plain(run.model):
        if run.ranks.rank == 0:
            run.checkpoints.save(state_of(run, number, trainer, moments=moments))


def state_of(run: Run, number: int, trainer: Trainer, *, moments: dict[str, Any]) -> TrainState:
    """What a checkpoint of this moment holds; the model and the moments are whole."""
    own = {plain(name): parameter for name, parameter in run.model.named_parameters()}
    return TrainState(
        step=run.step,
        stage=number,
        stage_step=trainer.step,
        recipe=_identity(run.spec),
        data=dict(trainer.data.state()),
        weights={name: own[name].data for name in run.trained},
        optimizer=moments,
        random=random_state(trainer.device),
    )


def restore_weights(run: Run, state: TrainState) -> None:
    """Put the model back to a state, before it is divided."""
    load_weights(run.model, state.weights)
    run.trained |= dict.fromkeys(state.weights)


def restore(run: Run, trainer: Trainer, state: TrainState) -> None:
    """Put optimizer, data position, numbers and generators back to a state."""
    load_optimizer_state(trainer.optimizer, run.ranks.like(run.model, state.optimizer))
    trainer.step, run.step = state.stage_step, state.step
    trainer.data.load_state(state.data)
    run.rows += [row for row in read_rows(run.folder / FILE) if row["step"] <= state.step]
    set_random_state(state.random, trainer.device)
    get_logger().info(f"resumed at update {state.step} (stage {trainer.stage.name})")


def find_state(spec: RunSpec, checkpoints: Checkpoints) -> TrainState | None:
    """What to resume from, by `checkpoint.resume`. Raises ConfigError where it cannot be."""
    wish, latest = spec.checkpoint.resume, checkpoints.latest
    if wish == "never":
        if latest is not None:
            raise ConfigError(
                "the run folder already holds checkpoints",
                where=str(checkpoints.folder),
                rule="checkpoint.resume is never",
                fix="set checkpoint.resume to auto, or choose another report.dir",
            )
        return None
    if wish != "auto":
        named = Path(wish).expanduser()
        latest = Checkpoints(named / "checkpoints").latest or named
    if latest is None:
        return None
    state = read_state(latest)
    now = _identity(spec)
    odd = [key for key in now if state.recipe.get(key) != now[key]]
    if odd:
        raise ConfigError(
            f"the checkpoint belongs to a recipe with another {', '.join(odd)}",
            where=str(latest),
            rule=f"{odd[0]} was {state.recipe.get(odd[0])} and is {now[odd[0]]}",
            fix="use the recipe of the checkpoint, or another report.dir",
        )
    return state


def _identity(spec: RunSpec) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    stages = spec.train.stages
    return {
        "seed": spec.seed,
        "quant": spec.train.quant,
        "stages": [stage.name for stage in stages],
        "global_batch": [stage.global_batch for stage in stages],
        "trainable": [stage.model_dump(mode="json")["trainable"] for stage in stages],
    }
