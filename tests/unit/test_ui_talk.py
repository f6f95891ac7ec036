"""What the web chat sends of a conversation, and what it shows of files and replies."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from retinue.cli.ui import credentials
from retinue.core.errors import ConfigError, EnvError, MediaError
from retinue.demo.ui.client import Client, RefusedError, piece, words_of
from retinue.demo.ui.talk import Talk, Turn, Wish, messages, pictures_of
from tiny import picture


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    picture(1).save(path)
    return str(path)


def test_only_what_changes_something_is_sent(file: str) -> None:
    turns = [Turn(text="What?", pictures=(file,))]
    body = Wish(model="m").body(turns)
    assert set(body) == {"model", "messages", "max_tokens", "temperature"}
    body = Wish(model="m", temperature=0.5, top_p=0.9, top_k=5, seed=3, visual_tokens=4).body(turns)
    assert {k: body[k] for k in ("top_p", "top_k", "seed", "visual_tokens")} == {
        "top_p": 0.9,
        "top_k": 5,
        "seed": 3,
        "visual_tokens": 4,
    }
    beams = Wish(model="m", temperature=0.5, top_p=0.9, num_beams=3, length_penalty=2).body(turns)
    assert (beams["temperature"], beams["num_beams"], beams["length_penalty"]) == (0.0, 3, 2)
    assert "top_p" not in beams


def test_older_turns_are_forgotten(file: str) -> None:
    turns = [Turn(text=f"q{i}", answer=f"a{i}", pictures=(file,) * (i == 0)) for i in range(3)]
    turns.append(Turn(text="q3"))
    sent = messages(turns, keep=2, system="Be brief.")
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in sent] == ["Be brief.", "q2", "a2", "q3"]
    first = messages(turns, keep=9)[0]["content"]
    assert [part["type"] for part in first] == ["image_url", "text"]


def test_what_the_page_shows(file: str) -> None:
    talk = Talk()
    talk.ask("Where?", [file])
    talk.change(answer="[0,0,1,1]", note="3 tokens", shown=(file,))
    assert [line["content"] for line in talk.lines()] == [
        {"path": file},
        "Where?",
        "[0,0,1,1]",
        {"path": file},
        "*3 tokens*",
    ]
    assert talk.pictures() == [file]


def test_a_video_becomes_pictures_and_a_broken_file_an_error(tmp_path: Path, file: str) -> None:
    import av

    clip = tmp_path / "v.mp4"
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for seed in range(9):
            frame = av.VideoFrame.from_image(picture(seed, width=32, height=32))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    found = pictures_of([file, str(clip)], frames=3, folder=tmp_path)
    assert found[0] == file
    assert len(found) == 4
    assert all(Path(path).exists() for path in found)
    bad = tmp_path / "b.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"b\.png"):
        pictures_of([str(bad)], frames=3, folder=tmp_path)


def test_replies_of_servers() -> None:
    assert piece({"choices": [{"delta": {"content": "x"}}]}).text == "x"
    assert piece({"choices": [], "usage": {"completion_tokens": 2}}).usage == {
        "completion_tokens": 2
    }
    with pytest.raises(RefusedError, match="later"):
        piece({"error": {"message": "later"}})
    assert words_of(httpx.Response(502, text="<html>")) == "502 Bad Gateway"
    with pytest.raises(EnvError, match="no server of the OpenAI API"):
        Client(url="http://127.0.0.1:9").models()


@pytest.mark.parametrize("text", ["me", ":x", "me:"])
def test_a_password_needs_a_user(text: str) -> None:
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        credentials(text)
