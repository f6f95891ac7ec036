"""The elastic connector: what it pools, what it refuses, where it stands in the tree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinue.core.errors import ConfigError, DataError, RequestError
from retinue.hub.build import build
from retinue.hub.elastic import make_elastic
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.connectors import CONNECTORS
from retinue.model.connectors.base import Connector
from retinue.model.connectors.base import build as build_connector
from retinue.model.encoders.base import EncoderShape
from retinue.model.retinue import Retinue
from retinue.ops.spans import respan
from retinue.processor import Processor
from retinue.types import Features, Media, Message, Sample, Text
from tiny import ask, picture, tiny_model

WIDTH, OUT = 6, 4
TAKE = {"kind": "take", "encoder": "e"}
WITH_CLASS = {**TAKE, "prefix": True}


def shape(rows: int, cols: int, prefix: int = 0) -> dict[str, EncoderShape]:
    half = (0.5, 0.5, 0.5)
    return {
        "e": EncoderShape(
            width=WIDTH,
            grid=(rows, cols),
            prefix=prefix,
            num_layers=2,
            size=(8 * rows, 8 * cols),
            mean=half,
            std=half,
        )
    }


def node(tree: dict[str, Any], shapes: dict[str, EncoderShape]) -> Connector:
    torch.manual_seed(0)
    return build_connector(CONNECTORS.spec_of(tree), shapes, OUT)


def seen(views: int, shapes: dict[str, EncoderShape]) -> dict[tuple[str, int], Features]:
    (one,) = shapes.values()
    length = one.prefix + one.grid[0] * one.grid[1]
    x_NLD = torch.randn(views, length, WIDTH, generator=torch.Generator().manual_seed(1))
    return {("e", -2): Features(x_NLD=x_NLD, grid=one.grid, prefix=one.prefix)}


def by_hand(x_NLD: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """torch's own average pooling, as M3 calls it."""
    x_NDRC = x_NLD.transpose(1, 2).unflatten(2, grid)
    return torch.nn.functional.avg_pool2d(x_NDRC, side, side).flatten(2).transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(4, 4), (6, 6), (4, 8), (5, 7)]),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), min_size=1, max_size=4),
)
def test_items_are_pooled_each_to_its_budget(
    grid: tuple[int, int], items: list[tuple[int, int]]
) -> None:
    """Any square, also one that leaves rows and columns over, against torch's pooling."""
    shapes = shape(*grid)
    net = node({"kind": "elastic", "rounding": "original", "of": TAKE}, shapes)
    sides = [min(side, *grid) for _, side in items]
    budgets = [max(1, grid[0] * grid[1] // side**2) for side in sides]
    views = [count for count, _ in items]
    features = net.encode(seen(sum(views), shapes))
    found = net.reduce(features, views, budgets)
    parts = features.x_NLD.split(views)
    for part, own, budget in zip(parts, found, budgets, strict=True):
        side = int((grid[0] * grid[1] / budget) ** 0.5)
        assert own.grid == (grid[0] // side, grid[1] // side)
        torch.testing.assert_close(own.x_NLD, by_hand(part, grid, side), atol=1e-6, rtol=1e-6)


def test_scales_are_nested() -> None:
    """Pooling by 2 and then by 3 is pooling by 6."""
    shapes = shape(12, 12)
    net = node({"kind": "elastic", "of": TAKE}, shapes)
    features = net.encode(seen(1, shapes))
    (half,), (sixth,) = (net.reduce(features, [1], [budget]) for budget in (36, 4))
    assert half.grid is not None
    torch.testing.assert_close(by_hand(half.x_NLD, half.grid, 3), sixth.x_NLD)


def test_prefix_tokens_stay_in_front_and_count() -> None:
    shapes = shape(4, 4, prefix=1)
    net = node({"kind": "elastic", "of": WITH_CLASS}, shapes)
    assert net.spec.budgets(shapes) == [2, 5, 17]
    features = net.encode(seen(2, shapes))
    few, whole = net.reduce(features, [1, 1], [5, None])
    assert (few.grid, few.prefix, few.x_NLD.shape[1]) == ((2, 2), 1, 5)
    assert torch.equal(few.x_NLD[:, 0], features.x_NLD[:1, 0])
    pooled = by_hand(features.x_NLD[:1, 1:], (4, 4), 2)
    torch.testing.assert_close(few.x_NLD[:, 1:], pooled)
    assert torch.equal(whole.x_NLD, features.x_NLD[1:])
    with pytest.raises(ConfigError, match=r"one of \[2, 5, 17\].*nearest is 2"):
        net.spec.num_tokens(shapes, 1)


def test_before_the_projector_only_few_tokens_are_projected() -> None:
    """Inside a projector pooling comes first; around it, last. An affine map does not care."""
    shapes = shape(4, 4)
    taken = seen(3, shapes)
    for kind, same in (("linear", True), ("mlp", False)):
        inside = node({"kind": kind, "of": {"kind": "elastic", "of": TAKE}}, shapes)
        around = node({"kind": "elastic", "of": {"kind": kind, "of": TAKE}}, shapes)
        state = {f"of.{k}": v for k, v in inside.state_dict().items()}
        around.load_state_dict(state)
        assert inside.encode(taken).x_NLD.shape[-1] == WIDTH
        lengths: list[int] = []
        inside.net.register_forward_hook(lambda *a, to=lengths: to.append(a[2].shape[1]))  # type: ignore[operator, union-attr]
        few = inside(taken, [1, 2], [4, 1]), around(taken, [1, 2], [4, 1])
        assert sorted(lengths) == [1, 4]
        for a, b in zip(*few, strict=True):
            assert torch.allclose(a.x_NLD, b.x_NLD, atol=1e-6) == same
        (whole,), (other,) = inside(taken, [3], [None]), around(taken, [3], [None])
        torch.testing.assert_close(whole.x_NLD, other.x_NLD)
        (first,) = inside(taken, [3], [4])
        by_self = inside.map(by_hand(taken["e", -2].x_NLD, (4, 4), 2))  # type: ignore[operator]
        torch.testing.assert_close(first.x_NLD, by_self)


def test_an_operand_without_a_grid_is_refused_with_both_shapes() -> None:
    both = {"kind": "sequence", "parts": [TAKE, TAKE]}
    with pytest.raises(ConfigError, match=r"32 tokens of 'sequence' without a grid.*rows x col"):
        node({"kind": "elastic", "of": both}, shape(4, 4))


def test_scales_that_the_grid_cannot_meet_are_named_when_the_model_is_made() -> None:
    with pytest.raises(ConfigError, match=r"scales: .*budget of 9.*nearest is 4"):
        node({"kind": "elastic", "scales": [1, 9], "of": TAKE}, shape(4, 4))
    assert node(
        {"kind": "elastic", "scales": [1, 9], "rounding": "original", "of": TAKE}, shape(4, 4)
    )


# ------------------------------------------------------------------ through the whole model


def elastic(**options: Any) -> tuple[Retinue, Processor]:
    """The tiny model (4 x 4 tokens a view), pooled after its projector."""
    model, processor = tiny_model(**options)
    make_elastic(model, processor)
    return model, processor


def question(budget: int | None, id: str = "a", *, train: bool = True) -> Sample:
    parts = (Media(source=picture(), budget=budget), Text(text="what colour?"))
    told = [Message(role="user", parts=parts)]
    told += [Message(role="assistant", parts=(Text(text="red"),))] if train else []
    return Sample(id=id, messages=tuple(told))


@pytest.mark.parametrize(
    "views",
    [
        {"kind": "pad"},
        {"kind": "squash"},
        {"kind": "anyres", "pinpoints": [[32, 64], [64, 32], [64, 64]]},
    ],
    ids=lambda views: views["kind"],
)
@torch.inference_mode()
def test_another_budget_after_collation_is_processing_at_it(views: dict[str, Any]) -> None:
    model, processor = elastic(views=views)
    budgets: list[int | None] = [None, 4, 1]
    batch = processor([question(b, str(b)) for b in budgets], train=True)
    turned = [1, None, 4]
    wanted = processor([question(b, str(b)) for b in turned], train=True)
    assert batch.visual is not None
    assert wanted.visual is not None
    pairs = zip(batch.visual.grids, turned, strict=True)
    lengths = [model.plan.placeholders_for(grid, b) for grid, b in pairs]
    found = respan(batch, lengths, pad=processor.tokenizer.pad_id)
    for name in ("tokens", "labels", "positions", "segments", "supervised"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(found.visual.index, wanted.visual.index)  # type: ignore[union-attr]
    loss = model.run(wanted).loss_sum
    single = [model.run(processor([question(b)], train=True)).loss_sum for b in turned]
    torch.testing.assert_close(loss, sum(single))


def test_the_cache_of_lengths_knows_the_default_budget() -> None:
    model, processor = elastic()
    marks = {processor.fingerprint()}
    for budget in (4, 1):
        make_elastic(model, processor, budget=budget)
        marks.add(processor.fingerprint())
    assert len(marks) == 3
    tokens = [processor.length(question(budget))[0] for budget in (None, 1, 4, 16)]
    assert tokens == [tokens[0], tokens[0], tokens[0] + 3, tokens[0] + 15]


def test_a_bad_budget_leaves_the_model_as_it_was() -> None:
    model, processor = elastic()
    spec, plan, connector = model.config.spec, model.plan, model.connector
    for change in ({"budget": 5}, {"scales": [3]}):
        with pytest.raises(ConfigError, match=r"nearest is"):
            make_elastic(model, processor, **change)
        assert (model.config.spec, model.plan, model.connector) == (spec, plan, connector)
    with pytest.raises(DataError, match=r"sample a: .*budget of 7.*nearest is 4"):
        processor.example(question(7))


@torch.inference_mode()
def test_weights_and_full_answers_stay(tmp_path: Any) -> None:
    plain, processor = tiny_model()
    batch = processor([question(None)], train=True)
    before = plain.run(batch).loss_sum
    make_elastic(plain, processor, scales=[1, 4, 16])
    assert torch.equal(plain.run(batch).loss_sum, before)
    save(plain, processor, tmp_path / "own")
    again, other = load(tmp_path / "own")
    assert again.plan.budgets == [1, 4, 16]
    few = other([question(4)], train=True)
    assert torch.equal(again.run(few).loss_sum, plain.run(few).loss_sum)


def test_a_recipe_makes_a_folder_elastic(tmp_path: Any) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "own")
    section = {"from": str(tmp_path / "own"), "scales": [1, 4], "budget": 4}
    made = build(section)
    assert made.model.plan.budgets == [1, 4]
    assert made.processor.plan.per_view().length == 4
    with pytest.raises(ConfigError, match="by `from`"):
        build({"lm": {"from": "x"}, "scales": [1], "connector": TAKE, "encoders": {"e": "x"}})


@torch.inference_mode()
def test_transformers_call_shapes_carry_budgets() -> None:
    model, processor = elastic()
    text = ["<image>\nwhat?", "<image> or <image>?"]
    one, own = picture(), Media(source=picture(1), budget=1)
    inputs = processor(text=text, images=[[one], [own, one]], visual_tokens=4)
    assert inputs["image_budgets"].tolist() == [4, 1, 4]
    assert int((inputs["input_ids"] == processor.image_id).sum()) == 9
    logits = model(**inputs).logits[:, -1]
    rows = []
    for prompt, pictures in zip(text, [[one], [own, one]], strict=True):
        made = processor.prompt_example("p", prompt, pictures, visual_tokens=4)
        rows.append(model.run(processor.collate([made]), keep="last").logits[0])
    torch.testing.assert_close(logits, torch.stack(rows))
    beams = model.generate(**inputs, num_beams=3, max_new_tokens=4, do_sample=False)
    alone = processor(text=text[1], images=[own, one], visual_tokens=4)
    single = model.generate(**alone, num_beams=3, max_new_tokens=4, do_sample=False)
    assert (
        beams[1, inputs["input_ids"].shape[1] :].tolist()[:4]
        == (single[0, alone["input_ids"].shape[1] :].tolist()[:4])
    )
    with pytest.raises(ConfigError, match="nearest is 4"):
        processor(text=text[0], images=[one], visual_tokens=5)
    with pytest.raises(RequestError, match="image_budgets for 3"):
        model(**{**inputs, "image_budgets": torch.tensor([4])})


def test_messages_carry_budgets() -> None:
    _, processor = elastic()
    part = {"type": "image", "image": picture(), "budget": 4}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    found = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert found["image_budgets"].tolist() == [4]
    with pytest.raises(RequestError, match="positive number"):
        processor.apply_chat_template(
            [{"role": "user", "content": [{**part, "budget": "4"}]}], tokenize=True
        )


def test_views_of_several_pictures_keep_their_order() -> None:
    model, processor = elastic()
    pictures = [picture(0), picture(1), picture(2)]
    batch = processor([ask("a", "what?", *pictures)])
    assert batch.visual is not None
    with torch.inference_mode():
        whole = model.connector.encode(model.encode(batch.visual))
        mixed = model.connector.reduce(whole, [1, 1, 1], [4, None, 4])
        for number, budget in enumerate([4, None, 4]):
            (alone,) = model.connector.reduce(
                Features(x_NLD=whole.x_NLD[number : number + 1], grid=whole.grid), [1], [budget]
            )
            torch.testing.assert_close(mixed[number].x_NLD, alone.x_NLD)


@torch.inference_mode()
def test_frames_of_a_video_share_its_budget() -> None:
    model, processor = elastic()
    frames = tuple(picture(seed) for seed in range(6))
    video = Media(kind="video", source=frames, budget=4)
    sample = Sample(id="v", messages=(Message(role="user", parts=(video, Text(text="what?"))),))
    batch = processor([sample])
    assert batch.visual is not None
    assert set(batch.visual.budgets) == {4}
    words = model.look(batch.visual)
    assert words is not None
    assert sum(words.lengths) == int((batch.tokens == processor.image_id).sum())
    assert set(words.lengths) == {4}
