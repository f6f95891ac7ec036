"""SPHINX's models: pixels, encoder inputs and features, fused tokens, scores, losses, replies.

Tolerances of the cases: encoder samples and fused tokens 1e-3, scores 2e-3, loss 1e-4; ours is
2e-5, as the fp16 resampling is the original's to the bit and the rest is fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import compared
from PIL import Image
from sphinx_cases import batch_of, check_scores, folder, loaded, read, with_checkpoint
from torch import Tensor

from retinue.compat.sphinx.model import SPHINXModel
from retinue.compat.sphinx.rows import first_batch
from retinue.convert.consolidated import shard_files
from retinue.convert.sphinx import sphinx_groups, trained
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.media.views import StreamSpec
from retinue.media.whole import Pad
from retinue.model.lm.router import imbalance, watched
from retinue.ops.pixels import normalize
from retinue.types import IGNORE, Item, Visual

pytestmark = pytest.mark.golden

CLOSE = {"atol": 2e-5, "rtol": 0.0}
CASES = with_checkpoint(sees=True, key="generate_response")
VIEW_STEP, WIDE_STEP, TOKEN_STEP, CELL_STEP = 28, 32, 9, 3
"""Strides of the recorded samples, stated in the cases' README."""


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", paths, ids=lambda path: path.name)


def pictures(case: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(case.glob("image*.png"))]


def prepared(case: Path) -> tuple[SPHINXModel, list[Item], Visual]:
    model = loaded(case)
    items = model.items(pictures(case))
    batch = first_batch(model.processor, [[1, 5]] * len(items), items)
    assert batch.visual is not None
    return model, items, batch.visual


def rows_of(case: Path, views: Tensor) -> Tensor:
    """(items * views, ...) in the order that the case recorded; one variant puts views first."""
    count = len(pictures(case))
    if read(case)[0]["llama_type"] == "llama_ens5":
        return views.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
    return views


@named(CASES)
def test_pixels_and_encoder_inputs(case: Path) -> None:
    outputs, tensors = read(case)
    model, items, visual = prepared(case)
    assert [item.num_tokens for item in items] == [outputs["image_words"]] * len(items)
    side = outputs["image_size"]
    stream = StreamSpec(size=side)
    levels = torch.cat([Pad().views(picture, stream)[0] for picture in pictures(case)])
    step = side // tensors["pixels_sample"].shape[-1]
    whole = normalize(levels, mean=stream.mean, std=stream.std)[..., ::step, ::step]
    torch.testing.assert_close(whole, tensors["pixels_sample"], **CLOSE)
    names = {"views_224": ("clip", VIEW_STEP), "dino_in": ("dinov2", VIEW_STEP)}
    names["convnext_in"] = ("convnext", WIDE_STEP)
    for key, (name, step) in names.items():
        if f"{key}_sample" not in tensors:
            continue
        encoder: Any = model.model.encoders[name]
        seen = encoder.pixels(visual.pixels[encoder.shape.stream], dtype=torch.float32)
        got = rows_of(case, seen[..., ::step, ::step])
        torch.testing.assert_close(got, tensors[f"{key}_sample"], **CLOSE)
    compared(case)


@named(CASES)
@torch.no_grad()
def test_features(case: Path) -> None:
    tensors = read(case)[1]
    model, _, visual = prepared(case)
    features = model.model.encode(visual)
    found = {name: value for (name, _), value in features.items()}
    for name, key in (("clip", "clip_feats"), ("dinov2", "dino_feats")):
        if f"{key}_sample" in tensors:
            got = rows_of(case, found[name].x_NLD)[:, ::TOKEN_STEP]
            torch.testing.assert_close(got, tensors[f"{key}_sample"], **CLOSE)
    cells = found["convnext"]
    assert cells.grid is not None
    map_NDRC = rows_of(case, cells.x_NLD).transpose(1, 2).unflatten(2, cells.grid)
    got = map_NDRC[..., ::CELL_STEP, ::CELL_STEP]
    torch.testing.assert_close(got, tensors["convnext_feats_sample"], **CLOSE)
    if "qformer_feats_sample" in tensors:
        query = model.model.connector.parts[0].of.encode(features)
        got = rows_of(case, query.x_NLD)[:, ::TOKEN_STEP]
        torch.testing.assert_close(got, tensors["qformer_feats_sample"], **CLOSE)
    compared(case)


@named(CASES)
@torch.no_grad()
def test_fused_tokens(case: Path) -> None:
    tensors = read(case)[1]
    model, items, visual = prepared(case)
    words = model.model.look(visual)
    assert words is not None
    assert words.lengths == [item.num_tokens for item in items]
    x_ITD = words.x_TD.unflatten(0, (len(items), -1))
    wanted = tensors["image_tokens"]
    torch.testing.assert_close(x_ITD[: len(wanted), : wanted.shape[1]], wanted, **CLOSE)
    key = next(key for key in tensors if key.startswith("image_tokens_all_stride"))
    step = int(key.rpartition("stride")[2])
    torch.testing.assert_close(x_ITD[:, ::step], tensors[key], **CLOSE)
    compared(case)


