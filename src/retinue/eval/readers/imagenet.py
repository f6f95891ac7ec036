"""Reader of ImageNet's validation pictures, whose thousand class names are the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.eval.readers.base import Item, Reader, load, odd, records, text_of, value

PICTURES = (".jpeg", ".jpg", ".png")


class ImageNet(Reader):
    """ImageNet: a folder of pictures per class, or one folder and a solution file; class names.

    names: LOC_synset_mapping.txt (`n01440764 tench, Tinca tinca`: the first name counts), or a
    JSON file {"0": ["n01440764", "tench"]}, or one with {"n01440764": "tench"}. solution: CSV of
    ImageId and PredictionString, read where `images` has no folders of classes.
    """

    kind: Literal["imagenet"] = "imagenet"
    images: str = "val"
    names: str = "LOC_synset_mapping.txt"
    solution: str = "LOC_val_solution.csv"

    def items(self, folder: Path) -> Iterator[Item]:
        """Class after class, or in the order of the solution. Classes of one name are one."""
        names = class_names(folder, self.names)
        choices = tuple(dict.fromkeys(names.values()))
        for id, where, picture, synset in self.pictures(folder):
            if synset not in names:
                raise odd(where, f"a class of {self.names}, not {synset!r:.40}")
            yield Item(
                id=id,
                fields={},
                where=where,
                media=(str(picture),),
                references=(names[synset],),
                choices=choices,
            )

    def pictures(self, folder: Path) -> Iterator[tuple[str, str, Path, str]]:
        """(id, place, file, class) of every picture."""
        place = folder / self.images
        classes = sorted(path for path in place.glob("n*") if path.is_dir())
        for path in classes:
            for picture in sorted(path.iterdir()):
                if picture.suffix.lower() in PICTURES:
                    yield picture.stem, str(picture), picture, path.name
        if classes:
            return
        for where, row in records(folder, self.solution):
            name = str(value(row, "ImageId", where=where))
            synset = str(value(row, "PredictionString", where=where)).partition(" ")[0]
            yield name, where, place / f"{name}.JPEG", synset


def class_names(folder: Path, file: str) -> dict[str, str]:
    """Class -> its name, in the order of the file."""
    where = str(folder / file)
    if file.endswith(".json"):
        data = load(folder, file)
        if not isinstance(data, dict):
            raise odd(where, "an object of classes")
        pairs = [one if isinstance(one, list) else [key, one] for key, one in data.items()]
    else:
        lines = text_of(folder / file).splitlines()
        pairs = [[*line.partition(" ")[::2]] for line in lines if line.strip()]
    found = {}
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(one, str) and one for one in pair):
            raise odd(where, "a class and its name on every line")
        found[str(pair[0])] = pair[1].split(",")[0].replace("_", " ").strip()
    return found
