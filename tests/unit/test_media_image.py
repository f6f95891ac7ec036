"""Decoding: sources, modes, orientation, limits, and one clear error for each kind of damage."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinue.core.errors import EnvError, MediaError
from retinue.media import image as image_module
from retinue.media.image import image_size, load_image, load_pixels
from retinue.media.resize import pixels
from retinue.media.source import Limits


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def picture(width: int = 9, height: int = 5, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def test_every_kind_of_source(tmp_path: Path) -> None:
    image, data = picture(), encoded(picture())
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, uri, image):
        assert same(load_image(source), image)
        assert image_size(source) == (5, 9)
    assert same(load_image("a b.png", root=tmp_path), image)
    assert image_size("a b.png", root=tmp_path) == (5, 9)


def test_url(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(picture()))
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            assert same(load_image(f"{base}/x.png"), picture())
            with pytest.raises(MediaError, match="404"):
                load_image(f"{base}/y.png")
            with pytest.raises(MediaError, match="at most 10 bytes"):
                load_image(f"{base}/x.png", limits=Limits(max_bytes=10))
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(MediaError, match=r"sample 7: http.*cannot be fetched"):
        load_image(f"{base}/x.png", where="sample 7", limits=Limits(timeout_s=2))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_modes_follow_pillow(mode: str) -> None:
    image = picture(mode="RGBA" if mode == "LA" else mode)
    image = image.convert(mode)
    assert same(load_image(image), image.convert("RGB"))


def test_palette_with_transparency_and_premultiplied_alpha_do_not_warn() -> None:
    image = picture(mode="P")
    image.info["transparency"] = bytes(range(256))
    assert same(load_image(image), picture(mode="P").convert("RGB"))
    rgba = picture(mode="RGBA")
    assert same(load_image(rgba.convert("RGBa")), picture())


def test_sixteen_bits_are_scaled() -> None:
    grey = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(grey))
    found = np.asarray(load_image(data))
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_orientation(orientation: int, form: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(16, 8), form, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = load_image(data)
    assert same(found, wanted)
    assert image_size(data) == (found.height, found.width)
    assert same(load_image(found), wanted), "turned twice"
    assert torch.equal(load_pixels(data), pixels(wanted))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_decoder_gives_the_same_pixels(mode: str) -> None:
    data = encoded(picture(67, 43, mode), "JPEG", quality=80)
    wanted = pixels(load_image(data))
    for decoder in ("pil", "auto", "simplejpeg"):
        found = load_pixels(data, decoder=decoder)
        assert found.shape == (3, 43, 67)
        assert torch.equal(found, wanted), decoder
    assert torch.equal(load_pixels(picture()), pixels(picture()))


def test_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    image_module._simplejpeg.cache_clear()
    try:
        data = encoded(picture(20, 10), "JPEG")
        assert torch.equal(load_pixels(data), pixels(load_image(data)))
        with pytest.raises(EnvError, match=r"retinue\[fast\]"):
            load_pixels(data, decoder="simplejpeg")
    finally:
        image_module._simplejpeg.cache_clear()


def test_draft_keeps_the_asked_sides() -> None:
    data = encoded(picture(640, 480), "JPEG")
    small = load_image(data, draft=100)
    assert small.size == (160, 120)
    assert load_image(data, draft=400).size == (640, 480)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("side", [10_000, 60_000])  # below and above what Pillow itself refuses
def test_bomb_is_refused_before_decoding(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    for read in (load_image, image_size, load_pixels):
        with pytest.raises(MediaError, match=r"sample 3.*pixels.*at most \d+ pixels.*shrink"):
            read(bomb, where="sample 3")
    data = encoded(picture(30, 20))
    with pytest.raises(MediaError, match=r"30 x 20 = 600 pixels .*at most 599 pixels"):
        load_image(data, limits=Limits(max_pixels=599))
    assert load_image(data, limits=Limits(max_pixels=600)).size == (30, 20)
    with pytest.raises(MediaError, match="at most 20 bytes"):
        load_image(data, limits=Limits(max_bytes=20))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated(form: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    data = encoded(picture(64, 64), form)
    path.write_bytes(data[: len(data) // 2])
    for read in (load_image, load_pixels):
        with pytest.raises(MediaError, match=r"sample 9: .*cut\.bin: .*; (replace|convert)"):
            read(path, where="sample 9")


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    cases = {
        "nowhere.png": "no such file",
        "empty.png": "zero bytes",
        ".": "not a regular file",
        "nul\0.png": "cannot be opened|no such file",
    }
    for name, message in cases.items():
        with pytest.raises(MediaError, match=message):
            load_image(name, root=tmp_path)
    for source in (b"not a picture", b"GIF89a", b"\xff\xd8\xff"):
        with pytest.raises(MediaError, match="Pillow can read"):
            load_image(source)
    with pytest.raises(MediaError, match="base64"):
        load_image("data:image/png;base64,@@@")
    with pytest.raises(MediaError, match="comma"):
        load_image("data:image/png;base64")
    with pytest.raises(MediaError, match="empty picture"):
        load_image(Image.new("RGB", (0, 4)))


def test_forbidden_sources(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="local files are not accepted"):
        load_image(tmp_path / "x.png", limits=Limits(files=False))
    with pytest.raises(MediaError, match="URLs are not accepted"):
        load_image("http://127.0.0.1/x.png", limits=Limits(urls=False))


def test_size_needs_the_header_alone() -> None:
    data = encoded(picture(300, 200))
    assert image_size(data[:60]) == (200, 300)
