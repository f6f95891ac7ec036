"""Videos: the frames that are read, what a processor makes of them, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retinue.core.errors import ConfigError, DataError, EnvError, MediaError
from retinue.data.formats import open_format
from retinue.decode.chat import Chat
from retinue.decode.prompt import user_message, with_video
from retinue.decode.sampling import SamplingParams
from retinue.media.frames import Collage, Frames, collage, pick
from retinue.media.video import VideoLimits, open_clip
from retinue.processor_hf import message_of
from retinue.types import Media, Message, Sample, Text
from tiny import picture, tiny_model

MODEL, PROCESSOR = tiny_model()
WIDTH, HEIGHT = 48, 32


def frame(number: int) -> np.ndarray:
    """Its number is written as a bar and as a shade."""
    array = np.full((HEIGHT, WIDTH, 3), 10 * (number % 24), np.uint8)
    array[:8, : 2 * (number % 24)] = (255, 0, 0)
    return array


def film(path: Path, *, count: int = 20, codec: str = "ffv1", group: int | None = None) -> Path:
    """A video of `count` frames; ffv1 in MKV keeps every grey level."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=5)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        if group:
            stream.codec_context.gop_size = group
        for number in range(count):
            image = av.VideoFrame.from_ndarray(frame(number), format="rgb24")
            for packet in stream.encode(image):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def close(picture: Image.Image, number: int) -> bool:
    """Whether a lossy picture is that frame: the shades of two frames are 10 levels apart."""
    shade = float(np.asarray(picture)[16:, :].mean())
    return abs(shade - 10 * (number % 24)) < 4


@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from(["steps", "ends"]))
def test_picks(total: int, count: int, sampling: Any) -> None:
    chosen = pick(total, count, sampling=sampling)
    assert len(chosen) == min(total, count)
    assert sorted(set(chosen)) == chosen
    assert chosen[0] == 0
    assert chosen[-1] < total
    if sampling == "ends" and count > 1:
        assert chosen[-1] == total - 1


def test_lossless_frames_are_exact(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", count=13)
    found = Frames(count=6).pictures(str(path))
    assert [np.asarray(p).tolist() for p in found] == [
        frame(n).tolist() for n in (0, 2, 4, 6, 8, 10)
    ]
    (grid,) = Collage().pictures(path.read_bytes())
    assert grid == collage(found)
    assert (grid.width, grid.height) == (2 * WIDTH, 3 * HEIGHT)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("b.mp4", "mpeg4"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx-vp9"),
        ("a.mkv", "libx264"),
    ],
)
@pytest.mark.parametrize("group", [None, 5])
def test_containers_and_jumps(tmp_path: Path, name: str, codec: str, group: int | None) -> None:
    """Frames by number, also where keyframes let the reader jump."""
    path = film(tmp_path / name, count=23, codec=codec, group=group)
    with open_clip(path) as clip:
        assert len(clip.times()[0]) == 23
        wanted = [0, 3, 11, 12, 22, 3]
        found = clip.read(wanted)
        assert all(close(p, n) for p, n in zip(found, wanted, strict=True))
        assert clip.size() == (HEIGHT, WIDTH)


def test_phones_hold_the_camera_upright(tmp_path: Path) -> None:
    """A track header that turns the picture a quarter clockwise, as phones write it."""
    path = film(tmp_path / "a.mp4", codec="mpeg4", count=6)
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    plain = one + zero * 3 + one
    head, found, rest = path.read_bytes().partition(b"tkhd")
    assert plain in rest
    turned = rest.replace(plain, zero + one + zero + minus + zero, 1)
    lying = Frames().pictures(path)
    path.write_bytes(head + found + turned)
    upright = Frames().pictures(path)
    assert [p.size for p in upright] == [(HEIGHT, WIDTH)] * 6
    assert [p.size for p in Frames().blanks(path)] == [(HEIGHT, WIDTH)] * 6
    for before, after in zip(lying, upright, strict=True):
        assert np.array_equal(np.rot90(np.asarray(before), -1), np.asarray(after))


