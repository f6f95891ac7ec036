"""Pre-training on shards: losses by source, damage counted, exact resume."""

import base64
import io
import json
import tarfile

import pytest
import torch

import retinue
import tiny
import tiny_recipe
from retinue.cli.main import run

LINES = ["a red circle", "a blue square near a star", "two rings", "the star is green"]


def picture(number):
    buffer = io.BytesIO()
    tiny.picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def document(number):
    info = [{"image_base64": base64.b64encode(picture(number + k)).decode()} for k in range(2)]
    matrix = [[0.5, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1]]
    return {"text_list": LINES, "image_info": info, "similarity_matrix": matrix}


@pytest.fixture
def recipe(tmp_path):
    path = tiny_recipe.shrink("flamingo-9b/pretrain", tmp_path, steps=4)
    pairs = []
    for k in range(12):
        name = f"{k:04}"
        pairs += [(f"{name}.txt", LINES[k % 4].encode()), (f"{name}.png", picture(k))]
    pairs[7] = (pairs[7][0], b"no picture")
    write(tmp_path / "laion-000.tar", pairs)
    write(
        tmp_path / "mmc4-000.tar",
        [(f"d{k}.json", json.dumps(document(k)).encode()) for k in range(6)],
    )
    sources = [
        {"path": f"{tmp_path}/laion-*.tar", "type": "laion", "ratio": 2.0},
        {"path": f"{tmp_path}/mmc4-*.tar", "type": "mmc4", "web": {"min_bytes": 0}},
    ]
    return path, [f"data.sources={json.dumps(sources)}", "data.epoch.samples=12"]


def train(recipe, out, *more):
    path, overrides = recipe
    words = ["train", str(path), *overrides, *more, "--out", str(out), "--device", "cpu"]
    assert run(words) == 0
    (log,) = out.glob("*.jsonl")
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row and "step" in row}


def test_a_run_on_shards_goes_on_where_it_stopped(recipe, tmp_path):
    out = tmp_path / "straight"
    straight = train(recipe, out, "checkpoint.every=2", "checkpoint.keep=9")
    assert sorted(straight) == [1, 2, 3, 4]
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert record["counts"] == {"updates": 4, "skipped": 1}  # the picture that is none
    saved = next(path for path in sorted((out / "checkpoints").iterdir()) if "2" in path.name)
    later = train(recipe, tmp_path / "later", f"checkpoint.resume={saved}")
    assert later == {step: straight[step] for step in (3, 4)}


def test_every_step_has_both_sources_and_a_weight_for_each(recipe, tmp_path):
    """Without documents' weight the loss is the captions' alone, and both add up."""
    both = train(recipe, tmp_path / "both", "stages.0.steps=1")
    alone = [
        train(
            recipe, tmp_path / f"alone{k}", "stages.0.steps=1",
            f"stages.0.loss_weights={{laion: {a}, mmc4: {b}}}",
        )[1]
        for k, (a, b) in enumerate([(0.2, 0.0), (0.0, 1.0)])
    ]  # fmt: skip
    assert all(loss > 0 for loss in alone)
    assert both[1] == pytest.approx(sum(alone), rel=1e-5)


def test_two_rows_of_the_word_table_train(recipe, tmp_path):
    """The others keep their bits; half of the pictures are seen in a mirror."""
    path, overrides = recipe
    overrides = [*overrides, "stages.0.schedule.warmup=0", "stages.0.optim.lr=1e-2"]
    with_mirror, without = (
        train((path, [*overrides, f"data.augment={augment}"]), tmp_path / name)
        for name, augment in (("flip", "{kind: flip, share: 0.5}"), ("plain", "{kind: none}"))
    )
    assert with_mirror != without
    _, processor = retinue.load(tmp_path / "base")
    tables = [
        retinue.load(folder)[0].get_parameter("lm.transformer.wte.weight").detach()
        for folder in (tmp_path / "base", tmp_path / "flip/model")
    ]
    moved = (tables[0].view(torch.int32) != tables[1].view(torch.int32)).any(dim=1)
    marks = [processor.tokenizer.id_of(name) for name in ("<image>", "<|endofchunk|>")]
    assert moved.nonzero().flatten().tolist() == sorted(marks)
