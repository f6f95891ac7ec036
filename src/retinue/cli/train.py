"""`retinue train RECIPE`: build or load the model, run the stages, write the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retinue.cli.common import Overrides, Quant, examples, note, verb

if TYPE_CHECKING:
    from retinue.data.dataset import Dataset
    from retinue.data.spec import DataSpec
    from retinue.processor import Processor
    from retinue.train.context import RunResult
    from retinue.train.evaluator import Evaluation, Evaluator, SaveModel
    from retinue.train.spec import RunSpec

app = verb()


@app.command(
    "train",
    epilog=examples(
        "retinue train llava15-7b/lora data.sources.0.path=mine.json --out runs/mine",
        "retinue train my.yaml train.stages.sft.steps=100 --device cpu",
        "retinue train llava15-7b/lora --quant bnb4",
        "retinue train moss2-2b/sft --deepspeed zero2.json",
        "retinue train my.yaml parallel.shard=reshard --processes 4",
        "retinue train my.yaml train.evaluate.data=held-out.jsonl train.evaluate.every=200",
        "torchrun --nproc-per-node 8 -m retinue train my.yaml parallel.shard=keep --tp 2",
        "retinue train params_mm_llava_phase1.yaml --mode train --model-dir runs/phase1",
    ),
)
def train_verb(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `ls recipes`.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: report.dir, or runs/RECIPE.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps", "gpu"],
        typer.Option(help="Where to compute; gpu is cuda. `retinue doctor` says what auto is."),
    ] = "auto",
    quant: Quant = None,
    mode: Annotated[
        Literal["train", "eval", "train_and_eval", "eval_all"],
        typer.Option(help="For a params file of ModelZoo: what to do with it."),
    ] = "train",
    model_dir: Annotated[
        Path | None, typer.Option("--model-dir", "--model_dir", help="ModelZoo's name of --out.")
    ] = None,
    checkpoint_path: Annotated[
        str | None,
        typer.Option(
            "--checkpoint-path",
            "--checkpoint_path",
            help="For a params file: start from, or evaluate, this .mdl or folder.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="For a params file: folder of the tokenizer.")
    ] = None,
    validate_only: Annotated[
        bool,
        typer.Option(
            "--validate-only",
            "--validate_only",
            help="For a params file: resolve it, build without weights, read a batch, end.",
        ),
    ] = False,
    deepspeed: Annotated[
        Path | None, typer.Option(help="A DeepSpeed JSON whose settings the recipe takes over.")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes on this machine that share every update; default: what the recipe's "
            "`parallel` section asks for.",
        ),
    ] = None,
    tp: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that divide every layer among them: parallel.tensor."),
    ] = None,
) -> None:
    """Train a model. Run the same command again to go on where it was stopped.

    Processes come from torchrun, from srun, or from --processes; `parallel` in the recipe says what
    they divide. A params file of ModelZoo's mm_simple is known by what it holds and runs unchanged.
    """
    from retinue.cli.params import params_of
    from retinue.parallel.launch import adopt

    adopt()
    out, device = model_dir or out, "cuda" if device == "gpu" else device
    params = params_of(recipe)
    if params is not None:
        from retinue.cli.params_run import run_params

        code = run_params(
            params,
            name=recipe,
            mode=mode,
            folder=out or Path("model_dir"),
            device=device,
            checkpoint=checkpoint_path,
            tokenizer=tokenizer,
            validate_only=validate_only,
        )
        raise typer.Exit(code)
    from retinue.cli.launch import declared, replicas
    from retinue.cli.run_spec import compose_run

    overrides = [*(overrides or []), *([f"train.quant={quant}"] if quant else [])]
    overrides += [f"parallel.tensor={tp}"] if tp else []
    _, spec = compose_run(recipe, overrides)
    if deepspeed is not None:
        from retinue.train.deepspeed import read_deepspeed

        mapped = read_deepspeed(deepspeed, spec)
        note(str(mapped))
        overrides = [*mapped.overrides, *overrides]
        _, spec = compose_run(recipe, overrides)
    again = ["train", recipe, *overrides, "--device", device]
    again += ["--out", str(out)] if out else []
    with replicas(processes or declared(spec.parallel), again):
        result = train(spec, name=recipe, out=out, device=device)
        from retinue.parallel.mesh import leave

        leave()
    if result.model is not None:
        note(f"model: {result.model}\nnext:  retinue chat {result.model} --image PICTURE")
    raise typer.Exit(result.exit_code)


def train(
    spec: RunSpec,
    *,
    name: str = "run",
    out: Path | None = None,
    device: str = "auto",
    evaluator: Evaluator | None = None,
    prepared: tuple[Any, Processor] | None = None,
) -> RunResult:
    """Run a parsed recipe; `prepared`: a model and processor already in memory.

    With train.quant the model folder holds what was trained, and names the base's full weights.
    A failure leaves run.json with its status and the last good checkpoint. Raises RetinueError.
    """
    import torch

    from retinue.cli.asking import asker
    from retinue.core.errors import RetinueError
    from retinue.core.files import write_json
    from retinue.core.log import rank
    from retinue.core.paths import run_dir
    from retinue.hub.build import build
    from retinue.ops.backend import default_threads, pick_device
    from retinue.ops.malloc import tune_malloc
    from retinue.parallel.grid import ranks_of_launch
    from retinue.parallel.launch import alone, peers_lost
    from retinue.train.run import run_stages

    folder = Path(out or spec.report.dir or run_dir(name))
    folder.mkdir(parents=True, exist_ok=True)
    place, why = pick_device(device)
    ranks = ranks_of_launch(spec.parallel, place)
    # what is divided goes to its devices part by part
    home = ranks.device if spec.parallel.shard == "none" or ranks.size == 1 else torch.device("cpu")
    home = home or place
    torch.set_num_threads(default_threads())
    tune_malloc()
    note(f"device: {place} ({why})")
    try:
        judge = asker(spec.train.evaluate)
        assert prepared is None or spec.train.quant is None, "what is in memory has no base"
        if prepared is None:
            report = build(spec.model, device=home, quant=spec.train.quant)
            note(str(report))
            prepared = (report.model, report.processor)
        model, processor = prepared
        return run_stages(
            spec,
            model=model.to(home),
            processor=processor,
            open_data=opener(processor, folder=folder),
            folder=folder,
            save_model=saver(spec, model),
            evaluator=evaluator or sample_answers(spec.data, folder=folder),
            judge=judge,
            ranks=ranks,
        )
    except Exception as error:
        if not isinstance(error, RetinueError) and not peers_lost(error):
            raise
        told = error if isinstance(error, RetinueError) else alone(error)
        with suppress(RetinueError):  # a full disk is told as what it stopped
            if rank() == 0:
                write_json(folder / "run.json", {"status": "failed", "error": str(told)})
        raise


def saver(spec: RunSpec, model: Any) -> SaveModel:
    """How a run's model is written: whole, or on top of its base, as quantized ones always are.

    Raises ConfigError for a model that has no base, or adapters that a later stage folds in.
    """
    from functools import partial

    from retinue.core.errors import ConfigError
    from retinue.hub.save import save
    from retinue.model.freeze import LoraRule, trained_names

    quant = spec.train.quant
    if quant is None and spec.checkpoint.holds == "all":
        return save
    stages = spec.train.stages
    early = [s.name for s in stages[:-1] for r in s.trainable.values() if isinstance(r, LoraRule)]
    if not spec.model.get("from") or spec.model.get("adapters") or early:
        raise ConfigError(
            f"adapters of stage {early[0]!r} are folded into weights"
            if early
            else "no model.from, or adapters on it",
            where="checkpoint.holds: trained",
            rule="what is not written must be in the model that the run starts from",
            fix="set checkpoint.holds to all",
        )
    base = ",".join(absolute(part) for part in str(spec.model["from"]).split(","))
    towers = (spec.model.get("encoders") or {}).items()
    under = spec.model.get("base")
    beside = {
        "on": absolute(str(under)) if under else None,
        "encoders": {name: absolute(place_of(part)) for name, part in towers} or None,
    }
    names = {n for stage in stages for n in trained_names(model, stage.trainable)}
    facts = {"quant": quant} if quant else {}
    return partial(save, base=base, changed=names, beside=beside, provenance=facts)


def place_of(part: Any) -> str:
    """Where a part of a model section comes from, in any of its spellings."""
    return str(part if isinstance(part, str) else part.get("from") or part.get("path"))


def absolute(path: str) -> str:
    """A local path from the root on; a hub id as it is."""
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() else path


def opener(processor: Processor, *, folder: Path) -> Callable[[DataSpec], Dataset]:
    """Opens a recipe's data; lengths are cached in the run's folder."""
    from retinue.cli.answering import progress
    from retinue.data.dataset import open_dataset
    from retinue.train.prepare import check_room

    def open_data(spec: DataSpec) -> Dataset:
        with ExitStack() as stack:

            def bar_of(source: str) -> Callable[[int, int], None]:
                bars: list[Callable[[int], None]] = []

                def say(done: int, total: int) -> None:
                    if not bars:
                        title = f"reading {source}"
                        bars.append(stack.enter_context(progress(title, total=total)))
                    bars[0](done)

                return say

            data = open_dataset(spec, processor, cache=folder / "cache", progress=bar_of)
        if any(data.train.sizes.views):
            check_room(processor, max_tokens=spec.max_tokens)
        return data

    return open_data


def sample_answers(data: DataSpec, *, folder: Path, count: int = 8) -> Evaluator:
    """An evaluator for the report page: a few questions of the data, answered."""

    def evaluate(model: Any, processor: Any) -> Evaluation:
        from retinue.decode.offline import generate
        from retinue.decode.sampling import SamplingParams
        from retinue.train.evaluator import Answer, Evaluation

        dataset = opener(processor, folder=folder)(data)
        mixture = dataset.validation or dataset.train
        picked = [question_of(mixture[i]) for i in range(min(count, len(mixture)))]
        asked = [pair for pair in picked if pair is not None]
        params = SamplingParams(max_new_tokens=64)
        samples = [sample for sample, _ in asked]
        made = generate(  # the page shows what it can: broken samples are training's to refuse
            model, processor, samples, params=params, skipped=lambda *_: None
        )
        texts = {completion.number: completion.text for completion in made}
        answers = [
            Answer(
                question=sample.messages[-1].text.strip(),
                answer=texts[number],
                reference=reference,
                pictures=[
                    media.source
                    for media in sample.media
                    if media.kind == "image" and isinstance(media.source, str)
                ],
            )
            for number, (sample, reference) in enumerate(asked)
            if number in texts
        ]
        return Evaluation(answers=answers)

    return evaluate


def question_of(sample: Any) -> tuple[Any, str] | None:
    """A training sample up to its first answer, and that answer."""
    from dataclasses import replace

    for number, message in enumerate(sample.messages):
        if message.role == "assistant":
            return replace(sample, messages=sample.messages[:number]), message.text
    return None