def test_header_and_pixels_agree(tmp_path: Path) -> None:
    """Token counts from headers are those of the frames, for every policy and a short clip."""
    for count in (3, 6, 17):
        path = film(tmp_path / f"{count}.mkv", count=count)
        for policy in (Frames(), Frames(count=4, sampling="ends"), Collage(count=3)):
            seen, blank = policy.pictures(path), policy.blanks(path)
            assert [p.size for p in seen] == [p.size for p in blank]
            assert len(seen) == (1 if policy.kind == "collage" else min(count, policy.count))


def test_frame_lists(tmp_path: Path) -> None:
    for number in range(9):
        picture(number).save(tmp_path / f"{number:02}.png")
    names = tuple(str(tmp_path / f"{number:02}.png") for number in range(9))
    for source in (tmp_path, str(tmp_path), names):
        found = Frames(count=3).pictures(source)
        assert [p.tobytes() for p in found] == [picture(n).tobytes() for n in (0, 3, 6)]
    smaller = (picture(1), picture(2, width=20, height=50))
    (grid,) = Collage(count=2).pictures(smaller)
    assert grid.size == (20, 60)
    (blank,) = Collage(count=2).blanks(smaller)
    assert blank.size == grid.size


def test_white_fills_the_last_row() -> None:
    grid = np.asarray(collage([Image.new("RGB", (4, 4)) for _ in range(5)]))
    assert grid.shape == (12, 8, 3)
    assert grid[8:, 4:].min() == 255
    assert grid[8:, :4].max() == 0


# ------------------------------------------------------------------ through the processor


def asked(source: Any, *, budget: int | None = None) -> Sample:
    video = Media(kind="video", source=source, budget=budget)
    return Sample(id="v", messages=(Message(role="user", parts=(video, Text(text="\nwhat?"))),))


def test_frames_are_pictures(tmp_path: Path) -> None:
    """A video in the prompt is what its frames are as pictures on lines of their own."""
    path = film(tmp_path / "a.mkv", count=6)
    example = PROCESSOR.example(asked(str(path)))
    frames = [Image.fromarray(frame(n)) for n in range(6)]
    parts = user_message("what?", frames)
    same = PROCESSOR.example(Sample(id="v", messages=(parts,)))
    assert example.tokens == same.tokens
    assert example.spans == same.spans
    for ours, theirs in zip(example.items, same.items, strict=True):
        assert torch.equal(ours.pixels["rgb"], theirs.pixels["rgb"])
    header = PROCESSOR.example(asked(str(path)), pixels=False)
    assert header.tokens == example.tokens
    batch = PROCESSOR([asked(str(path)), asked(tuple(frames[:2]))])
    assert MODEL.run(batch).logits.isfinite().all()


