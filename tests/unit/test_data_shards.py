"""Tar shards and web documents as sources of a mixture."""

import base64
import io
import json
import tarfile
import warnings
from itertools import islice

import pytest
from PIL import Image

from fake_processor import FakeProcessor
from retinue.cli.main import run
from retinue.core.errors import DataError
from retinue.data.dataset import open_dataset
from retinue.data.formats import detect_format, open_format
from retinue.data.formats.base import RefusedError
from retinue.data.formats.shards import Shards, WebSpec
from retinue.data.spec import DataSpec
from retinue.data.tar import expand, scan
from retinue.types import Media, Text


def png(level=0, size=(9, 7)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (level % 256, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def document(pictures, *, similar=0.5, sentences=("one.", "two.", "three.")):
    matrix = [
        [similar if at == k else 0.0 for at in range(len(sentences))] for k in range(pictures)
    ]
    info = [{"image_base64": base64.b64encode(png(k)).decode()} for k in range(pictures)]
    return {"text_list": list(sentences), "image_info": info, "similarity_matrix": matrix}


def write_tar(path, members, *, kind=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def pairs(start, stop):
    return [
        part
        for k in range(start, stop)
        for part in ((f"{k:05}.txt", f"caption {k}".encode()), (f"{k:05}.png", png(k)))
    ]


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"pairs-{number:03}.tar", pairs(4 * number, 4 * number + 4))
    return tmp_path


WEB = WebSpec(min_bytes=0)


def test_pairs_are_captions_of_pictures(folder):
    assert detect_format(folder) == detect_format(folder / "pairs-{000..001}.tar") == "shards"
    file = open_format(folder / "pairs-{000..001}.tar")
    assert len(file) == 8
    asked, told = file[5].messages
    assert (asked.media[0].source, told.text, file[5].id) == (png(5), "caption 5", "00005")
    assert "pairs-001.tar: 00005" in file.where(5)


def test_shards_read_as_webdataset_reads_them(folder):
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, kind in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
            long = "sub/" + "long" * 40
            members = [(f"{long}/a.b.json", b"{}"), (f"{long}/a.txt", b"x"), ("c.txt", b"y")]
            write_tar(folder / f"{name}.tar", members, kind=kind)
        with webdataset.TarWriter(str(folder / "own.tar")) as writer:
            for k in range(3):
                writer.write({"__key__": f"k{k}", "txt": f"t {k}", "png": png(k)})
        for name in ("own", "pax", "gnu", "pairs-000"):
            path = folder / f"{name}.tar"
            theirs = webdataset.WebDataset(str(path), shardshuffle=False)
            wanted = [
                (one["__key__"], {k: v for k, v in one.items() if not k.startswith("__")})
                for one in theirs
            ]
            ours = [(one.key, {name: one.read(name) for name in one.parts}) for one in scan(path)]
            assert ours == wanted


def test_documents(tmp_path):
    rows = [document(2), document(1, similar=0.1), document(3, sentences=("a", "b", "c", "d"))]
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert detect_format(path) == "shards"
    file = open_format(path).using(WEB)
    (message,) = file[0].messages
    assert [type(part) for part in message.parts] == [Media, Text, Media, Text]
    assert message.text == "one.two. three."
    assert message.role == "assistant"
    with pytest.raises(RefusedError, match="no picture left"):
        file[1]
    assert len(file[2].media) == 3
    assert len(file.using(WEB.model_copy(update={"most": 2}))[2].media) == 2
    tar = write_tar(tmp_path / "d.tar", [("x.json", json.dumps(rows[0]).encode())])
    texts = [(m.text, [p.source for p in m.media]) for m in open_format(tar).using(WEB)[0].messages]
    assert texts == [(m.text, [p.source for p in m.media]) for m in file[0].messages]


def test_named_pictures_lie_in_the_media_root(tmp_path):
    row = document(2)
    for k, info in enumerate(row["image_info"]):
        (tmp_path / f"{k}.png").write_bytes(png(k))
        info.pop("image_base64")
        info["image_name"] = f"{k}.png"
    path = tmp_path / "docs.jsonl"
    path.write_text(json.dumps(row), "utf-8")
    file = open_format(path, media_root=tmp_path)
    assert [part.source for part in file.using(WEB)[0].media] == [png(0), png(1)]


def test_single_pictures_stay_by_a_coin_of_their_own(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("\n".join([json.dumps(document(1))] * 60), "utf-8")

    def kept(**changes):
        file = open_format(path).using(WEB.model_copy(update=changes))
        found = []
        for index in range(len(file)):
            try:
                file[index]
                found.append(index)
            except RefusedError:
                continue
        return found

    assert 15 < len(kept()) < 45
    assert kept() == kept()
    assert kept() != kept(seed=1)
    assert (len(kept(single=1.0)), len(kept(single=0.0)), len(kept(fewest=2))) == (60, 0, 0)


def damaged(folder, what):
    data = bytearray((folder / "pairs-000.tar").read_bytes())
    if what == "header":
        data[2048:2100] = b"\xff" * 52  # of the third member
    elif what == "cut":
        data = data[:3000]
    elif what == "picture":
        at = data.index(b"PNG", 2048 + 512)
        data[at : at + 20] = b"x" * 20
    (folder / "pairs-000.tar").write_bytes(bytes(data))


@pytest.mark.parametrize("what", ["header", "cut", "picture"])
def test_damage_is_an_error_or_counted(folder, what):
    damaged(folder, what)
    spec = {"sources": [{"path": "pairs-{000..001}.tar"}]}

    def opened(policy):
        return open_dataset(
            DataSpec.parse({**spec, "on_error": policy}), FakeProcessor(), root=folder
        )

    with pytest.raises(DataError, match="pairs-000"):
        list(opened("error").loader(opened("error").schedule(global_batch=2)).epoch())
    data = opened("skip")
    loader = data.loader(data.schedule(global_batch=2))
    ids = [id for batch in loader.epoch() for id in batch.ids]
    assert {"00004", "00005", "00006", "00007"} <= set(ids)
    counted = sum(map(len, data.skipped.values())) + len(loader.skipped)
    assert counted >= 1
    assert len(set(ids)) < 8


def test_refused_documents_are_no_errors(tmp_path):
    rows = [document(2), document(1, similar=0.0), document(3)]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    spec = DataSpec.parse({"sources": [{"path": "docs.jsonl", "web": {"min_bytes": 0}}]})
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        data = open_dataset(spec, FakeProcessor(), root=tmp_path, cache=cache)
        assert len(data.train) == 2
        (left,) = data.skipped["docs.jsonl"]
        assert left.refused
        assert "no picture" in left.reason
    other = DataSpec.parse({"sources": [{"path": "docs.jsonl", "web": {"threshold": 0.9}}]})
    with pytest.raises(DataError, match="no training sample"):
        open_dataset(other, FakeProcessor(), root=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_shards_resumes_exactly(folder, workers):
    documents = [(f"d{k}.json", json.dumps(document(2)).encode()) for k in range(4)]
    write_tar(folder / "web.tar", documents)
    sources = [
        {"path": "pairs-*.tar", "type": "laion"},
        {"path": "web.tar", "type": "mmc4", "web": {"min_bytes": 0}},
    ]
    spec = {"sources": sources, "sampler": "even-types", "workers": workers}
    data = open_dataset(DataSpec.parse(spec), FakeProcessor(), root=folder)
    schedule = data.schedule(global_batch=3, micro_batch=3)

    def steps(start, count):
        loader = data.loader(schedule)
        loader.load_state({"step": start})
        return [
            (step, [(b.ids, b.tokens.tolist(), b.kinds) for b in batches])
            for step, batches in islice(loader.steps(), count)
        ]

    straight = steps(0, 8)
    assert straight[3:] == steps(3, 5)
    for _, batches in straight:
        ((_, _, kinds),) = batches
        assert sorted(kinds) == ["laion", "laion", "mmc4"]
    shares = [data.loader(schedule, rank=rank, world=3) for rank in range(3)]
    ids = [[i for b in next(iter(share.steps()))[1] for i in b.ids] for share in shares]
    assert sorted(id for own in ids for id in own) == sorted(straight[0][1][0][0])


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"\x1f\x8b" + bytes(600), "compressed"), (b"nothing" * 200, "no tar file")],
)
def test_other_files_are_refused(tmp_path, data, why):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=why):
        open_format(tmp_path / "x.tar")


