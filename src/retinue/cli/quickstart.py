"""`retinue quickstart`: the whole thing on TinyWorld, on this machine, in minutes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli.common import Device, examples, verb

if TYPE_CHECKING:
    from retinue.processor import Processor
    from retinue.train.spec import RunSpec

app = verb()

RECIPE = "tiny/quickstart"
STAGE = "learn"
MOST_PROCESSES, ALONG = 4, 1.72
"""Replicas that a small batch can feed; what they lose to shared cores and to each other."""
LEAST, MEASURED, WARM = 20, 10, 4
"""Fewest updates of a run; updates that are timed, and those before them that are not."""


@app.command(
    "quickstart",
    epilog=examples("retinue quickstart", "retinue quickstart --minutes 1 --out /tmp/quick"),
)
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for data, model and report.")] = Path(
        "quickstart"
    ),
    minutes: Annotated[float, typer.Option(min=0.01, help="Training time to stay within.")] = 3.4,
    pictures: Annotated[int, typer.Option(min=64, help="Training pictures to draw.")] = 32000,
    questions: Annotated[int, typer.Option(min=10, help="Unseen questions to ask.")] = 1200,
    seed: Annotated[int, typer.Option(help="Of pictures, weights and order.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw a world, train a small multimodal model on it, test it, and ask it about a picture."""
    from retinue.cli.answering import progress
    from retinue.cli.tiny_world import make_data, make_tokenizer

    data = out / "data"
    say(1, f"Drawing {pictures:,} pictures of TinyWorld into {data}")
    with progress("drawing", total=pictures) as shown:
        train_file, test_file = make_data(
            data,
            pictures=pictures,
            questions=questions,
            seed=seed,
            progress=lambda done, _: shown(done),
        )
    tokenizer = make_tokenizer(train_file)
    tokenizer.save(data / "tokenizer")
    result = learn(out, train_file, test_file, minutes=minutes, seed=seed, device=device)
    typer.echo(result)


