"""Real pictures, end to end: teach a new model to read handwritten digits, with four verbs.

    python examples/digits.py runs/digits

Writes scikit-learn's 1,797 scans as PNG and LLaVA JSON, then runs `data check`, `build`, `train`
and `eval` on them: about two minutes on two CPU cores. A fifth of the scans is held out. Needs
scikit-learn (`pip install retinue[dev]`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from retinue.cli.main import run
from retinue.text.train import train_bpe

QUESTION = "Which digit is this?"


def write_data(folder: Path, *, count: int) -> None:
    """images/*.png, train.json and test.json in LLaVA's format, and a tokenizer of the bytes."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))[:count]
    rows = []
    for number in order.tolist():
        levels = np.round(digits.images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(levels).save(images / f"{number}.png")
        turns = [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": str(digits.target[number])},
        ]
        rows.append({"id": f"scan-{number}", "image": f"{number}.png", "conversations": turns})
    held_out = len(rows) // 5
    (folder / "test.json").write_text(json.dumps(rows[:held_out]))
    (folder / "train.json").write_text(json.dumps(rows[held_out:]))
    train_bpe([f"USER: {QUESTION} ASSISTANT: 0123456789"], vocab_size=300).save(
        folder / "tokenizer"
    )


def verb(*arguments: object) -> None:
    """Run `retinue ...`; the same line works in a shell."""
    line = [str(argument) for argument in arguments]
    print("\n$ retinue", *line, flush=True)
    code = run(line)
    if code:
        raise SystemExit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Read handwritten digits.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/digits"))
    parser.add_argument("--count", type=int, default=1797, help="Scans to use.")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    folder, images = options.folder, options.folder / "images"
    write_data(folder, count=options.count)
    verb("data", "check", folder / "train.json", "--media-root", images)
    verb(
        *("build", "tiny/digits-new", folder / "new"),
        f"model.tokenizer.from={folder / 'tokenizer'}",
    )
    verb(
        *("train", "tiny/digits", "--out", folder / "run"),
        f"model.from={folder / 'new'}",
        f"data.sources.0.path={folder / 'train.json'}",
        f"data.sources.0.media_root={images}",
        f"stages.read.epochs={options.epochs}",
    )
    verb(
        *("eval", folder / "run" / "model", "--data", folder / "test.json"),
        *("--media-root", images, "--scorer", "exact", "--max-new-tokens", 4),
        *("--json", folder / "result.json", "--baseline"),
    )


if __name__ == "__main__":
    main()
