"""The page: what stands where, and what happens when something is pressed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
# gradio would summarise its last 10,000 events after every further one, for a page nobody opens
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")

import gradio as gr
from PIL.Image import Image, Resampling

from retinue.core.errors import MediaError, RetinueError
from retinue.demo.drawing import Segment, draw
from retinue.demo.t2i import Painter
from retinue.demo.ui.client import Model, RefusedError, Server
from retinue.demo.ui.roster import NOBODY, SPACING_S, Roster
from retinue.demo.ui.talk import Talk, Wish, pictures_of
from retinue.media.image import load_image

ALL_TOKENS = "all"
CSS = """
footer {display: none !important}
.gradio-container {max-width: 1280px !important}
/* gradio's own: one sends a picture to its maker's site, the other empties what is seen only */
[aria-label="Share"], #answer [aria-label="Clear"], #other [aria-label="Clear"] {
  display: none !important}
"""
FRAMES = 6
EVERY_S = 10.0
"""Seconds between two looks at the server's models."""
AT_ONCE = 32
"""Questions of different visitors that are answered side by side."""
LEAST = 360
"""Pixels that the longer side of a drawn picture should have."""

Talks = tuple[Talk, Talk]
Shown = tuple[list[dict[str, Any]], list[dict[str, Any]], Talks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a page may have besides. style: of coordinates in answers, None = as they look."""

    segment: Segment | None = None
    paint: Painter | None = None
    style: str | None = None
    title: str = "retinue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What the page does. Pictures it makes are files in `folder`, which the page may read."""

    client: Server
    extras: Extras
    folder: Path

    def ask(
        self, talks: Talks, box: dict[str, Any] | None, frames: int, model: str | None, *rest: Any
    ) -> Iterator[Any]:
        """A new question to one model or two, answers as they come; the box is empty at once."""
        chosen = somebody(model)
        text, files = (box or {}).get("text", "").strip(), (box or {}).get("files") or []
        if not text and not files:
            raise gr.Error("Write a question, or add a picture.", print_exception=False)
        try:
            pictures = pictures_of(files, frames=int(frames), folder=self.folder)
        except MediaError as error:
            raise gr.Error(str(error), print_exception=False) from None
        for talk in talks:
            talk.ask(text or "What is this?", pictures)
        box_after: Any = None
        for now in self.answer(talks, chosen, *rest):
            yield *now, box_after
            box_after = gr.skip()  # by now it may hold the next question

    def again(self, talks: Talks, model: str | None, *rest: Any) -> Iterator[Any]:
        """The last question once more."""
        chosen = somebody(model)
        if not talks[0].turns:
            raise gr.Error("There is no question yet.", print_exception=False)
        for talk in talks:
            if talk.turns:
                talk.change(answer="", note="", shown=())
        yield from self.answer(talks, chosen, *rest)

    def answer(
        self, talks: Talks, model: str, other: str, tokens: str, drawn: bool, *rest: Any
    ) -> Iterator[Any]:
        """Streams of the chosen models, one piece of each in turn."""
        budget = None if tokens == ALL_TOKENS else int(tokens)
        names = [model] + [other] * (other != NOBODY)
        wishes = [wish_of(name, budget, *rest) for name in names]
        running = {number: self.pieces(talks[number], wish) for number, wish in enumerate(wishes)}
        yield shown(talks)
        while running:
            for number, pieces in list(running.items()):
                if next(pieces, None) is None:
                    del running[number]
                    if drawn:
                        self.draw(talks[number])
                yield shown(talks)

    def pieces(self, talk: Talk, wish: Wish) -> Iterator[bool]:
        """Put an answer into the last turn piece by piece."""
        text = ""
        try:
            for piece in self.client.stream(wish.body(talk.turns)):
                if piece.text or piece.anew:
                    text = piece.text if piece.anew else text + piece.text
                note = spent(piece.usage) or piece.note or talk.turns[-1].note
                talk.change(answer=text, note=note)
                yield True
        except RefusedError as refusal:
            talk.change(note=f"No answer: {refusal}")

    def draw(self, talk: Talk) -> None:
        """Boxes, points and poses that the answer names, on the newest picture."""
        pictures, turn = talk.pictures(), talk.turns[-1]
        if not pictures or not turn.answer:
            return
        try:
            picture = draw(
                load_image(Path(pictures[-1])),
                turn.answer,
                style=self.extras.style,
                segment=self.extras.segment,
            )
        except RetinueError as error:
            talk.change(note=f"{turn.note} · not drawn: {error}")
            return
        if picture is not None:
            talk.change(shown=(*turn.shown, self.kept(enlarged(picture))))

    def paint(self, talks: Talks) -> Shown:
        """The last answer as a prompt for the text-to-image pipeline."""
        assert self.extras.paint is not None
        turns = talks[0].turns
        if not turns or not turns[-1].answer:
            raise gr.Error("Ask for a description first.", print_exception=False)
        try:
            picture = self.extras.paint(turns[-1].answer)
        except RetinueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        talks[0].change(shown=(*turns[-1].shown, self.kept(picture)))
        return shown(talks)

    def kept(self, picture: Image) -> str:
        handle, path = tempfile.mkstemp(suffix=".png", dir=self.folder)
        os.close(handle)
        picture.save(path)
        return path


def somebody(model: str | None) -> str:
    """The chosen model. Raises gradio's error where there is none to choose."""
    if not model:
        raise gr.Error("No model is there yet.", print_exception=False)
    return model


def enlarged(picture: Image) -> Image:
    """Small pictures several times as large, so that lines on them can be seen."""
    times = max(1, LEAST // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Resampling.NEAREST)


def wish_of(
    name: str,
    budget: int | None,
    most: float,
    temperature: float,
    top_p: float,
    top_k: float,
    repetition: float,
    beams: float,
    length: float,
    seed: float,
    turns: float,
    system: str | None,
) -> Wish:
    return Wish(
        model=name,
        visual_tokens=budget,
        max_tokens=int(most),
        temperature=float(temperature),
        top_p=float(top_p),
        top_k=int(top_k),
        repetition_penalty=float(repetition),
        num_beams=int(beams),
        length_penalty=float(length),
        seed=None if seed < 0 else int(seed),
        turns=int(turns),
        system=(system or "").strip(),
    )


def spent(usage: dict[str, Any] | None) -> str:
    """What an answer took, for the line below it."""
    if not usage:
        return ""
    parts = [f"{usage['completion_tokens']} tokens"] if "completion_tokens" in usage else []
    if usage.get("visual_tokens"):
        parts.append(f"{usage['visual_tokens']} visual tokens")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cached:
        parts.append(f"{cached} tokens not read again")
    return ", ".join(parts)


def shown(talks: Talks) -> Shown:
    return talks[0].lines(), talks[1].lines(), talks


def cleared() -> Any:
    return [], [], (Talk(), Talk()), None


def steps_of(budgets: tuple[int, ...]) -> list[str]:
    """Budgets of a model as the slider's steps, all tokens last."""
    return [str(number) for number in sorted(budgets)[:-1]] + [ALL_TOKENS]


def page(
    client: Server,
    *,
    models: list[Model] | None = None,
    extras: Extras | None = None,
    every: float = EVERY_S,
) -> gr.Blocks:
    """The web chat over a server, asked for its models every so many seconds.

    models: those it begins with, None = ask it now. Raises EnvError where none answers.
    """
    extras = extras or Extras()
    roster = Roster(
        server=client,
        models=client.models() if models is None else models,
        spacing=min(SPACING_S, every / 2),
    )
    folder = Path(tempfile.mkdtemp(prefix="retinue-ui-"))
    do = Handlers(client=client, extras=extras, folder=folder)
    names = roster.names
    with gr.Blocks(title=extras.title, analytics_enabled=False, fill_height=True) as blocks:
        talks = gr.State((Talk(), Talk()))
        gr.Markdown(f"## {extras.title}")
        with gr.Row():
            with gr.Column(scale=3):
                with gr.Row():
                    left = gr.Chatbot(
                        label=names[0] if names else "Answer",
                        height="min(62vh, 640px)",
                        buttons=["copy"],
                        elem_id="answer",
                    )
                    right = gr.Chatbot(
                        label=NOBODY,
                        height="min(62vh, 640px)",
                        buttons=["copy"],
                        visible=False,
                        elem_id="other",
                    )
                box = gr.MultimodalTextbox(
                    file_count="multiple",
                    file_types=["image", "video"],
                    placeholder="Ask, and drop pictures here.",
                    show_label=False,
                    elem_id="question",
                )
                with gr.Row():
                    stop = gr.Button("Stop", elem_id="stop", min_width=90, size="md")
                    again = gr.Button("Regenerate", elem_id="again", min_width=90, size="md")
                    clear = gr.Button("Clear", elem_id="clear", min_width=90, size="md")
                    paint = gr.Button(
                        "Paint the answer", visible=extras.paint is not None, elem_id="paint"
                    )
            with gr.Column(scale=1, min_width=280):
                model = gr.Dropdown(
                    names, value=names[0] if names else None, label="Model", elem_id="model"
                )
                other = gr.Dropdown(
                    [NOBODY, *names], value=NOBODY, label="Ask beside it", elem_id="beside"
                )
                steps = steps_of(roster.budgets(names[0] if names else None))
                tokens = gr.State(ALL_TOKENS)
                budget = gr.Slider(
                    1, max(2, len(steps)), value=len(steps), step=1, elem_id="budget",
                    label=label_of(steps, len(steps)), visible=len(steps) > 1,
                )  # fmt: skip
                drawn = gr.Checkbox(value=True, label="Draw boxes, points and poses")
                with gr.Accordion("Parameters", open=False):
                    controls = parameters()
        held = gr.State(steps)
        inputs = [model, other, tokens, drawn, *controls[1:]]
        outputs = [left, right, talks]
        asked = box.submit(
            do.ask,
            [talks, box, controls[0], *inputs],
            [*outputs, box],
            concurrency_limit=AT_ONCE,
            show_progress_on=[left, right],
        )
        repeated = again.click(do.again, [talks, *inputs], outputs, concurrency_limit=AT_ONCE)
        stop.click(None, cancels=[asked, repeated])
        clear.click(cleared, None, [left, right, talks, box], cancels=[asked, repeated])
        if extras.paint is not None:
            paint.click(do.paint, talks, outputs)
        # What is quick answers its own request, and leaves the stream of queued events alone.
        other.change(
            lambda name: gr.update(visible=name != NOBODY, label=name), other, right, queue=False
        )
        model.change(
            lambda name: (gr.update(label=name), *fresh(steps_of(roster.budgets(name)))),
            model,
            [left, budget, tokens, held],
            queue=False,
        )
        budget.change(moved, [budget, held], [budget, tokens], queue=False)
        lists = [model, other, gr.State(names)]
        blocks.load(roster.opened, lists, lists, show_progress="hidden", queue=False)
        # That stream closes after its last event, and gradio's browser code can take it for open
        # when another event joins just then: no word of that one comes before the next stream is
        # opened. A look at the models opens it, if it does not wait for the end of the last look.
        gr.Timer(every).tick(
            roster.changed, lists, lists, show_progress="hidden", trigger_mode="multiple"
        )
    return blocks


def parameters() -> list[Any]:
    """The less used controls: frames of a video, then the parameters of `wish_of` in its order."""
    return [
        gr.Slider(1, 32, value=FRAMES, step=1, label="Frames of a video"),
        gr.Slider(1, 4096, value=256, step=1, label="Longest answer, tokens"),
        gr.Slider(0, 2, value=0, step=0.05, label="Temperature (0: likeliest)"),
        gr.Slider(0.05, 1, value=1, step=0.05, label="Top p"),
        gr.Slider(0, 200, value=0, step=1, label="Top k (0: all)"),
        gr.Slider(1, 2, value=1, step=0.05, label="Repetition penalty"),
        gr.Slider(1, 8, value=1, step=1, label="Beams"),
        gr.Slider(-2, 3, value=1, step=0.1, label="Length penalty of beams"),
        gr.Number(-1, precision=0, label="Seed (-1: any)"),
        gr.Slider(1, 32, value=8, step=1, label="Turns remembered"),
        gr.Textbox(label="System message", lines=2),
    ]


def label_of(steps: list[str], place: int) -> str:
    chosen = steps[min(place, len(steps)) - 1]
    return f"Visual tokens per view: {chosen}"


def fresh(steps: list[str]) -> tuple[Any, str, list[str]]:
    """The slider for another model."""
    last = len(steps)
    slider = gr.update(
        maximum=max(2, last), value=last, label=label_of(steps, last), visible=last > 1
    )
    return slider, ALL_TOKENS, steps


def moved(place: float, steps: list[str]) -> tuple[Any, str]:
    """The slider's label and the budget it stands for."""
    chosen = steps[min(int(place), len(steps)) - 1]
    return gr.update(label=label_of(steps, int(place))), chosen
