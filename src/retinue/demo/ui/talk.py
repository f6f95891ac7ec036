"""A conversation of the page: turns, what the server is sent of them, what the page shows."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retinue.media.frames import Frames
from retinue.media.image import load_image

VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question with its pictures (paths), and the answer so far; shown: pictures after it."""

    text: str
    pictures: tuple[str, ...] = ()
    answer: str = ""
    note: str = ""
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The page's controls, as the server takes them."""

    model: str = ""
    visual_tokens: int | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int | None = None
    turns: int = 8
    system: str = ""

    def body(self, turns: Sequence[Turn]) -> dict[str, Any]:
        """A chat request for the last turn; fields that change nothing are left out."""
        found: dict[str, Any] = {
            "model": self.model,
            "messages": messages(turns, keep=self.turns, system=self.system),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature if self.num_beams < 2 else 0.0,
        }
        optional = {
            "visual_tokens": (self.visual_tokens, None),
            "seed": (self.seed, None),
            "repetition_penalty": (self.repetition_penalty, 1.0),
        }
        if self.num_beams > 1:
            optional["num_beams"] = (self.num_beams, 1)
            optional["length_penalty"] = (self.length_penalty, 1.0)
        elif self.temperature > 0:
            optional["top_p"] = (self.top_p, 1.0)
            optional["top_k"] = (self.top_k, 0)
        return found | {k: value for k, (value, idle) in optional.items() if value != idle}


def messages(turns: Sequence[Turn], *, keep: int, system: str = "") -> list[dict[str, Any]]:
    """The newest `keep` turns in the API's form. Pictures of turns before them go along no more."""
    found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in turns[-max(1, keep) :]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_uri(path)}} for path in turn.pictures
        ]
        parts.append({"type": "text", "text": turn.text})
        found.append({"role": "user", "content": parts if turn.pictures else turn.text})
        if turn.answer:
            found.append({"role": "assistant", "content": turn.answer})
    return found


def data_uri(path: str) -> str:
    """A picture file as it travels in a request."""
    kind = mimetypes.guess_type(path)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


@dataclass(slots=True)
class Talk:
    """One side of the page: its turns and the model that answers."""

    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str, pictures: Sequence[str]) -> None:
        self.turns.append(Turn(text=text, pictures=tuple(pictures)))

    def change(self, **values: Any) -> None:
        """Replace fields of the last turn."""
        self.turns[-1] = replace(self.turns[-1], **values)

    def pictures(self) -> list[str]:
        """All pictures so far, the newest last."""
        return [path for turn in self.turns for path in turn.pictures]

    def lines(self) -> list[dict[str, Any]]:
        """What the page's chat shows."""
        found: list[dict[str, Any]] = []
        for turn in self.turns:
            found += [{"role": "user", "content": {"path": path}} for path in turn.pictures]
            found.append({"role": "user", "content": turn.text})
            if turn.answer:
                found.append({"role": "assistant", "content": turn.answer})
            found += [{"role": "assistant", "content": {"path": path}} for path in turn.shown]
            if turn.note:
                found.append({"role": "assistant", "content": f"*{turn.note}*"})
        return found


def pictures_of(files: Sequence[str], *, frames: int, folder: Path) -> list[str]:
    """Uploaded files as pictures: videos become `frames` pictures in `folder`.

    Raises MediaError for a file that is neither.
    """
    found: list[str] = []
    for file in files:
        if Path(file).suffix.lower() not in VIDEOS:
            load_image(Path(file))  # says what is wrong with it
            found.append(file)
            continue
        seen = Frames(kind="frames", count=frames).pictures(Path(file))
        for number, frame in enumerate(seen):
            target = folder / f"{Path(file).stem}-{number}.png"
            frame.save(target)
            found.append(str(target))
    return found
