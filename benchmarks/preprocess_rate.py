"""Raw LLaVA JSON -> HDF5: records a second, memory over time, and a run that is killed and goes on.

Records are generated: two to six turns of words drawn from a fixed seed, half of them with a
picture's path. `retinue data preprocess` runs as a user runs it, in a process group of its own,
whose resident memory is read five times a second. A second run is killed with SIGKILL half way and
started again; its rows must be those of the first run, each as often.

python benchmarks/preprocess_rate.py                       (50,000 records, two processes)
python benchmarks/preprocess_rate.py --records 500         (writes no result file)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

RECORDS = 50_000
LENGTH, PATCHES = 2048, 576
WORDS = "the a red blue green small large dog cat car tree house stands runs sits near on under by"
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
RESULT = Path(__file__).parent / "results" / "preprocess_rate.json"


def write_raw(path: Path, records: int) -> None:
    """One JSON list, written record by record."""
    draw, words = random.Random(0), WORDS.split()

    def sentence(longest: int) -> str:
        return " ".join(draw.choices(words, k=draw.randrange(4, longest)))

    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number in range(records):
            turns = []
            for place in range(draw.randrange(1, 4)):
                mark = "<image>\n" if place == 0 and number % 2 == 0 else ""
                turns.append({"from": "human", "value": f"{mark}{number} {sentence(30)}?"})
                turns.append({"from": "gpt", "value": f"{sentence(80)}."})
            record: dict[str, Any] = {"id": str(number), "conversations": turns}
            if number % 2 == 0:
                record["image"] = "a.png"
            file.write(json.dumps(record) + (",\n" if number + 1 < records else "\n"))
        file.write("]\n")


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE over the records' words."""
    from retinue.text.train import train_bpe

    train_bpe([f"user: {WORDS} assistant: {WORDS}. 0123456789"] * 4, vocab_size=400).save(folder)


def config(root: Path, out: str) -> dict[str, Any]:
    hook = {
        "multi_turn_key": "conversations",
        "image_key": "image",
        "image_token": "<image>",
        "phase": 2,
    }
    return {
        "setup": {
            "data": {"type": "local", "source": str(root / "raw.json")},
            "output_dir": str(root / out),
            "image_dir": str(root / "images"),
            "mode": "finetuning",
        },
        "processing": {
            "huggingface_tokenizer": str(root / "tokenizer"),
            "max_seq_length": LENGTH,
            "read_chunk_size": 16,
            "write_chunk_size": 64,
            "read_hook": "finetuning_llava_hook",
            "read_hook_kwargs": hook,
        },
        "dataset": {
            "is_multimodal": True,
            "num_patches": PATCHES,
            "max_num_img": 1,
            "chat_template": TEMPLATE,
        },
    }


def start(root: Path, out: str, *, processes: int) -> subprocess.Popen[str]:
    """The command, leader of a process group of its own."""
    file = root / f"{out}.yaml"
    file.write_text(yaml.safe_dump(config(root, out)), "utf-8")
    command = [sys.executable, "-m", "retinue", "data", "preprocess", str(file)]
    return subprocess.Popen(
        [*command, "--processes", str(processes)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )


def resident(group: int) -> dict[int, float]:
    """Resident MB of every process of a group, by its number (Linux)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                pages = int((stat.parent / "statm").read_text().split()[1])
                found[int(stat.parent.name)] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (OSError, IndexError):
            continue  # it ended meanwhile
    return found


def watch(run: subprocess.Popen[str]) -> tuple[float, list[float]]:
    """(seconds, largest process's MB, five times a second) of a run until its end."""
    begin, largest = time.monotonic(), []
    while run.poll() is None:
        sizes = resident(run.pid)
        if sizes:
            largest.append(max(sizes.values()))
        time.sleep(0.2)
    return time.monotonic() - begin, largest


def rows(folder: Path) -> Counter[str]:
    """Every row by a hash of all it holds; one file in memory at a time."""
    from retinue.data.prepare.writer import read_rows

    found: Counter[str] = Counter()
    for path in sorted(folder.glob("output_chunk_*.h5")):
        for row in read_rows(path):
            mark = hashlib.blake2b(row.data.tobytes(), digest_size=16)
            mark.update(row.places.tobytes() + "|".join(row.paths).encode())
            found[mark.hexdigest()] += 1
    return found


def kill_half_way(root: Path, out: str, *, processes: int, files: int) -> int:
    """Start, kill with SIGKILL when half of the files stand, and return how many stood."""
    run = start(root, out, processes=processes)
    try:
        while run.poll() is None:
            done = len(list((root / out).glob("output_chunk_*.h5")))
            if done >= max(1, files // 2):
                break
            time.sleep(0.005)
        ended = run.poll()
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    if ended is not None:
        sys.exit(f"the run ended (exit {ended}) before it could be killed")
    return done


def stages(values: list[float]) -> Iterator[float]:
    """The largest value of each fifth of the time."""
    for part in range(5):
        piece = values[len(values) * part // 5 : len(values) * (part + 1) // 5]
        yield round(max(piece, default=0.0), 1)


def measure(root: Path, *, records: int, processes: int) -> dict[str, Any]:
    """Both runs in `root`. Leaves with a message where rows are lost or doubled."""
    (root / "images").mkdir()
    Image.new("RGB", (4, 4)).save(root / "images" / "a.png")
    write_raw(root / "raw.json", records)
    write_tokenizer(root / "tokenizer")
    run = start(root, "straight", processes=processes)
    seconds, memory = watch(run)
    said = run.communicate()[1]
    if run.returncode:
        sys.exit(said)
    whole = rows(root / "straight")
    files = len(list((root / "straight").glob("output_chunk_*.h5")))
    stood = kill_half_way(root, "killed", processes=processes, files=files)
    again = start(root, "killed", processes=processes)
    said = again.communicate()[1]
    if again.returncode:
        sys.exit(said)
    if rows(root / "killed") != whole or sum(whole.values()) != records:
        sys.exit("the run that was killed and went on has other rows")
    return {
        "records": records,
        "processes": processes,
        "raw_mb": round((root / "raw.json").stat().st_size / 2**20, 1),
        "rows_of_tokens": LENGTH,
        "seconds": round(seconds, 1),
        "records_per_second": round(records / seconds, 1),
        "largest_process_mb_by_fifth": list(stages(memory)),
        "files": files,
        "files_when_killed": stood,
        "rows_after_going_on": sum(whole.values()),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": [round(one, 1) for one in os.getloadavg()],
    }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--records", type=int, default=RECORDS)
    options.add_argument("--processes", type=int, default=2)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), records=given.records, processes=given.processes)
    print(json.dumps(found, indent=1))
    print(f"{found['records_per_second']:.0f} records/s in {given.processes} processes")
    if given.records >= RECORDS:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
