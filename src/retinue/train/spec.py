"""The branches of a recipe that training reads: train, parallel, checkpoint, report, seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest
from retinue.core.spec import Spec
from retinue.data.spec import DataSpec
from retinue.model.freeze import LoraRule, Rule
from retinue.model.quant import canonical
from retinue.parallel.spec import ParallelSpec
from retinue.processor import ProcessorSpec
from retinue.train.idle import IDLE
from retinue.train.norm import LOSS_NORMS
from retinue.train.objectives.base import ObjectiveField
from retinue.train.optim import OptimSpec
from retinue.train.schedule import ScheduleSpec
from retinue.train.sinks import SINKS


def _loss_norm(name: str) -> str:
    if name not in LOSS_NORMS:
        raise ValueError(f"unknown loss_norm {name!r} (known: {', '.join(LOSS_NORMS)})")
    return name


def _idle(name: str) -> str:
    if name not in IDLE:
        raise ValueError(f"unknown idle_visual {name!r} (known: {', '.join(IDLE)})")
    return name


def _quant(name: str) -> str:
    try:
        return canonical(name)
    except ConfigError as error:
        raise ValueError(error.what) from None


def _sink(name: str) -> str:
    if name not in SINKS:
        raise ValueError(SINKS.unknown(name))
    return name


class StageSpec(Spec):
    """One run of an optimizer: what trains, for how long, on what.

    trainable: pattern -> rule, the last match wins. Either steps or epochs. global_batch: samples
    of an update over all ranks (packs, with packing "window"); micro_batch: samples of a forward.
    loss_weights: type of a source -> its weight: the loss is then the weighted sum of each type's
    own mean, as with OpenFlamingo's two loaders; loss_norm means nothing.
    idle_visual: what an update without any picture does to the visual weights, see `idle`.
    data: what differs from the run's `data`; processor: what differs from the model's processor
    (template, labels, views, …). The model is saved with the settings of its last stage.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    trainable: dict[str, Rule] = Field(min_length=1)
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    global_batch: int = Field(gt=0)
    micro_batch: int = Field(default=1, gt=0)
    optim: OptimSpec
    schedule: ScheduleSpec = ScheduleSpec()
    objective: ObjectiveField = Field(
        default_factory=lambda: {"kind": "sft"}, validate_default=True
    )
    loss_norm: Annotated[str, AfterValidator(_loss_norm)] = "tokens"
    loss_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    idle_visual: Annotated[str, AfterValidator(_idle)] = "still"
    data: dict[str, Any] = Field(default_factory=dict)
    processor: dict[str, Any] = Field(default_factory=dict)

    @field_validator("processor")
    @classmethod
    def _settings(cls, changes: dict[str, Any]) -> dict[str, Any]:
        for name in changes:
            if name not in ProcessorSpec.model_fields:
                hint = nearest(name, list(ProcessorSpec.model_fields))
                known = ", ".join(ProcessorSpec.model_fields)
                raise ValueError(
                    f"unknown setting {name!r}; "
                    + (f"did you mean {hint!r}? " if hint else "")
                    + f"(known: {known})"
                )
        return changes

    @model_validator(mode="after")
    def _one_length(self) -> StageSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.loss_weights and self.objective.kind != "sft":
            raise ValueError("loss_weights need the objective sft, whose loss is a sum over tokens")
        return self


class EvaluateSpec(Spec):
    """Questions that a run asks its model while it trains.

    data: rows of `retinue eval --data`; or task: a benchmark's name or YAML file, its files below
    `root`. scorer: of data, for all rows. every: updates between two rounds, None = at the end of
    each stage. limit: only the first questions. metric: what best/ is chosen by, larger is better;
    best: keep the model with the highest. max_new_tokens: of an answer; None = the task's, or 64.
    """

    data: Path | None = None
    task: str | None = None
    root: Path = Path(".")
    scorer: str | None = None
    every: int | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, gt=0)
    metric: str = "score"
    best: bool = True
    max_new_tokens: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> EvaluateSpec:
        if (self.data is None) == (self.task is None):
            raise ValueError("give either data or task")
        if self.scorer is not None and self.task is not None:
            raise ValueError("a task has its own scorer")
        return self


