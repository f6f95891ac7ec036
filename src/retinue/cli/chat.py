"""`retinue chat PATH`: talk to a model about pictures."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retinue.cli import answering as opt
from retinue.cli import budgets, places
from retinue.cli.common import Device, Quant, QuantEncoders, QuantHead, examples, note, verb
from retinue.cli.sharing import TensorParallel, sharing
from retinue.core.errors import RequestError, RetinueError

if TYPE_CHECKING:
    from retinue.decode.budget import Budget
    from retinue.decode.chat import Chat

app = verb()

HELP = """\
/image PATH-or-URL   show a picture with the next question (several: repeat)
/video PATH          the same for a video, or a folder of its frames
/reset               forget the conversation and its pictures
/tokens N            visual tokens per view of every picture; auto or default instead of N;
                     alone: what this model can do
/system TEXT         another system prompt, in a new conversation
/paint REQUEST       ask, and have the answer painted (needs --t2i)
/save FILE           write the conversation as a row of chat JSONL
/help                this list
/quit                end (so do an empty line and the end of input)"""

Read = Callable[[str], str]


@app.command(
    epilog=examples(
        "retinue chat runs/quickstart/model --image photo.jpg",
        "retinue chat runs/quickstart/model --image a.png --image b.png --ask 'What differs?'",
        "retinue chat runs/video/model --video clip.mp4 --ask 'Which way does the circle move?'",
        "retinue chat mucai/llava-v1.5-7b-m3 --image photo.jpg --visual-tokens 36",
        "retinue chat runs/sphinx-13b/model --image photo.jpg --tp 2",
        "torchrun --nproc-per-node 2 -m retinue chat runs/sphinx-13b/model --ask 'Who are you?'",
        "retinue chat sphinx --image a.jpg --ask 'Detect all people.' --draw out.png --sam sam.pth",
        "retinue chat sphinx --t2i http://localhost:7000/v1 --draw new.png --ask 'A prompt for a "
        "painting of a harbour.'",
    )
)
def chat(
    path: opt.ModelPath,
    image: Annotated[
        list[str] | None, typer.Option(help="Picture of the first question; may repeat.")
    ] = None,
    video: Annotated[
        list[str] | None,
        typer.Option(help="Video (file or folder of frames) of the first question; may repeat."),
    ] = None,
    video_as: opt.VideoAs = None,
    ask: Annotated[
        str | None, typer.Option(help="One question: print the answer and stop.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    template: opt.Template = None,
    draw: places.Draw = None,
    sam: places.Sam = None,
    box_style: places.BoxStyle = None,
    t2i: places.TextToImage = None,
    visual_tokens: budgets.VisualTokens = None,
    auto_threshold: budgets.AutoThreshold = None,
    max_new_tokens: opt.MaxNewTokens = 512,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    stop: opt.Stop = None,
    seed: opt.Seed = 0,
    adapter: opt.Adapters = None,
    base: opt.Base = None,
    device: Device = "auto",
    tp: TensorParallel = None,
    dtype: opt.Dtype = "auto",
    quant: Quant = None,
    quant_encoders: QuantEncoders = False,
    quant_head: QuantHead = False,
) -> None:
    """Talk to a model, with pictures; commands begin with a slash (/help)."""
    for source in image or []:
        look(source)
    for source in video or []:
        look_video(source)
    from retinue.decode.chat import Chat
    from retinue.decode.sampling import SamplingParams

    drawn = places.Places(draw, sam=sam, style=box_style, t2i=t2i)
    params = SamplingParams.parse(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
            "stop": tuple(stop or ()),
            "seed": seed,
        },
        where="chat",
    )
    with sharing(tp) as shared:
        model, processor = opt.load_model(
            path,
            device=device,
            dtype=dtype,
            template=template,
            adapters=adapter,
            base=base,
            quant=quant,
            quant_encoders=quant_encoders,
            quant_head=quant_head,
            video=video_as,
            shared=shared,
        )

        def choice(asked: str | None) -> Budget:
            threshold = auto_threshold if asked == "auto" else None
            return budgets.chosen(processor, asked, path=path, threshold=threshold)

        talk = Chat(model, processor, params=params, system=system, budget=choice(visual_tokens))
        session = Session(talk, images=image or [], videos=video or [], choice=choice, drawn=drawn)
        if ask is not None:
            if t2i is not None:
                session.paint(ask)
            else:
                session.answer(ask)
            return
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            import readline  # noqa: F401  line editing for input()

            note("Ask; /image PATH shows a picture, /help lists commands, an empty line ends.")
        session.talk(input if interactive else piped, forgiving=interactive)


def piped(prompt: str) -> str:
    """A line of standard input that is no terminal; EOFError at its end."""
    del prompt
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def look(source: str) -> None:
    """Raise MediaError now for a picture that cannot be read."""
    from retinue.media.image import image_size

    image_size(source)


def look_video(source: str) -> None:
    """Raise MediaError now for a video that cannot be read, EnvError without its decoder."""
    from retinue.media.frames import Frames

    Frames().blanks(source)


def printable(text: str) -> str:
    """Without control characters, which could make a terminal do anything; line breaks stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class Session:
    """The loop around a Chat: commands, pictures waiting for their question, output.

    choice: the budget that a word behind /tokens stands for.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        images: list[str],
        videos: Sequence[str] = (),
        choice: Callable[[str | None], Budget] | None = None,
        drawn: places.Places | None = None,
    ) -> None:
        self.drawn, self.shown = drawn, list(images)
        self.chat, self.waiting, self.videos = chat, list(images), list(videos)
        self.choice = choice

    def talk(self, read: Read, *, forgiving: bool) -> None:
        """Read lines until an empty one, /quit or the end of input.

        forgiving: say what is wrong with a line and go on (a person can type another), instead of
        raising it.
        """
        while True:
            try:
                line = read("you> ").strip()
            except EOFError:
                return
            if not line or line == "/quit":
                return
            try:
                if line.startswith("/"):
                    self.command(line)
                else:
                    self.answer(line)
            except RetinueError as error:
                if not forgiving:
                    raise
                note(str(error))
            except KeyboardInterrupt:
                if not forgiving:
                    raise
                note("(interrupted)")

    def answer(self, text: str) -> None:
        """Stream the answer to standard output; draw what it names, where that is wanted."""
        said = self.say(text)
        if self.drawn is not None:
            self.drawn.answered(said, self.shown)

    def paint(self, text: str) -> None:
        """Ask for a picture's description and have it painted."""
        if self.drawn is not None:
            self.drawn.paint(lambda: self.say(text))

    def say(self, text: str) -> str:
        """Stream the answer to standard output, and return it."""
        images, videos = list(self.waiting), list(self.videos)
        said = ""
        for piece in self.chat.ask(text, images=images, videos=videos):
            said += piece
            typer.echo(printable(piece) if sys.stdout.isatty() else piece, nl=False)
            sys.stdout.flush()
        typer.echo()
        self.waiting, self.videos = [], []
        return said

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash says. Raises RequestError for an unknown one."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/image", "/video", "/system", "/save", "/paint") and not rest:
            raise RequestError(f"{name} needs something behind it", fix="/help")
        if name == "/image":
            look(rest)
            self.waiting.append(rest)
            self.shown.append(rest)
        elif name == "/video":
            look_video(rest)
            self.videos.append(rest)
        elif name == "/tokens":
            self.tokens(rest)
        elif name == "/paint":
            self.paint(rest)
        elif name == "/reset":
            self.chat.reset()
            self.waiting, self.videos, self.shown = [], [], []
        elif name == "/system":
            self.chat.reset()
            self.chat.system = rest
        elif name == "/save":
            self.save(Path(rest))
        elif name == "/help":
            note(HELP)
        else:
            raise RequestError(f"unknown command {name!r}", fix="/help lists the commands")

    def tokens(self, asked: str) -> None:
        """Set the budget from the next question on, or say what it is and may be."""
        from retinue.decode.budget import budget_of

        plan = self.chat.processor.plan
        if asked:
            word = None if asked == "default" else asked
            self.chat.budget = self.choice(word) if self.choice else budget_of(plan, word)
        now = budgets.setting(self.chat.budget)
        shown = f"{plan.per_view().length} (the default)" if now is None else str(now)
        known = ", ".join(map(str, plan.budgets)) + ", auto"
        rest = f"it answers with {known}" if plan.spec.connector.elastic else "it has no choice"
        note(f"visual tokens per view: {'auto' if isinstance(now, dict) else shown}; {rest}")

    def save(self, file: Path) -> None:
        try:
            file.write_text(json.dumps(self.chat.row(), ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise RequestError("cannot be written", where=str(file), rule=str(error)) from None
        note(f"saved to {file}")