def test_patterns(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b-08"):
        (tmp_path / f"{name}.tar").write_bytes(bytes(1024))
    assert [p.stem for p in expand(tmp_path / "a-{08..10}.tar")] == ["a-08", "a-09", "a-10"]
    assert [p.stem for p in expand(tmp_path / "{b,a}-08.tar")] == ["b-08", "a-08"]
    assert len(expand(tmp_path)) == 4
    with pytest.raises(DataError, match="a-11"):
        expand(tmp_path / "a-{08..11}.tar")
    with pytest.raises(DataError, match="no shard"):
        expand(tmp_path / "c*.tar")
    assert isinstance(open_format(tmp_path / "a-*.tar"), Shards)


def test_shards_are_checked_and_shown(folder, capsys):
    rows = [document(2), document(1, similar=0.0)]
    members = [(f"d{k}.json", json.dumps(row).encode()) for k, row in enumerate(rows)]
    write_tar(folder / "docs.tar", members)
    assert run(["data", "check", str(folder / "pairs-{000..001}.tar"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["good"] == 8
    recipe = folder / "r.yaml"
    recipe.write_text(
        f"data: {{sources: [{{path: {folder}/docs.tar, web: {{min_bytes: 0}}}}]}}\n", "utf-8"
    )
    assert run(["data", "check", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["good"], found["refused"]) == (2, 1, 1)
    assert run(["data", "show", str(folder / "pairs-000.tar"), "--json", "--limit", "1"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["messages"][0]["content"][0]["image"] == "pairs-000.tar/00000.png"
    damaged(folder, "header")
    assert run(["data", "check", str(folder / "pairs-000.tar"), "--json"]) == 3
    assert "no header of a member" in capsys.readouterr().out


def test_a_page_shows_pictures_of_shards(folder, tmp_path):
    import tiny
    from retinue.data.show import show_html

    _, processor = tiny.tiny_model()
    show_html(
        [open_format(folder / "pairs-000.tar")[0]], processor, out=tmp_path / "x.html", title="x"
    )
    assert "data:image" in (tmp_path / "x.html").read_text("utf-8")