class TrainSpec(Spec):
    """Stages in order, and what holds for all of them.

    precision: bf16 = autocast over fp32 weights. validate_every: updates between two validation
    losses; None = only at the end of a stage, if there is a validation split. evaluate: questions
    whose answers are scored on the way, and the best model kept. quant: the format of
    the frozen language model (`retinue ls quants`), which then takes adapters only (QLoRA).
    """

    stages: tuple[StageSpec, ...] = Field(min_length=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    quant: Annotated[str, AfterValidator(_quant)] | None = None
    validate_every: int | None = Field(default=None, gt=0)
    evaluate: EvaluateSpec | None = None

    @model_validator(mode="after")
    def _distinct(self) -> TrainSpec:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {names}")
        return self

    @model_validator(mode="after")
    def _adapters_last(self) -> TrainSpec:
        for stage in self.stages[:-1] if self.quant else ():
            if any(isinstance(rule, LoraRule) for rule in stage.trainable.values()):
                raise ValueError(
                    f"with quant, adapters train in the last stage only, not in {stage.name!r}: "
                    "the next one would have to fold them into quantized weights"
                )
        return self


class CheckpointSpec(Spec):
    """every: updates between checkpoints, None = at the end of each stage; keep: newest so many.

    resume: auto = from the newest checkpoint of the run folder if there is one; never; or a path.
    export: each checkpoint is a complete model folder too. holds: trained = weight files hold only
    what the stages train, and name model.from for all others; all = every weight.
    """

    every: int | None = Field(default=None, gt=0)
    keep: int | None = Field(default=2, gt=0)
    resume: str = "auto"
    export: bool = True
    holds: Literal["all", "trained"] = "all"


class ReportSpec(Spec):
    """dir: the run's folder; every: updates between two lines of the sinks; page: report.html."""

    dir: Path | None = None
    sinks: tuple[Annotated[str, AfterValidator(_sink)], ...] = ("console", "jsonl")
    every: int = Field(default=1, gt=0)
    page: bool = True


class RunSpec(Spec):
    """A whole training recipe. `model` is read by who builds or loads the model."""

    model: dict[str, Any]
    train: TrainSpec
    data: DataSpec
    parallel: ParallelSpec = ParallelSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    report: ReportSpec = ReportSpec()
    seed: int = 0

    @model_validator(mode="after")
    def _one_format(self) -> RunSpec:
        if self.parallel.gather == "bf16" and self.train.precision != "bf16":
            raise ValueError(
                "parallel.gather=bf16 needs train.precision=bf16: layers compute in it"
            )
        return self

    def data_of(self, stage: StageSpec) -> DataSpec:
        """The run's data with a stage's changes. Raises ConfigError."""
        merged = self.data.model_dump() | stage.data
        return DataSpec.parse(merged, where=f"train.stages.{stage.name}.data")


def accumulation(*, global_batch: int, micro_batch: int, ranks: int = 1) -> int:
    """Micro-batches that each rank adds up for one update.

    Raises ConfigError, with the arithmetic, where global_batch does not divide.
    """
    share = micro_batch * ranks
    if global_batch % share:
        below = global_batch // share * share
        choices = [str(n) for n in (below, below + share) if n]
        raise ConfigError(
            f"global_batch {global_batch} is no multiple of micro_batch {micro_batch} x "
            f"{ranks} rank{'s' * (ranks > 1)}",
            where="train.stages.*.global_batch",
            rule=f"{global_batch} / ({micro_batch} x {ranks}) = {global_batch / share:.2f} "
            "micro-batches a rank",
            fix=f"use a global_batch of {' or '.join(choices)}, or another micro_batch",
        )
    return global_batch // share
