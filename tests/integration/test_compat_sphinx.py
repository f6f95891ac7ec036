"""The snippets of SPHINX's README with the import line changed; two ranks reply as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retinue.compat.sphinx import SPHINXModel
from retinue.compat.sphinx.model import hub_path
from retinue.core.errors import CheckpointError, RequestError
from retinue.hub.convert import convert
from retinue.hub.save import save
from tiny import tiny_model
from tiny_snippet import GENERATION, QUESTION, second_snippet
from tiny_tensor import on_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model stored as the original stores one."""
    place = tmp_path_factory.mktemp("sphinx")
    model, processor = tiny_text()
    save(model, processor, place / "ours")
    convert(place / "ours", place / "model", to="sphinx", shards=2)
    return place / "model"


def tiny_text() -> tuple[Any, Any]:
    from retinue.model.build import build_model
    from retinue.model.spec import RetinueConfig
    from retinue.processor import Processor, ProcessorSpec

    _, seen = tiny_model(seed=5)
    words = seen.tokenizer
    config = RetinueConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": words.vocab_size,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        spec={"connector": {"kind": "blind"}, "image_token_id": -200},
    )
    spec = ProcessorSpec(
        views={"kind": "pad"}, streams={"rgb": {"size": 224}}, template="accessory"
    )
    model = build_model(config, seed=3)
    return model, Processor(model.plan, tokenizer=words, spec=spec)


def test_first_snippet(folder: Path) -> None:
    """A question, its answer taken up, another question."""
    model = SPHINXModel.from_pretrained(pretrained_path=folder, with_visual=False, device="cpu")
    qas = [["What's in the image?", None]]
    response = model.generate_response(qas, None, max_gen_len=8, temperature=0.9, top_p=0.5, seed=0)
    assert response == model.generate_response(
        qas, None, max_gen_len=8, temperature=0.9, top_p=0.5, seed=0
    )
    qas[-1][-1] = response
    qas.append(["Then how does it look like?", None])
    *_, last = model.stream_response(qas, None, max_gen_len=8, temperature=0.0)
    assert last["end_of_content"]
    with pytest.raises(RequestError, match="answer already"):
        model.generate_response([["a", "b"]], None)
    with pytest.raises(RequestError, match="no encoder"):
        model.generate_response(QUESTION, Image.new("RGB", (8, 8)))


def test_arguments_win_over_files(folder: Path, tmp_path: Path) -> None:
    """A folder of weights alone, and what is missing from it named one by one."""
    bare = tmp_path / "weights"
    bare.mkdir()
    for file in folder.glob("consolidated.*"):
        (bare / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match="tokenizer_path"):
        SPHINXModel.from_pretrained(bare, device="cpu")
    options: dict[str, Any] = {
        "llama_type": "llama",
        "llama_config": [folder / "config.json"],
        "tokenizer_path": folder / "tokenizer.json",
        "device": "cpu",
    }
    given = SPHINXModel.from_pretrained(bare, **options)
    found = SPHINXModel.from_pretrained(folder, device="cpu")
    assert given.generate_response(QUESTION, None, **GENERATION) == found.generate_response(
        QUESTION, None, **GENERATION
    )


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("hf://owner/repo", "owner/repo"),
        ("hf://owner/repo/sub/folder", "owner/repo:sub/folder"),
        ("hf://owner/repo/tree/main/sub", "owner/repo@main:sub"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_hub_paths(written: str, ours: str) -> None:
    assert hub_path(written) == ours


def test_second_snippet(folder: Path) -> None:
    """Two processes with a group of theirs reply as one does, each with half of the layers."""
    found = on_ranks(second_snippet, folder)
    alone = SPHINXModel.from_pretrained(folder, device="cpu")
    reply = alone.generate_response(QUESTION, None, **GENERATION)
    assert [one["reply"] for one in found] == [reply, reply]
    for one in found:
        assert len(one["parts"]) == 7, "the projections of one layer"
        assert set(one["parts"].values()) == {0.5}