@named(CASES)
@torch.no_grad()
def test_scores_and_losses(case: Path) -> None:
    tensors = read(case)[1]
    model, items, _ = prepared(case)
    ids, labels = tensors["input_ids"].long(), tensors["labels"].long()
    with_router = watched(model.model.lm) if "lb_loss" in tensors else None
    if with_router is None:
        scores = model.forward_text(ids, items)
    else:
        with with_router as seen:
            scores = model.forward_text(ids, items)
        uneven = imbalance(seen).mean()[None]
        torch.testing.assert_close(uneven, tensors["lb_loss"], **CLOSE)
        weight = model.model.lm.config.router_aux_loss_coef
        assert weight == pytest.approx(float(tensors["lb_weight"]))
    check_scores("logits", scores, tensors, atol=2e-5)
    check_scores("logits_no_image", model.forward_text(ids), tensors, atol=2e-5)
    targets = labels[:, 1:].masked_fill(labels[:, 1:] == 0, IGNORE)
    loss = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss[None], tensors["loss"], **CLOSE)
    compared(case)


@named(CASES)
@torch.no_grad()
def test_cached_scores(case: Path) -> None:
    """Four ids with the picture, then the fifth by itself."""
    tensors = read(case)[1]
    model, items, _ = prepared(case)
    ids = tensors["input_ids"].long()
    cache = model.model.new_cache()
    first = model.model.run(
        first_batch(model.processor, ids[:, :4].tolist(), items), cache=cache, keep="last"
    )
    step = model.model.run(
        batch_of(ids[:, 4:5], start=4 + items[0].num_tokens), cache=cache, keep="last"
    )
    assert first.logits is not None
    assert step.logits is not None
    check_scores("infer_logits", first.logits, tensors, atol=2e-5)
    check_scores("infer_logits_step", step.logits, tensors, atol=2e-5)
    compared(case)


@named(CASES)
def test_replies(case: Path) -> None:
    """Greedy, seeded, of several turns and without a picture; streamed, the same text."""
    model = loaded(case)
    for record in read(case)[0]["generate_response"]:
        image = Image.open(case / record["image"]) if record["image"] else None
        reply = model.generate_response(record["qas"], image, **record["args"])
        assert reply == record["response"]
        assert reply == model.tokenizer.decode(record["ids"])
        *_, last = model.stream_response(record["qas"], image, **record["args"])
        assert last == {"text": reply, "end_of_content": True}
    compared(case)


@named(CASES)
def test_trained_names(case: Path) -> None:
    """What the original trains: all but the encoders, Q-Former included."""
    model = loaded(case).model
    kind = model.config.foreign["llama_type"]
    groups = sphinx_groups(model.config, experts="sparse" if "mixtral" in kind else None)
    names = {n for g in groups if trained(g.ours[0]) for n in g.theirs}
    assert {f"llma.{name}" for name in names} == set(read(case)[0]["trainable"])
    compared(case)


@named(CASES)
@torch.no_grad()
def test_there_and_back(case: Path, tmp_path: Path) -> None:
    """A retinue folder, and two shards made of it, give the recorded tokens; bf16 answers too."""
    tensors = read(case)[1]
    model, items, visual = prepared(case)
    convert(folder(case), tmp_path / "ours", to="retinue")
    convert(tmp_path / "ours", tmp_path / "two", to="sphinx", shards=2)
    assert len(shard_files(tmp_path / "two")) == 2
    wanted = tensors["image_tokens"]
    for place in ("ours", "two"):
        other, processor = load(tmp_path / place, dtype=torch.float32)
        assert processor.spec == model.processor.spec
        words = other.look(visual)
        assert words is not None
        x_ITD = words.x_TD.unflatten(0, (len(items), -1))
        torch.testing.assert_close(x_ITD[: len(wanted), : wanted.shape[1]], wanted, **CLOSE)
    half = SPHINXModel.from_pretrained(tmp_path / "two", with_visual=True, device="cpu")
    question = [["What's in the image?", None]]
    assert half.generate_response(question, pictures(case)[0], max_gen_len=3)
    compared(case)


@named(CASES)
@torch.no_grad()
def test_clean_pixels_are_near(case: Path, tmp_path: Path) -> None:
    """Without fp16 and nearest neighbours the same model sees nearly the same; it goes back too."""
    model, items, visual = prepared(case)
    clean = SPHINXModel.from_pretrained(
        folder(case), dtype=torch.float32, device="cpu", max_seq_len=2048, precision="clean"
    )
    others = clean.items(pictures(case))
    assert [item.num_tokens for item in others] == [item.num_tokens for item in items]
    assert all(v.dtype == torch.uint8 for item in others for v in item.pixels.values())
    batch = first_batch(clean.processor, [[1, 5]] * len(others), others)
    assert batch.visual is not None
    ours, theirs = clean.model.look(batch.visual), model.model.look(visual)
    assert ours is not None
    assert theirs is not None
    likeness = torch.nn.functional.cosine_similarity(ours.x_TD, theirs.x_TD, dim=-1)
    assert likeness.mean() > 0.9
    save(clean.model, clean.processor, tmp_path / "clean")
    convert(tmp_path / "clean", tmp_path / "back", to="sphinx")
    assert len(shard_files(tmp_path / "back")) == 1
    compared(case)
