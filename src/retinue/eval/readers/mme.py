"""Reader of MME: a folder per category, two yes-or-no questions per picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.eval.readers.base import Item, Reader, odd, text_of

PICTURES = (".jpg", ".png", ".jpeg")


class Mme(Reader):
    """MME: CATEGORY/NAME.txt with `question<TAB>Yes|No` lines beside the picture of that name.

    Some categories keep texts in `questions_answers_YN` and pictures in `images`; both are read.
    """

    kind: Literal["mme"] = "mme"

    def items(self, folder: Path) -> Iterator[Item]:
        """Category after category, pictures by name, their questions in order."""
        found = sorted(path for path in folder.rglob("*.txt") if path.parent != folder)
        if not found:
            raise odd(str(folder), "folders of categories with .txt files")
        for path in found:
            place = path.parent
            inner = place.name == "questions_answers_YN"
            category = (place.parent if inner else place).name
            beside = place.parent / "images" if inner else place
            pictures = [p for s in PICTURES if (p := beside / f"{path.stem}{s}").exists()]
            if not pictures:
                raise odd(str(path), f"a picture {beside / path.stem}.jpg or .png")
            for number, line in enumerate(text_of(path).splitlines()):
                if not line.strip():
                    continue
                question, tab, answer = line.strip().rpartition("\t")
                if not tab:
                    raise odd(f"{path}:{number + 1}", "question<TAB>Yes or No")
                name = f"{category}/{pictures[0].name}"
                # LLaVA's file of questions leaves out how to answer, and names both alike.
                asked = question.removesuffix(" Please answer yes or no.").strip()
                yield Item(
                    id=f"{name}/{number}",
                    fields={"question": asked},
                    where=f"{path}:{number + 1}",
                    media=(str(pictures[0]),),
                    references=(answer.strip(),),
                    facts={"category": category, "_picture": name},
                    aliases=(f"{name}\n{asked.lower()}",),
                )
