"""`retinue data world OUT`: TinyWorld's pictures and questions on disk, for any of its tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retinue.cli.common import Overrides, examples, note

if TYPE_CHECKING:
    from retinue.world.options import WorldOptions

Film = Literal["frames", "mkv", "mp4"]
Told = Literal["short", "dense"]
EPILOG = examples(
    "retinue data world worlds/text --tasks ocr --words 1 --size 96",
    "retinue data world worlds/boxes --tasks rec,reg,det --pictures 8000 max_objects=3",
    "retinue data world worlds/pictures --tasks multi_image,naming --told short inline=true",
    "retinue data world worlds/video --tasks video,colour,shape --film mkv --pictures 8000",
)


def world(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    overrides: Overrides = None,
    tasks: Annotated[
        str, typer.Option(help="Names with commas between, of `retinue ls tasks`.")
    ] = "caption_dense,colour,shape,place,exist,count,rec",
    pictures: Annotated[int, typer.Option(min=1, help="Training pictures to draw.")] = 4000,
    questions: Annotated[int, typer.Option(min=1, help="Unseen questions, at least.")] = 500,
    turns: Annotated[int, typer.Option(min=1, help="Most questions about a picture.")] = 6,
    size: Annotated[int, typer.Option(min=24, help="Side of a picture, in pixels.")] = 72,
    words: Annotated[int, typer.Option(min=0, max=2, help="Words in each picture.")] = 0,
    figures: Annotated[int, typer.Option(min=0, max=2, help="Stick figures in each.")] = 0,
    film: Annotated[
        Film, typer.Option(help="Videos as lists of frames, or files: mkv (lossless) or mp4.")
    ] = "frames",
    told: Annotated[
        Told | None,
        typer.Option(help="Also train.told.json: short or dense captions instead of pictures."),
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=300, help="Ids of the tokenizer.")] = 512,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures and questions.")] = 0,
) -> None:
    """Draw TinyWorld: train.json, test.jsonl, images and a tokenizer; KEY=VALUE are its options.

    The keys are the fields of WorldOptions, such as max_objects=2, word_letters=[2,3],
    boxes=llava, prompts=llava.
    """
    from retinue.cli.answering import progress
    from retinue.cli.tiny_world import make_data, make_tokenizer

    options = options_of(overrides or [], size=size, words=words, figures=figures)
    with progress("drawing", total=pictures) as shown:
        train, test = make_data(
            out,
            pictures=pictures,
            questions=questions,
            seed=seed,
            progress=lambda done, _: shown(done),
            options=options,
            tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()),
            turns=turns,
            film=film,
            told=told,
        )
    text = train.with_suffix(".told.json") if told else train
    make_tokenizer(text, vocabulary=vocabulary).save(out / "tokenizer")
    note(f"training data: {train}\nquestions:     {test}\ntokenizer:     {out / 'tokenizer'}")
    note(f"next:          retinue data check {train}")


def options_of(overrides: list[str], *, size: int, words: int, figures: int) -> WorldOptions:
    """The options with the changes on top. Raises ConfigError naming every wrong one."""
    from retinue.core.compose import compose
    from retinue.world.options import WorldOptions

    fields = {"size": size, "words": words, "figures": figures}
    return WorldOptions.parse(fields | compose(None, overrides).data, where="data world")