def test_collage_is_one_picture(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", count=8)
    processor = with_video(PROCESSOR, "collage")
    example = processor.example(asked(str(path)))
    assert len(example.items) == 1
    assert example.items[0].grid.size == (3 * HEIGHT, 2 * WIDTH)
    with pytest.raises(ConfigError, match="unknown video 'colage'; did you mean 'collage'"):
        with_video(PROCESSOR, "colage")
    with pytest.raises(ConfigError, match="count"):
        with_video(PROCESSOR, {"kind": "frames", "counts": 3})


def test_a_template_of_one_picture_needs_a_collage() -> None:
    _, processor = tiny_model(template={"name": "vicuna_v1", "placement": "collapse"})
    frames = tuple(picture(n) for n in range(6))
    with pytest.raises(DataError, match="collage"):
        processor.example(asked(frames))
    assert len(with_video(processor, "collage").example(asked(frames)).spans) == 1


def test_chat_and_hf_messages(tmp_path: Path) -> None:
    path = str(film(tmp_path / "a.mkv", count=6))
    chat = Chat(MODEL, PROCESSOR, params=SamplingParams(max_new_tokens=4))
    "".join(chat.ask("what?", videos=[path]))
    row = chat.row()
    assert row["messages"][0]["content"][0] == {"type": "video", "video": path}
    content = [{"type": "video", "video": path}, {"type": "text", "text": "what?"}]
    entry = {"role": "user", "content": content}
    assert message_of(entry).media[0].kind == "video"
    text = PROCESSOR.apply_chat_template([entry], add_generation_prompt=True)
    assert text.count("<image>") == 6
    inputs = PROCESSOR.apply_chat_template(
        [entry], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert len(inputs["pixel_values"]) == 6


def test_formats(tmp_path: Path) -> None:
    film(tmp_path / "a.mkv", count=6)
    content = [{"type": "video", "video": "a.mkv", "budget": 4}, {"type": "text", "text": "what?"}]
    frames = [{"type": "video", "video": ["0.png", "1.png"]}, {"type": "text", "text": "what?"}]
    rows = [{"messages": [{"role": "user", "content": part}]} for part in (content, frames)]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = open_format(path)
    (video,) = data[0].media
    assert (video.kind, video.source, video.budget) == ("video", str(tmp_path / "a.mkv"), 4)
    assert data[1].media[0].source == (str(tmp_path / "0.png"), str(tmp_path / "1.png"))
    for mark in ("<video>", "<image>"):
        turns = [{"from": "human", "value": f"{mark}\nwhat?"}, {"from": "gpt", "value": "red"}]
        llava = tmp_path / "llava.json"
        llava.write_text(json.dumps([{"id": 1, "video": "a.mkv", "conversations": turns}]), "utf-8")
        sample = open_format(llava)[0]
        assert [medium.kind for medium in sample.media] == ["video"]
        assert len(PROCESSOR.example(sample, train=True).spans) == 6
    llava.write_text(json.dumps([{"id": 1, "video": 3, "conversations": turns}]), "utf-8")
    with pytest.raises(DataError, match="3 names no video"):
        open_format(llava)[0]


# ------------------------------------------------------------------ what is refused


def test_bad_files(tmp_path: Path) -> None:
    whole = film(tmp_path / "a.mp4", codec="mpeg4").read_bytes()
    for name, data in {
        "junk": b"junk" * 500,
        "cut": whole[: len(whole) // 3],
        "empty": b"",
        "picture": picture().tobytes(),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(MediaError, match=f"sample a: .*{name}") as found:
            Frames().pictures(path, where="sample a")
        assert "\n" not in str(found.value)
    with pytest.raises(MediaError, match="no such file"):
        Frames().pictures("nowhere.mp4")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError, match="without pictures"):
        Frames().blanks(tmp_path / "folder")
    with pytest.raises(MediaError, match="no frames"):
        Frames().pictures(())


def test_damage_inside_is_found(tmp_path: Path) -> None:
    """A file whose index promises more than it holds."""
    path = film(tmp_path / "a.mkv", count=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_clip(path) as clip:
        left = len(clip.times()[0])
        assert 0 < left < 40
        with pytest.raises(MediaError, match=f"frame 39 of {left} cannot be decoded"):
            clip.read([39])


def test_sound_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as file:
        stream: Any = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            file.mux(packet)
    with pytest.raises(MediaError, match="no moving pictures"):
        Frames().pictures(path)


def test_limits(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv")
    for limits, match in (
        (VideoLimits(max_frames=5), "more than 5 frames"),
        (VideoLimits(max_pixels=100), "frames of 48 x 32 pixels"),
        (VideoLimits(max_bytes=100), "at most 100 bytes"),
        (VideoLimits(decode_s=1e-9), "longer than 1e-09 s"),
        (VideoLimits(files=False), "local files are not accepted"),
    ):
        with pytest.raises(MediaError, match=match):
            Frames().pictures(path, limits=limits)


def test_playlists_open_nothing(tmp_path: Path) -> None:
    """A playlist could make the decoder read any file; it is no video here."""
    inner = film(tmp_path / "a.mp4", codec="mpeg4")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{inner}\n#EXT-X-ENDLIST\n")
    concat = tmp_path / "list.txt"
    concat.write_text(f"ffconcat version 1.0\nfile {inner}\n")
    for path in (playlist, concat):
        with pytest.raises(MediaError, match="no video that can be read"):
            Frames().pictures(path)


def test_without_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "a.mkv")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvError, match=r"pip install 'retinue\[video\]'"):
        Frames().pictures(path)
