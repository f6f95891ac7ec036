"""A whole run: stages in order, resumed where they stood, with checkpoints, numbers and a page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from retinue.core.log import get_logger, once, print_table
from retinue.core.seed import stream_seed
from retinue.data.dataset import Dataset
from retinue.model.adapters import adapter_names, merge_adapters
from retinue.model.freeze import HEADER, TrainableTable, apply_rules, plain
from retinue.parallel.ranks import Ranks
from retinue.processor import ProcessorSpec
from retinue.train.context import OpenData, Run, RunResult
from retinue.train.evaluator import Evaluator, SaveModel
from retinue.train.finish import finish
from retinue.train.judge import Judge
from retinue.train.meter import Meter
from retinue.train.prepare import prepare, unused_sharding
from retinue.train.random import seed_all
from retinue.train.record import write_recipe, write_tables, writing
from retinue.train.resume import find_state, restore, restore_weights, save_checkpoint
from retinue.train.sinks import SINKS
from retinue.train.spec import RunSpec, StageSpec, accumulation
from retinue.train.state import Checkpoints, TrainState
from retinue.train.stop import StopRequest
from retinue.train.trainer import Trainer


def run_stages(
    spec: RunSpec,
    *,
    model: Any,
    processor: Any,
    open_data: OpenData,
    folder: str | Path,
    save_model: SaveModel,
    evaluator: Evaluator | None = None,
    judge: Evaluator | None = None,
    ranks: Ranks | None = None,
) -> RunResult:
    """Train a model through all stages of a recipe, in place, and write the run's folder.

    model: a Retinue on its device; open_data: `data:` branch -> Dataset; save_model: writes a
    complete model folder; evaluator: asked once at the end; judge: asked on the way, as
    `train.evaluate` says. The folder gets model/, checkpoints/, run.json, trainable.json,
    recipe.yaml, report.html, what the sinks write, and with a judge best/ and evaluation/.
    Raises ConfigError, DataError, EnvError (the last good checkpoint stays intact).
    """
    folder, ranks = Path(folder), ranks or Ranks()
    first = ranks.rank == 0
    run = Run(
        spec=spec,
        model=model,
        processor=processor,
        open_data=open_data,
        folder=folder,
        checkpoints=Checkpoints(
            folder / "checkpoints",
            keep=spec.checkpoint.keep,
            write_model=partial(save_model, model, processor) if spec.checkpoint.export else None,
        ),
        ranks=ranks,
        sinks=[],
        stop=StopRequest(),
    )
    if judge is not None and spec.train.evaluate is not None:
        run.judge = Judge(run, ask=judge, save_model=save_model)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    ranks.share(model)
    settings = _settings(spec, processor)
    state = find_state(spec, run.checkpoints)
    if run.judge is not None:
        run.judge.begin(step=0 if state is None else state.step)
    if first:
        run.checkpoints.clear()
        with writing(folder):
            write_recipe(folder, spec.model_dump(mode="json"))
            run.sinks = [SINKS.get(name)(folder) for name in spec.report.sinks]
            for sink in run.sinks:
                sink.forget(0 if state is None else state.step)
    try:
        with run.stop:
            for number, stage in enumerate(spec.train.stages):
                if settings:  # also of stages that are done: the last one's are saved
                    processor.adopt(settings[number])
                if state is None or state.stage <= number:
                    _run_stage(run, number, stage, state)
                    state = None
                if run.stop.signal is not None:
                    break
    finally:
        for sink in run.sinks:
            sink.close()
    return finish(run, save_model=save_model, evaluator=evaluator, dtypes=dtypes)


def _settings(spec: RunSpec, processor: Any) -> list[ProcessorSpec]:
    """What the processor works by in each stage; nothing where no stage changes it."""
    stages = spec.train.stages
    if not any(stage.processor for stage in stages):
        return []
    own = processor.spec.model_dump(mode="json")
    return [
        ProcessorSpec.parse(own | stage.processor, where=f"train.stages.{stage.name}.processor")
        for stage in stages
    ]


def _run_stage(run: Run, number: int, stage: StageSpec, state: TrainState | None) -> None:
    """Train one stage, from its beginning or from a state within it."""
    spec, model = run.spec, run.model
    if adapter_names(model):  # of the stage before
        merged = merge_adapters(model)
        run.trained = dict.fromkeys([n for n in run.trained if ".lora_" not in n] + merged)
    seed_all(spec.seed, "stage", stage.name)
    table = apply_rules(
        model, stage.trainable, lr=stage.optim.lr, id_of=run.processor.tokenizer.id_of
    )
    prepare(model, compute=spec.parallel)
    run.tables[stage.name] = table
    run.trained |= dict.fromkeys(plain(name) for name in table.names)
    data_spec = spec.data_of(stage)
    _announce(run, stage, table, packing=data_spec.packing)
    if run.ranks.rank:
        run.ranks.wait()  # the first rank measures the samples, the others read what it found
    dataset = run.open_data(data_spec)
    if not run.ranks.rank:
        run.ranks.wait()
    if state is not None:
        restore_weights(run, state)
    run.ranks.divide(model)
    schedule = dataset.schedule(global_batch=stage.global_batch, micro_batch=stage.micro_batch)
    total = stage.steps or schedule.num_steps(stage.epochs or 1)
    loader = dataset.loader(schedule, rank=run.ranks.data_rank, world=run.ranks.data_size)
    trainer = Trainer(
        model,
        stage=stage,
        table=table,
        data=loader,
        total=total,
        precision=spec.train.precision,
        seed=stream_seed(spec.seed, "objective", stage.name),
        ranks=run.ranks,
    )
    if state is not None:
        restore(run, trainer, state)
    _loop(run, number, trainer, dataset)
    run.ranks.join(model)
    run.skipped += [f"{one.id}: {one.reason}" for one in loader.skipped]
    run.skipped += [
        f"{name}, {one.id}: {one.reason}" for name, many in dataset.skipped.items() for one in many
    ]


def _loop(run: Run, number: int, trainer: Trainer, dataset: Dataset) -> None:
    """Updates of a stage, and what happens between them."""
    spec, stage = run.spec, trainer.stage
    begin = run.step - trainer.step
    meter = Meter(stage.name, first=begin, total=trainer.total)
    for sink in run.sinks:
        sink.stage(stage.name, first=begin, last=begin + trainer.total)

    def due(every: int | None) -> bool:
        return trainer.step == trainer.total or bool(every and trainer.step % every == 0)

    for update in trainer.fit():
        run.step += 1
        meter.add(update)
        run.stop.signal = run.ranks.largest([run.stop.signal or 0])[0] or None
        stopping = run.stop.signal is not None
        if due(spec.report.every) or stopping:
            run.say(meter.row())
        if dataset.validation is not None and due(spec.train.validate_every) and not stopping:
            batches = dataset.validation_loader(
                micro_batch=stage.micro_batch,
                rank=run.ranks.data_rank,
                world=run.ranks.data_size,
            )
            loss, count = trainer.evaluate(batches.epoch())
            row = {"kind": "validation", "stage": stage.name, "step": run.step, "loss": loss}
            run.say({**row, "supervised": count})
        if run.judge is not None and due(run.judge.spec.every) and not stopping:
            run.judge(stage.name)
        if due(spec.checkpoint.every) or stopping:
            save_checkpoint(run, number, trainer)
        if stopping:
            break
    run.counts.append({"stage": stage.name, "total": trainer.total, **meter.totals()})


def _announce(run: Run, stage: StageSpec, table: TrainableTable, *, packing: str) -> None:
    """Print and store the trainable table; print the arithmetic of a step."""
    for note in unused_sharding(run.spec.parallel, ranks=run.ranks.size):
        once(note)
    size = run.ranks.data_size
    line = f"stage {stage.name}: global_batch {stage.global_batch}"
    if packing == "none":
        times = accumulation(
            global_batch=stage.global_batch, micro_batch=stage.micro_batch, ranks=size
        )
        line += f" = micro_batch {stage.micro_batch} x ranks {size} x accumulation {times}"
    else:
        line += f", packed ({packing})"
    get_logger().info(line)
    if run.ranks.rank == 0:
        print_table(table.cells(), header=HEADER, title=f"trainable in {stage.name}")
        with writing(run.folder):
            write_tables(run.folder, run.tables)
