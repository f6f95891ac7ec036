"""Eight shards of a LLaMA2-Accessory checkpoint -> one model in memory, and the memory it takes.

The peer reads every shard with torch.load, joins the parts of each parameter and assigns them to a
model without weights; both sides end with the same model, bit for bit. Memory is measured in a
process of its own: the largest anonymous memory (what the kernel cannot take back; pages of mapped
files it can) less that before loading, against the model plus one shard.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

from retinue.convert.consolidated import PREFIX, Consolidated, cut, join, shard_files
from retinue.convert.sphinx import sphinx_groups
from retinue.core.files import write_json
from retinue.hub.load import load
from retinue.hub.sphinx import open_sphinx
from retinue.hub.stream import skeleton
from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig
from retinue.text.train import train_bpe

SHARDS = 8
PEER = "torch.load+merge"
STATUS = Path("/proc/self/status")


def write(folder: Path, *, width: int, layers: int) -> None:
    """A language model of random weights in fp16, cut in eight."""

    config = RetinueConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 4096,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
        },
        spec={"connector": {"kind": "blind"}, "image_token_id": -200},
    )
    state = build_model(config, dtype=torch.float16, seed=0).state_dict()
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(SHARDS)]
    for group in sphinx_groups(config, experts=None):
        values = group.write([state[name] for name in group.ours])
        for name, value in zip(group.theirs, values, strict=True):
            for part, piece in zip(
                parts, cut(name, value, shards=SHARDS, experts=None), strict=True
            ):
                assert piece is not None
                part[PREFIX + name] = piece.clone()
    for rank, part in enumerate(parts):
        torch.save({"model": part}, folder / f"consolidated.{rank:02d}-of-{SHARDS:02d}.model.pth")
    write_json(folder / "config.json", {"dim": width, "n_layers": layers, "n_heads": width // 64})
    write_json(folder / "meta.json", {"llama_type": "llama"})
    train_bpe(["what is here"], vocab_size=300).save(folder)


def ours(folder: Path) -> Callable[[], Any]:
    return lambda: load(folder)[0]


def peer(folder: Path) -> Callable[[], Any]:
    def run() -> Any:
        opened = open_sphinx(folder)
        model = skeleton(opened.config)
        shards = [
            torch.load(file, map_location="cpu", weights_only=True)["model"]
            for file in shard_files(folder)
        ]
        state = {}
        for group in sphinx_groups(opened.config, experts=None):
            whole = [
                join(name, [shard[PREFIX + name] for shard in shards], experts=None)
                for name in group.theirs
            ]
            state |= dict(zip(group.ours, group.read(whole), strict=True))
        model.load_state_dict(state, assign=True)
        return model

    return run


def anonymous() -> int:
    """Bytes of this process's memory that belong to no file."""
    for line in STATUS.read_text("utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def measured(run: Callable[[], Any]) -> int:
    """The largest growth of anonymous memory while `run` is running."""
    before, largest, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.001):
            largest = max(largest, anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = run()
    done.set()
    watcher.join()
    del held
    return largest


def in_a_process(side: str, folder: Path) -> int:
    """Peak of one side in a fresh interpreter, which has imported everything before."""
    words = [sys.executable, __file__, "--measure", side, str(folder)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        side = {"ours": ours, PEER: peer}[sys.argv[2]]
        skeleton(open_sphinx(sys.argv[3]).config)  # modules come with the first model
        print(measured(side(Path(sys.argv[3]))))
        return
    args = common.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, width=512 if args.quick else 1024, layers=4 if args.quick else 12)
        compare(folder, quick=args.quick)


def compare(folder: Path, *, quick: bool) -> None:
    one, other = ours(folder)().state_dict(), peer(folder)().state_dict()
    same = all(torch.equal(one[name], other[name]) for name in one)
    common.require(same and one.keys() == other.keys(), "weights")
    weights = Consolidated(shard_files(folder))
    total = sum(weights.read(name).nbytes for name in weights)
    shard = max(file.stat().st_size for file in shard_files(folder))
    del one, other, weights
    peaks = {side: in_a_process(side, folder) for side in ("ours", PEER)}
    allowed = 1.1 * (total + shard)
    for side, peak in peaks.items():
        print(f"{side:18} peak {peak / 2**20:8.1f} MiB   model + shard {allowed / 2**20:8.1f} MiB")
    # of a small model's peak most is not weights
    common.require(quick or peaks["ours"] <= allowed, "more memory than model + shard + 10 %")
    timings = common.alternate({"ours": ours(folder), PEER: peer(folder)})
    common.table(timings, peer=PEER)
    common.finish(
        "bench_load",
        ratio=timings[PEER].min_s / timings["ours"].min_s,
        target=1.0,
        against=PEER,
        quick=quick,
        timings=timings,
        details={"model": total, "shard": shard, "shards": SHARDS, "peak": peaks},
    )


if __name__ == "__main__":
    main()
