"""METEOR of captions by its own program, where Java and the program are there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from retinue.core.errors import EnvError
from retinue.core.log import once

JAR = "METEOR_JAR"
"""Environment variable with the path of meteor-1.5.jar, where pycocoevalcap does not bring it."""
HEAP = "2G"


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """METEOR 1.5 over all captions, as COCO's evaluation runs it; None where it cannot run.

    captions, references: words parted by blanks, without punctuation. What is missing is said in
    one line. Source: METEOR 1.5 (https://www.cs.cmu.edu/~alavie/METEOR); its program, its tables.
    Raises EnvError where the program is there and fails.
    """
    java, jar = shutil.which("java"), jar_file()
    if java is None or jar is None:
        lacks = "Java is not installed" if java is None else "meteor-1.5.jar is not there"
        once(f"METEOR is left out: {lacks} (pip install pycocoevalcap brings the jar, or {JAR})")
        return None
    command = [java, "-jar", f"-Xmx{HEAP}", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        cwd=jar.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            return talk(process, captions, references)
        except (OSError, ValueError) as error:
            raise EnvError(
                "METEOR's program failed",
                where=str(jar),
                rule=f"{type(error).__name__}: {error}",
                fix=f"try `java -jar {jar.name}` there",
            ) from None
        finally:
            process.kill()


def talk(
    process: subprocess.Popen[str], captions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Statistics of each caption, then the score of all of them together."""
    assert process.stdin is not None
    assert process.stdout is not None
    counts = []
    for caption, wanted in zip(captions, references, strict=True):
        parts = [*wanted, caption]
        print("SCORE", *(clean(one) for one in parts), sep=" ||| ", file=process.stdin, flush=True)
        counts.append(process.stdout.readline().strip())
    print("EVAL", *counts, sep=" ||| ", file=process.stdin)
    process.stdin.close()  # so that a program that says less ends instead of being waited for
    for _ in captions:
        float(process.stdout.readline())
    return float(process.stdout.readline())


def clean(text: str) -> str:
    """A text that holds no mark of the protocol."""
    return " ".join(text.replace("|||", " ").split())


def jar_file() -> Path | None:
    """METEOR's program: named by the environment, or the one in pycocoevalcap."""
    if os.environ.get(JAR):
        path = Path(os.environ[JAR]).expanduser().absolute()
        return path if path.is_file() else None
    found = importlib.util.find_spec("pycocoevalcap")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / "meteor" / "meteor-1.5.jar"
        if path.is_file():
            return path
    return None
