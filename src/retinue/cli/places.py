"""Options of `chat` that draw: --draw and --sam for places in answers, --t2i for new pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli.common import note
from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from retinue.demo.drawing import Segment
    from retinue.demo.t2i import Painter

Draw = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Draw boxes, points and poses of an answer on the last picture, written anew for "
        "every answer that has some; with --t2i, where the painted picture goes.",
    ),
]
Sam = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="With --draw: masks of the boxes by Segment Anything, a folder of transformers' or a "
        "sam_vit_*.pth.",
    ),
]
BoxStyle = Annotated[
    str | None,
    typer.Option(
        help="How answers write coordinates: sphinx, llava, compact, thousand, pixels. Default: as "
        "they look."
    ),
]
TextToImage = Annotated[
    str | None,
    typer.Option(
        "--t2i",
        metavar="URL|MODULE:FUNCTION",
        help="A text-to-image pipeline that paints the answer to --ask, or to /paint REQUEST.",
    ),
]


class Places:
    """What is drawn after an answer. Raises ConfigError for options that do not go together."""

    def __init__(
        self,
        file: Path | None,
        *,
        sam: str | None = None,
        style: str | None = None,
        t2i: str | None = None,
        device: str = "cpu",
    ) -> None:
        from retinue.media.boxes import STYLES

        if file is None and (sam or style or t2i):
            given = "--sam" if sam else "--box-style" if style else "--t2i"
            raise ConfigError(f"{given} draws nothing by itself", fix="add --draw out.png")
        if file is not None:
            check_picture_file(file)
        if style is not None and style not in STYLES:
            raise ConfigError(f"{style!r}", where="--box-style", rule=", ".join(STYLES))
        self.file, self.style = file, style
        self.segment: Segment | None = None
        self.painter: Painter | None = None
        if sam is not None:
            from retinue.demo.masks import Masks

            self.segment = Masks.load(sam, device=device)
        if t2i is not None:
            from retinue.demo.t2i import painter

            self.painter = painter(t2i)

    def answered(self, text: str, shown: Sequence[Any]) -> None:
        """Draw an answer's places on the last of the pictures shown, if it has any."""
        if self.file is None or not shown:
            return
        from retinue.demo.drawing import draw
        from retinue.media.image import load_image

        made = draw(load_image(shown[-1]), text, style=self.style, segment=self.segment)
        if made is None:
            note("no boxes or points in the answer, nothing drawn")
        else:
            self.write(made)

    def paint(self, ask: Callable[[], str]) -> None:
        """Have the model's words painted. Raises ConfigError without a pipeline."""
        if self.painter is None:
            raise ConfigError("nothing to paint with", fix="start with --t2i URL --draw out.png")
        self.write(self.painter(ask().strip()))

    def write(self, picture: Image) -> None:
        """Into the file. Raises EnvError where the disk refuses."""
        from retinue.core.files import writing

        assert self.file is not None
        with writing(self.file):
            picture.save(self.file)
        note(f"drawn: {self.file}")


def check_picture_file(file: Path) -> None:
    """Raise ConfigError for a file that Pillow has no format for, or in no folder."""
    from PIL import Image

    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"{file.name}: unknown kind of picture", where="--draw", fix="out.png")
    if not file.parent.is_dir():
        raise ConfigError(f"no folder {file.parent}", where="--draw", fix="make it first")
