"""Reader of RefCOCO, RefCOCO+ and RefCOCOg: words for one thing in a picture, and its box."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from retinue.core.errors import DataError
from retinue.eval.readers.base import Item, Reader, listed, load, odd, value
from retinue.media import boxes


class Refer(Reader):
    """RefCOCO's layout: refs(SPLITTER).p and instances.json; one question for each sentence.

    box: the style in which models answer, `sphinx` or another of the box styles; the reference is
    written with many digits in the same convention.
    """

    kind: Literal["refer"] = "refer"
    refs: str = "refs(unc).p"
    instances: str = "instances.json"
    split: str = "val"
    picture: str = "train2014/COCO_train2014_{image_id:012d}.jpg"
    box: Literal["sphinx", "llava", "compact", "thousand", "pixels"] = "sphinx"

    def items(self, folder: Path) -> Iterator[Item]:
        """The split's references in the file's order, their sentences in order."""
        path = folder / self.instances
        data = load(folder, self.instances)
        sizes, found = {}, {}
        for where, row in listed(value(data, "images", where=str(path)), path):
            sizes[value(row, "id", where=where)] = (int(row["height"]), int(row["width"]))
        for where, row in listed(value(data, "annotations", where=str(path)), path):
            found[value(row, "id", where=where)] = value(row, "bbox", where=where)
        place = folder / self.refs
        style = boxes.Style(convention=boxes.STYLES[self.box].convention, digits=6)
        for where, row in listed(plain_pickle(place), place):
            if value(row, "split", where=where) != self.split:
                continue
            image, box = value(row, "image_id", where=where), value(row, "ann_id", where=where)
            if image not in sizes or box not in found:
                raise DataError(
                    f"image {image} or box {box} is unknown",
                    where=where,
                    rule=f"both stand in {self.instances}",
                )
            left, top, width, height = found[box]
            shape = (left, top, left + width, top + height)
            reference = boxes.write([shape], size=sizes[image], style=style)
            for sentence in value(row, "sentences", where=where):
                yield Item(
                    id=f"{value(row, 'ref_id', where=where)}/{sentence['sent_id']}",
                    fields={"question": str(sentence["sent"])},
                    where=where,
                    media=(str(folder / self.picture.format(image_id=image)),),
                    references=(reference,),
                )


class _Plain(pickle.Unpickler):
    """Reads numbers, texts, lists and dicts; what would import something is an error."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")


def plain_pickle(path: Path) -> Any:
    """A pickle of plain data, as Python 2 wrote them. Raises DataError for any other."""
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="latin1").load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise odd(str(path), f"a pickle of lists, dicts, texts and numbers ({error})") from None
