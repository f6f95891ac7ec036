"""A whole preparation: lanes in processes, the last pass of a shuffle, the report."""

from __future__ import annotations

import multiprocessing
import os
import queue
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinue.core.errors import ConfigError, DataError, RetinueError
from retinue.core.files import write_json
from retinue.core.log import get_logger
from retinue.data.prepare.finetune import Finetuning
from retinue.data.prepare.hooks import find_hook
from retinue.data.prepare.inputs import chunks, find_files, input_bytes
from retinue.data.prepare.lane import Journal, Lane
from retinue.data.prepare.pretrain import Pretraining
from retinue.data.prepare.regions import Defaults
from retinue.data.prepare.rows import FEATURES, Sizes
from retinue.data.prepare.spec import PrepareSpec
from retinue.data.prepare.words import Words, cleaner
from retinue.data.prepare.writer import read_rows, write_file

REPORT = "data_params.json"
SKIPPED = "skipped.json"
Progress = Callable[[int, int], None]
"""Called with (records, bytes) that were just done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a preparation wrote. skipped: [place, reason] of every record left out."""

    folder: Path
    files: list[Path]
    report: dict[str, Any]
    skipped: list[list[str]]


def prepare(
    spec: PrepareSpec,
    *,
    root: Path = Path("."),
    given: dict[str, Any] | None = None,
    hooks: Path | None = None,
    exact: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Read raw records, tokenize them and write HDF5 files into setup.output_dir.

    root: relative paths of the spec start here; given: the spec as its file says it, for the
    report; hooks: a Python file with read hooks of one's own; exact: keep the original's way with
    broken records (they end their file). A run that was stopped goes on where it was; restart
    begins anew. progress: see `Progress`. Raises ConfigError, DataError.
    """
    setup, processing = spec.setup, spec.processing
    out = root / setup.output_dir
    out.mkdir(parents=True, exist_ok=True)
    files = find_files(root / setup.data.source)
    if restart:
        _clear(out)
    count = setup.processes or len(os.sched_getaffinity(0))
    _same_run(out, spec, lanes=count, files=files)
    shuffled = None
    if processing.shuffle:
        shuffled = -(-input_bytes(files) // (processing.write_chunk_size * 1024))
    make = _Maker(spec, root, out, hooks, exact, count, shuffled, files)
    make(0)  # what is wrong with the settings is said here, not in a worker
    if count == 1:
        journals = [make.run(0, progress or (lambda records, size: None))]
    else:
        journals = _parallel(make, count, progress)
    if shuffled is not None:
        _merge(out, seed=processing.shuffle_seed, multimodal=spec.dataset.is_multimodal)
    words, sizes = make.words, make.sizes
    stats: Counter[str] = sum((journal.stats for journal in journals), Counter())
    report = _report(spec, given, stats, words=words, sizes=sizes)
    write_json(out / REPORT, report)
    skipped = [one for journal in journals for one in journal.skipped]
    write_json(out / SKIPPED, {"records": skipped})
    written = sorted(out.glob("output_chunk_*.h5"))
    return Prepared(folder=out, files=written, report=report, skipped=skipped)


class _Maker:
    """Builds a lane inside the process that runs it."""

    def __init__(
        self,
        spec: PrepareSpec,
        root: Path,
        out: Path,
        hooks: Path | None,
        exact: bool,
        count: int,
        shuffled: int | None,
        files: list[Path],
    ) -> None:
        self.spec, self.root, self.out, self.hooks = spec, root, out, hooks
        self.exact, self.count, self.shuffled, self.files = exact, count, shuffled, files

    def run(self, number: int, tell: Progress) -> Journal:
        lane = self(number)
        lane.tell = tell
        return lane.run(chunks(self.files, size=self.spec.processing.read_chunk_size * 1024))

    def __call__(self, number: int) -> Lane:
        spec, setup, processing = self.spec, self.spec.setup, self.spec.processing
        data = spec.dataset
        folder = self.root / processing.huggingface_tokenizer
        if not folder.exists():
            from retinue.core.paths import HubId

            if HubId.parse(processing.huggingface_tokenizer) is None:
                raise ConfigError("no such tokenizer", where=str(folder))
            folder = _hub(processing.huggingface_tokenizer)
        token = data.image_token if data.is_multimodal else None
        words = Words(folder, image_token=token, template=data.chat_template)
        eos = words.id("eos") if processing.eos_id is None else processing.eos_id
        pad = next(
            (
                one
                for one in (processing.pad_id, processing.eos_id, words.id("pad"), eos)
                if one is not None
            ),
            None,
        )
        if eos is None or pad is None:
            raise ConfigError(
                "the tokenizer has no eos token", where=str(folder), fix="give processing.eos_id"
            )
        self.words, self.eos = words, eos
        single = data.use_single_image_token
        self.sizes = Sizes(
            length=processing.max_seq_length,
            pictures=data.max_num_img,
            patches=1 if single else data.num_patches,
            pad=pad,
        )
        clean = cleaner(
            ftfy=processing.use_ftfy,
            normalizer=processing.ftfy_normalizer,
            wikitext=processing.wikitext_detokenize,
        )
        common: dict[str, Any] = {
            "sizes": self.sizes,
            "image_token": data.image_token,
            "image_dir": None if setup.image_dir is None else self.root / setup.image_dir,
            "clean": clean,
            "defaults": Defaults(
                weight=processing.semantic_loss_weight,
                drop=processing.semantic_drop_mask,
                attention=processing.semantic_attention_mask,
            ),
            "shortest": processing.min_sequence_len,
            "keep_image_id": single,
        }
        generator: Finetuning | Pretraining
        if setup.mode == "finetuning":
            sep = data.sep_token
            if sep is None:
                sep = words.token("sep") or "<|sep|>"
            generator = Finetuning(words, end=processing.end_of_turn_token, sep=sep, **common)
        else:
            pack = data.pack_sequences
            pack = not data.is_multimodal if pack is None else pack
            generator = Pretraining(words, pack=pack, eos=eos, exact=self.exact, **common)
        kwargs = dict(processing.read_hook_kwargs)
        columns = [str(value) for key, value in kwargs.items() if key.endswith("_key")]
        hook = find_hook(processing.read_hook, file=self.hooks)
        if hook.__name__ == "finetuning_llava_hook_prompt_completion":
            kwargs["exact"] = self.exact
        return Lane(
            number=number,
            lanes=self.count,
            out=self.out,
            generator=generator,
            hook=hook,
            kwargs=kwargs,
            columns=columns,
            write_bytes=processing.write_chunk_size * 1024,
            multimodal=data.is_multimodal,
            exact=self.exact,
            shuffled=self.shuffled,
            seed=processing.shuffle_seed,
        )


def _hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json"]))


def _work(make: _Maker, number: int, told: Any) -> None:
    try:
        told.put(("done", make.run(number, lambda *done: told.put(("count", done)))))
    except RetinueError as error:
        told.put(("error", str(error)))
    except BaseException as error:
        told.put(("error", f"{type(error).__name__}: {error}"))
        raise


def _parallel(make: _Maker, count: int, progress: Progress | None) -> list[Journal]:
    """All lanes in processes of their own. Raises DataError with the first failure."""
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(make, number, told), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    journals: list[Journal] = []
    try:
        while len(journals) < count:
            try:
                kind, value = told.get(timeout=1)
            except queue.Empty:
                dead = [w for w in workers if w.exitcode not in (None, 0)]
                if dead:
                    raise DataError(
                        f"a worker died (exit {dead[0].exitcode})",
                        fix="run the same command again: it goes on where it was",
                    ) from None
                continue
            if kind == "error":
                raise DataError(value)
            if kind == "done":
                journals.append(value)
            elif progress is not None:
                progress(*value)
    finally:
        for worker in workers:
            if worker.is_alive() and len(journals) < count:
                worker.terminate()
            worker.join()
    return journals


RUN = ".run.json"


def _same_run(out: Path, spec: PrepareSpec, *, lanes: int, files: list[Path]) -> None:
    """Remember what a folder is being filled with. Raises ConfigError for anything else."""
    import json

    facts = {
        "spec": spec.model_dump(mode="json", exclude={"setup": {"output_dir", "processes"}}),
        "lanes": lanes,
        "files": [[path.name, path.stat().st_size] for path in files],
    }
    file = out / RUN
    if file.exists():
        if json.loads(file.read_text("utf-8")) != facts:
            raise ConfigError(
                "holds an unfinished or other preparation",
                where=str(out),
                rule="to go on, settings, input files and number of processes stay the same",
                fix="name another output_dir, or --restart",
            )
        return
    if any(out.glob("*.h5")):
        raise ConfigError(
            "holds HDF5 files of another program",
            where=str(out),
            fix="name another output_dir, or --restart, which removes them",
        )
    write_json(file, facts)


def _clear(out: Path) -> None:
    names = [*out.glob("output_chunk_*.h5"), *out.glob(".part-*"), *out.glob(".lane-*")]
    for path in [*names, out / RUN, out / REPORT, out / SKIPPED]:
        path.unlink(missing_ok=True)


def _merge(out: Path, *, seed: int, multimodal: bool) -> None:
    """Put the parts of each shuffled file together and permute it; one file in memory at a time."""
    parts: dict[int, list[Path]] = {}
    for path in out.glob(".part-*.h5"):
        found = re.match(r"\.part-(\d+)-", path.name)
        assert found is not None
        parts.setdefault(int(found[1]), []).append(path)
    done = {path.stem.rpartition("_")[2] for path in out.glob("output_chunk_*.h5")}
    numbers = sorted({*parts, *(int(number) for number in done)})
    names = sorted(f"output_chunk_{number}.h5" for number in numbers)
    for number in sorted(parts):
        target = out / f"output_chunk_{number}.h5"
        if not target.exists():
            rows = [row for path in sorted(parts[number]) for row in read_rows(path)]
            order = np.arange(len(rows))
            np.random.RandomState(seed + names.index(target.name)).shuffle(order)
            chosen = [rows[i] for i in order]
            write_file(target, chosen, multimodal=multimodal, open_end=True)
        for path in parts[number]:
            path.unlink()


def _report(
    spec: PrepareSpec,
    given: dict[str, Any] | None,
    stats: Counter[str],
    *,
    words: Words,
    sizes: Sizes,
) -> dict[str, Any]:
    """data_params.json: the settings as given, and what was counted."""
    said = given or spec.model_dump(mode="json", exclude_unset=True)
    post = {name: stats[name] for name in COUNTED}
    rows = max(1, stats["n_examples"])
    for unit in ("bytes", "chars"):
        raw = stats[f"raw_{unit}_count"]
        post[f"average_{unit}_per_sequence"] = -(-raw // rows)
    if spec.setup.mode == "finetuning":
        post |= {name: stats[name] for name in ("raw_docs_skipped", "total_raw_docs")}
    if stats["broken_records"]:
        post["broken_records"] = stats["broken_records"]
    if words.default_template:
        get_logger().warning("no chat template in tokenizer or settings: ChatML is used")
    ids = {
        "eos_id": spec.processing.eos_id if spec.processing.eos_id is not None else words.id("eos"),
        "pad_id": sizes.pad,
        "vocab_size": words.size,
        "max_seq_length": sizes.length,
    }
    return {
        "setup": dict(said.get("setup") or {}),
        "processing": {**dict(said.get("processing") or {}), **ids},
        "dataset": dict(said.get("dataset") or {}),
        "features": list(FEATURES),
        "post-process": post,
    }


COUNTED = (
    "discarded_files",
    "processed_files",
    "successful_files",
    "n_examples",
    "num_tokens",
    "num_pad_tokens",
    "non_pad_tokens",
    "loss_valid_tokens",
    "num_masked_tokens",
    "raw_bytes_count",
    "raw_chars_count",
    "normalized_bytes_count",
    "normalized_chars_count",
)