def learn(
    out: Path, train_file: Path, test_file: Path, *, minutes: float, seed: int, device: str
) -> str:
    """Steps 2 to 5: build, train, test, ask. Returns what to do next."""
    from retinue.cli.launch import replicas
    from retinue.cli.run_spec import compose_run
    from retinue.cli.train import train
    from retinue.core.log import print_table
    from retinue.eval.results import table
    from retinue.hub.build import build
    from retinue.ops.backend import default_threads, pick_device

    say(2, "Building the model")
    import torch

    torch.set_num_threads(default_threads())
    place, why = pick_device(device)
    changes = [
        f"data.sources.0.path={train_file}",
        f"model.tokenizer.from={test_file.parent / 'tokenizer'}",
        f"model.seed={seed}",
        f"data.seed={seed}",
        f"seed={seed}",
    ]
    _, spec = compose_run(RECIPE, changes)
    made = build(spec.model, device=place)
    typer.echo(f"{made}\ndevice: {place} ({why})")
    shutil.rmtree(out / "run" / "checkpoints", ignore_errors=True)
    count = min(MOST_PROCESSES, default_threads()) if place.type == "cpu" else 1
    torch.set_num_threads(max(1, default_threads() // count))
    most = spec.train.stages[0].steps or LEAST
    pace = seconds_per_update(made.model, made.processor, spec, folder=out / "run")
    pace = pace / count * (ALONG if count > 1 else 1)
    steps = max(LEAST, min(most, int(minutes * 60 / pace)))
    say(
        3,
        f"Training: {steps} updates of {pace:.2f} s in {count} "
        f"process{'es' * (count > 1)}, about {steps * pace / 60:.1f} minutes",
    )
    changes += [f"stages.{STAGE}.steps={steps}", "checkpoint.resume=never"]
    _, spec = compose_run(RECIPE, changes)
    tester = Tester(test_file, out / "test" / "result.json")
    begin = time.monotonic()
    place_of_run = ["--out", str(out / "run"), "--device", device]
    with replicas(count, ["train", RECIPE, *changes, *place_of_run]):
        done = train(
            spec,
            name="quickstart",
            out=out / "run",
            device=device,
            evaluator=tester,
            prepared=(made.model, made.processor),
        )
    if done.model is None:
        raise typer.Exit(done.exit_code)
    say(4, f"{tester.count} questions about unseen pictures ({time.monotonic() - begin:.0f} s)")
    header, lines = table(tester.document)
    print_table(lines, header=header)
    say(5, "A fresh picture")
    ask(made.model, made.processor, out / "fresh.png", seed=seed)
    return closing(done.model, out, test_file)


def seconds_per_update(model: Any, processor: Processor, spec: RunSpec, *, folder: Path) -> float:
    """Wall time of one update, loading included, measured on a copy of the model."""
    from copy import deepcopy

    from retinue.cli.train import opener
    from retinue.model.freeze import apply_rules
    from retinue.train.trainer import Trainer

    stage, copy = spec.train.stages[0], deepcopy(model)
    copy.train()
    dataset = opener(processor, folder=folder)(spec.data_of(stage))
    schedule = dataset.schedule(global_batch=stage.global_batch, micro_batch=stage.micro_batch)
    trainer = Trainer(
        copy,
        stage=stage,
        table=apply_rules(copy, stage.trainable, lr=stage.optim.lr),
        data=dataset.loader(schedule),
        total=WARM + MEASURED,
        precision=spec.train.precision,
    )
    times = [time.monotonic() for _ in trainer.fit()]
    gaps = sorted(
        late - early for early, late in zip(times[WARM - 1 :], times[WARM:], strict=False)
    )
    return gaps[len(gaps) // 2]


class Tester:
    """Asks the test questions when training ends; its document is the result table."""

    def __init__(self, rows: Path, target: Path) -> None:
        self.rows, self.target = rows, target
        self.document: dict[str, Any] = {}
        self.count = 0

    def __call__(self, model: Any, processor: Any) -> Any:
        from retinue.cli.scoring import write_result
        from retinue.decode.sampling import SamplingParams
        from retinue.eval.questions import read_questions
        from retinue.train.evaluator import Answer, Evaluation

        asked = [q for q in read_questions(self.rows) if not q.task.startswith("caption")]
        self.count = len(asked)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.document = write_result(
            model,
            processor,
            asked,
            self.target,
            params=SamplingParams(max_new_tokens=16),
            batch_size=64,
            restart=True,
            with_baseline=True,
        )
        scores = {name: own["score"] for name, own in self.document["tasks"].items()}
        return Evaluation(metrics=scores, answers=[*self.shown(asked, Answer)])

    def shown(self, asked: Any, answer: Any) -> Any:
        """Two answers of each task, for the report page."""
        import json

        from retinue.cli.scoring import rows_path

        lines = rows_path(self.target).read_text("utf-8").splitlines()
        seen: dict[str, int] = {}
        for question, line in zip(asked, lines, strict=True):
            seen[question.task] = seen.get(question.task, 0) + 1
            if seen[question.task] > 2:
                continue
            row = json.loads(line)
            yield answer(
                question=row["question"],
                answer=row["text"],
                reference=row["references"][0],
                pictures=[media.source for media in question.sample.media],
            )


def ask(model: Any, processor: Processor, file: Path, *, seed: int) -> None:
    """Ask the model about a picture that is in no split, and print what is true beside it."""
    from retinue.cli.tiny_world import fresh_picture, look
    from retinue.decode.chat import Chat
    from retinue.decode.sampling import SamplingParams

    fresh = fresh_picture(seed=seed)
    fresh.picture.save(file)
    shown = look(fresh.picture)
    typer.echo(f"{shown}\n  {file}" if shown else f"  {file}")
    for question, truth in fresh.turns:
        chat = Chat(model, processor, params=SamplingParams(max_new_tokens=80))
        answer = "".join(chat.ask(question, images=[fresh.picture]))
        mark = "" if answer == truth else f"    (true: {truth})"
        typer.echo(f"  you:   {question}\n  model: {answer}{mark}")


def closing(model: Path, out: Path, test_file: Path) -> str:
    """What the user may try next."""
    return (
        "\nNext:\n"
        f"  retinue chat {model} --image {out / 'fresh.png'}\n"
        f"  retinue eval {model} tinyworld --tasks-root {out}   a page of its answers\n"
        f"  open {out / 'run' / 'report.html'}            the loss curve and sample answers\n"
        "  retinue data check mine.json          then train on your own pictures:\n"
        "  retinue cp tiny/quickstart . && retinue train quickstart.yaml "
        "data.sources.0.path=mine.json"
    )


def say(step: int, text: str) -> None:
    typer.echo(f"\n[{step}/5] {text}")
