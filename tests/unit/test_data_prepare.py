"""Preparing HDF5: several processes, stopped runs, broken records, settings that are refused."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard
from tokenizers import Tokenizer, models, pre_tokenizers

from retinue.core.errors import ConfigError, DataError
from retinue.data.prepare import lane
from retinue.data.prepare.hooks import find_hook
from retinue.data.prepare.inputs import chunks, find_files, records
from retinue.data.prepare.run import prepare
from retinue.data.prepare.spec import parse_spec
from retinue.data.prepare.writer import read_rows

TEMPLATE = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' end ' }}{% endfor %}"


def make(root, *, records=90, broken=()):
    folder = root / "tokenizer"
    folder.mkdir()
    words = ["[UNK]", "end", "user", "assistant", "word", *(f"n{i}" for i in range(records))]
    fast = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "end"}))
    rows = []
    for i in range(records):
        turns = [{"from": "human", "value": "word"}, {"from": "gpt", "value": f"n{i}"}]
        if i in broken:
            turns[0]["from"] = "nobody"
        rows.append({"id": i, "conversations": turns})
    (root / "raw.json").write_text(json.dumps(rows))


def settings(root, out, **processing):
    return parse_spec(
        {
            "setup": {
                "data": {"type": "local", "source": str(root / "raw.json")},
                "output_dir": str(out),
                "mode": "finetuning",
                "processes": processing.pop("processes", 1),
            },
            "processing": {
                "huggingface_tokenizer": str(root / "tokenizer"),
                "max_seq_length": 16,
                "min_sequence_len": 2,
                "read_chunk_size": 1,
                "write_chunk_size": 2,
                "read_hook": "x.hooks:finetuning_llava_hook",
                "read_hook_kwargs": {
                    "multi_turn_key": "conversations",
                    "image_key": "image",
                    "image_token": "<image>",
                    "phase": 2,
                },
                **processing,
            },
            "dataset": {"is_multimodal": True, "chat_template": TEMPLATE},
        },
        where="test",
    )


def answers(made):
    """The id of each record's answer, over all files."""
    found = [row.data[0] for path in made.files for row in read_rows(path)]
    return [int(ids[ids > 4][0]) - 5 for ids in found]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_record_once(tmp_path, processes, shuffle):
    make(tmp_path)
    spec = settings(tmp_path, tmp_path / "out", processes=processes, shuffle=shuffle)
    made = prepare(spec)
    assert sorted(answers(made)) == list(range(90))
    assert (answers(made) == sorted(answers(made))) == (processes == 1 and not shuffle)
    assert made.report["post-process"]["n_examples"] == 90
    assert not list(made.folder.glob(".part-*"))
    assert prepare(spec).report == made.report


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_run_goes_on(tmp_path, monkeypatch, after, shuffle):
    make(tmp_path)
    straight = prepare(settings(tmp_path, tmp_path / "straight", shuffle=shuffle))
    spec = settings(tmp_path, tmp_path / "out", shuffle=shuffle)
    real, calls = lane.write_file, []

    def stop(path, rows, **options):
        real(path, rows, **options)  # as if killed between a file and its journal
        calls.append(path)
        if len(calls) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(lane, "write_file", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(spec)
    monkeypatch.setattr(lane, "write_file", real)
    made = prepare(spec)
    assert answers(made) == answers(straight)
    assert [path.name for path in made.files] == [path.name for path in straight.files]
    assert made.report["post-process"] == straight.report["post-process"]


def test_broken_records_are_listed(tmp_path):
    make(tmp_path, broken=(3, 40))
    made = prepare(settings(tmp_path, tmp_path / "out"))
    assert sorted(answers(made)) == [i for i in range(90) if i not in (3, 40)]
    assert [place.rpartition(" ")[2] for place, _ in made.skipped] == ["4", "41"]
    assert "nobody" in made.skipped[0][1]
    assert made.report["post-process"]["broken_records"] == 2


def test_other_settings_are_refused(tmp_path):
    make(tmp_path)
    prepare(settings(tmp_path, tmp_path / "out"))
    with pytest.raises(ConfigError, match="restart"):
        prepare(settings(tmp_path, tmp_path / "out", max_seq_length=32))
    made = prepare(settings(tmp_path, tmp_path / "out", max_seq_length=32), restart=True)
    assert len(answers(made)) == 90


@pytest.mark.parametrize(
    ("section", "key", "says"),
    [
        ("dataset", "max_seq_length", "belongs to processing"),
        ("processing", "max_seq_len", "did you mean 'max_seq_length'"),
        ("setup", "slurm", "not supported"),
    ],
)
def test_wrong_keys_are_named(section, key, says):
    data = {
        "setup": {"data": {"source": "x"}, "mode": "finetuning"},
        "processing": {
            "huggingface_tokenizer": "x",
            "read_hook": "x",
            "read_hook_kwargs": {"a_key": "b"},
        },
        "dataset": {},
    }
    data[section] = {**data[section], key: 1}
    with pytest.raises(ConfigError, match=says):
        parse_spec(data, where=str(Path("x.yaml")))


def archived(path, data):
    """An archive with the compressed records, and a member that is none."""
    with tarfile.open(path, "w") as archive:
        for name, held in (("a.jsonl.zst", data), ("README.md", b"none")):
            member = tarfile.TarInfo(name)
            member.size = len(held)
            archive.addfile(member, io.BytesIO(held))
    return path


KINDS = [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".jsonl.zst.tar", ".parquet"]


@pytest.mark.parametrize("suffix", KINDS)
def test_every_kind_of_file_gives_the_same_records(tmp_path, suffix):
    rows = [{"a": i, "b": "x" * i} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"data{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif suffix.startswith(".jsonl.zst"):
        pressed = zstandard.ZstdCompressor().compress(lines)
        path.write_bytes(pressed)
        if suffix.endswith(".tar"):
            path = archived(path, pressed)
    else:
        path.write_bytes(lines)
    assert find_files(tmp_path) == [path]
    assert [record.load() for record in records(path)] == rows
    assert [len(held) for _, _, held in chunks([path], size=1)] == [1] * 5


def test_web_documents_keep_their_order():
    """Parallel lists; addresses are found under the name that they were saved as."""
    hook = find_hook("obelics_hook", file=None)
    names = {"image_key": "images", "caption_key": "texts"}
    record = {
        "images": [None, "https://example.org/a/cat.jpg?x=1", None, "local/b.png"],
        "texts": ["A cat:", None, "and", None],
    }
    (document,) = hook(record, **names)
    saved = hashlib.sha256(b"cat.jpg?x=1").hexdigest()[:10] + ".png"
    assert document == {
        "content": [{"text": "A cat:"}, {"image": saved}, {"text": "and"}, {"image": "local/b.png"}]
    }
    with pytest.raises(DataError, match="4 pictures beside 3 texts"):
        hook({**record, "texts": ["a", None, "b"]}, **names)
