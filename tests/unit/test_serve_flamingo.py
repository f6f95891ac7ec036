"""Instruct-Flamingo's route: bodies, pictures below the media root alone, beams, the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from retinue.decode.rendered import rendered_ids, tidy
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.flamingo import CleverFlamingo, add_flamingo
from retinue.serve.service import ServeSpec, Service
from tiny_serve import fused

ARGS = {
    "max_new_token": 5, "num_beams": 1, "temperature": 1.0, "top_k": 20, "top_p": 0.9,
    "do_sample": False, "length_penalty": 1.0, "no_repeat_ngram_size": 3,
}  # fmt: skip
CROSS = {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(client, service, folder): pictures in folder/media, one beside it."""
    folder = tmp_path_factory.mktemp("route")
    (folder / "media" / "sub").mkdir(parents=True)
    for number, name in enumerate(("media/a.png", "media/sub/b.png", "out.png")):
        Image.new("RGB", (12, 9), (40 * number, 90, 10)).save(folder / name)
    (folder / "media" / "link.png").symlink_to(folder / "out.png")
    model, processor = fused(CROSS)
    service = Service(
        model, processor, name="tiny", engine=EngineSpec(block=4), spec=ServeSpec(keys=("key",))
    )
    app = create_app(service)
    add_flamingo(
        app,
        CleverFlamingo(service=service, media_root=folder / "media", log=folder / "log.txt"),
    )
    with TestClient(app, headers={"Authorization": "Bearer key"}) as client:
        yield client, service, folder


def ask(client: TestClient, prompt: str, images: Any, **args: Any) -> Any:
    content = {"prompt": prompt, "imgpaths": images, "args": {**ARGS, **args}}
    body = json.dumps({"content_lst": content, "typ": "None"}).encode()
    return client.post("/clever_flamingo", content=body)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_answer_is_that_of_generate(place: Any, beams: int) -> None:
    client, service, folder = place
    prompt = "look <image> and <image>\n### Assistant:"
    found = ask(client, prompt, ["a.png", "sub/b.png"], num_beams=beams)
    assert found.status_code == 200, found.text
    ids = rendered_ids(
        service.engine.model,
        service.processor,
        prompt,
        [folder / "media/a.png", folder / "media/sub/b.png"],
        max_new_tokens=5,
        num_beams=beams,
        do_sample=False,
        length_penalty=1.0,
        no_repeat_ngram_size=3,
    )
    words = [id for id in ids.tolist() if id != service.processor.image_id]
    text = tidy(service.processor.tokenizer.decode(words, skip_special=True))
    wanted = text.split("### Assistant:")[-1].strip()
    assert found.json() == {"result": {"response": [wanted]}}


def test_drawn_answers_and_absolute_paths_inside(place: Any) -> None:
    client, _, folder = place
    inside = str(folder / "media" / "a.png")
    for beams in (1, 2):
        found = ask(client, "look <image>", [inside], do_sample=True, num_beams=beams)
        assert found.status_code == 200, found.text
    before = (folder / "log.txt").read_text("utf-8")
    assert ask(client, "no picture", []).status_code == 200
    fresh = (folder / "log.txt").read_text("utf-8").removeprefix(before)
    assert set(json.loads(fresh)) == {"time", "time_elapsed", "request", "response"}


@pytest.mark.parametrize(
    "name", ["../out.png", "link.png", "/etc/passwd", "gone.png", "sub", "a\0.png", "x" * 5000]
)
def test_other_files_are_not_read(place: Any, name: str) -> None:
    found = ask(place[0], "look <image>", [name])
    assert found.status_code == 422
    assert "below the media root" in found.json()["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"[1", "no JSON"),
        (b"[]", "model_type"),
        (b'{"typ": NaN}', "NaN is no number"),
        (b'{"typ": "None", "content_lst": {}}', "missing"),
        (b'{"typ": 3, "content_lst": {}}', "string_type"),
    ],
)
def test_bad_bodies(place: Any, body: bytes, words: str) -> None:
    found = place[0].post("/clever_flamingo", content=body)
    assert found.status_code == 422
    assert words in found.text


def test_bad_arguments(place: Any) -> None:
    client = place[0]
    for args in ({"num_beams": 0}, {"top_p": 2.0}, {"max_new_token": 0}, {"temperature": -1}):
        found = ask(client, "hello", [], **args)
        assert found.status_code == 422, args
        assert found.json()["detail"][0]["loc"] == ["body", "content_lst", "args", *args]
    for beams in (1, 2):  # more pictures than marks
        found = ask(client, "hello", ["a.png"], num_beams=beams)
        assert found.status_code == 400, found.text
        assert "pictures" in found.json()["detail"]


def test_keys_open_the_route_too(place: Any) -> None:
    client = place[0]
    body = json.dumps({"content_lst": {}, "typ": ""}).encode()
    found = client.post("/clever_flamingo", content=body, headers={"Authorization": "Bearer no"})
    assert found.status_code == 401


def test_without_a_media_root_nothing_is_read(place: Any, tmp_path: Path) -> None:
    route = CleverFlamingo(service=place[1])
    from retinue.core.errors import RequestError

    with pytest.raises(RequestError, match="reads no files"):
        route.picture("a.png")
