"""Videos from the command line: drawn, checked, asked about, refused."""

import json

import pytest

from retinue.cli.main import run
from retinue.hub.save import save
from tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save(*tiny_model(seed=3), tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A few videos as MKV files."""
    out = tmp_path_factory.mktemp("world")
    command = ["data", "world", str(out), "--tasks", "video", "--film", "mkv", "--pictures", "4"]
    assert run([*command, "--questions", "3", "--size", "32", "max_objects=2"]) == 0
    return out


def test_a_world_of_videos(world):
    records = json.loads((world / "train.json").read_text("utf-8"))
    assert all((world / record["video"]).suffix == ".mkv" for record in records)
    assert run(["data", "check", str(world / "train.json")]) == 0
    broken = world / "broken.json"
    (world / "broken.mkv").write_bytes(b"no video" * 99)
    broken.write_text(json.dumps([{**records[0], "video": "broken.mkv"}]), "utf-8")
    assert run(["data", "check", str(broken)]) == 3
    broken.unlink()


def test_page_shows_every_frame(world, folder, tmp_path):
    page = tmp_path / "page.html"
    command = ["data", "show", str(world / "train.json"), "--model", folder, "--out", str(page)]
    assert run([*command, "--limit", "1"]) == 0
    assert page.read_text("utf-8").count("data:image/jpeg") == 6


@pytest.mark.parametrize("policy", [None, "collage"])
def test_generate_and_chat(world, folder, tmp_path, capsys, policy):
    out, option = tmp_path / "out.jsonl", ["--video-as", policy] if policy else []
    command = ["generate", folder, "--input", str(world / "test.jsonl"), "--output", str(out)]
    assert run([*command, "--max-new-tokens", "4", *option]) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    asked = [json.loads(line) for line in (world / "test.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in asked]
    capsys.readouterr()
    video, question = asked[0]["messages"][0]["content"]
    command = ["chat", folder, "--video", str(world / video["video"]), "--ask", question["text"]]
    assert run([*command, "--max-new-tokens", "4", *option]) == 0
    assert capsys.readouterr().out.strip() == rows[0]["text"].strip()
    other = [] if policy else ["--video-as", "collage"]
    again = ["generate", folder, "--input", str(world / "test.jsonl"), "--output", str(out)]
    assert run([*again, "--max-new-tokens", "4", *other]) == 2  # made with another setting


def test_refusals_in_one_line(world, folder, capsys):
    junk = world / "junk.mp4"
    junk.write_bytes(b"junk" * 300)
    for video, options, code, says in (
        (world / "nowhere.mp4", [], 3, "no such file"),
        (junk, [], 3, "no video that can be read"),
        (next(world.glob("images/*.mkv")), ["--video-as", "colage"], 2, "did you mean 'collage'"),
    ):
        assert run(["chat", folder, "--video", str(video), "--ask", "x", *options]) == code
        error = capsys.readouterr().err
        assert says in error
        assert "Traceback" not in error
        assert len([line for line in error.splitlines() if says in line]) == 1
