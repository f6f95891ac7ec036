"""One forward, many shapes: packed = padded, batch = single, cached = uncached, left = right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.types import Batch, Example, Sample, Visual
from tiny import ask, picture, tiny_model

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}
VIEWS: list[Any] = [None, {"kind": "anyres", "pinpoints": [[32, 64], [64, 32], [64, 64]]}]


@pytest.fixture(params=VIEWS, ids=["one view", "tiles"])
def pair(request: pytest.FixtureRequest) -> tuple[Retinue, Processor]:
    return tiny_model(views=request.param)


def documents() -> list[Sample]:
    """With 0, 1 and 2 pictures; answers of different lengths."""
    return [
        ask("none", "how many shapes are there?", answer="one two"),
        ask("one", "what colour?", picture(1), answer="red"),
        ask("two", "is it blue?", picture(2), picture(3, width=70), answer="the circle is red"),
        ask("last", "what?", picture(4, height=80), answer="green or blue"),
    ]


def step(model: Retinue, batch: Batch) -> tuple[Tensor, int, dict[str, Tensor | None]]:
    """Loss sum, number of targets and every gradient."""
    model.zero_grad(set_to_none=True)
    out = model.run(batch)
    assert out.loss_sum is not None
    assert out.num_supervised is not None
    out.loss_sum.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return out.loss_sum.detach(), int(out.num_supervised), found


def same(one: Any, other: Any) -> None:
    """Equal mean loss, number of targets, and gradients of the mean loss."""
    assert one[1] == other[1]
    torch.testing.assert_close(one[0] / one[1], other[0] / one[1], **CLOSE)
    assert one[2].keys() == other[2].keys()
    for name, grad in one[2].items():
        if grad is None or other[2][name] is None:
            assert grad is other[2][name], name
        else:
            torch.testing.assert_close(grad / one[1], other[2][name] / one[1], **CLOSE, msg=name)


def examples(processor: Processor, samples: list[Sample]) -> list[Example]:
    return [processor.example(sample, train=True) for sample in samples]


def test_packed_is_padded(pair: tuple[Retinue, Processor]) -> None:
    model, processor = pair
    found = examples(processor, documents())
    padded = step(model, processor.collate(found, train=True))
    packed = processor.collate(found, train=True, packed=True)
    assert packed.tokens.shape[0] == 1
    assert packed.cu_seqlens is not None
    same(padded, step(model, packed))
    same(padded, step(model, replace(packed, cu_seqlens=None)))  # read off the segments
    same(padded, step(model, processor.collate(found, train=True, packed=True, multiple=64)))
    same(padded, step(model, processor.collate(found, train=True, pad_side="left")))


def test_order_in_a_pack_does_not_matter(pair: tuple[Retinue, Processor]) -> None:
    model, processor = pair
    found = examples(processor, documents())
    straight = processor.collate(found, train=True, packed=True)
    turned = processor.collate(found[::-1], train=True, packed=True)
    same(step(model, straight), step(model, turned))


def test_batch_is_the_sum_of_its_samples(pair: tuple[Retinue, Processor]) -> None:
    model, processor = pair
    found = examples(processor, documents())
    whole = step(model, processor.collate(found, train=True))
    alone = [step(model, processor.collate([one], train=True)) for one in found]
    grads: dict[str, Tensor | None] = {}
    for name in whole[2]:
        parts = [grad for one in alone if (grad := one[2][name]) is not None]
        grads[name] = sum(parts) if parts else None  # type: ignore[assignment]
    same(whole, (sum(one[0] for one in alone), sum(one[1] for one in alone), grads))


def test_logits_of_left_and_right_padding_are_those_of_single_rows(
    pair: tuple[Retinue, Processor],
) -> None:
    model, processor = pair
    samples = documents()
    with torch.no_grad():
        alone = [model.run(processor.batch([one])).logits for one in samples]
        for side in ("left", "right"):
            batch = processor.batch(samples, pad_side=side)
            logits = model.run(batch).logits
            last = model.run(batch, keep="last").logits
            assert logits is not None
            assert last is not None
            for row, one in enumerate(alone):
                assert one is not None
                real = batch.segments[row] > 0
                torch.testing.assert_close(logits[row][real], one[0], **CLOSE)
                torch.testing.assert_close(last[row], one[0, -1], **CLOSE)


def columns(batch: Batch, start: int, stop: int) -> Batch:
    """Columns start..stop of a padded batch, without pictures where none of them begins there."""
    visual = batch.visual
    if visual is not None:
        assert start == 0
        ends = visual.spans[:, 1] + visual.spans[:, 2]
        assert int(ends.max()) <= stop, "the cut would fall into a picture"
        row, col = visual.index // batch.tokens.shape[1], visual.index % batch.tokens.shape[1]
        visual = Visual(
            pixels=visual.pixels,
            grids=visual.grids,
            budgets=visual.budgets,
            spans=visual.spans,
            index=row * (stop - start) + col,
        )
    return replace(
        batch,
        tokens=batch.tokens[:, start:stop],
        positions=batch.positions[:, start:stop],
        segments=batch.segments[:, start:stop],
        visual=visual,
    )


@pytest.mark.parametrize("chunks", [(1,), (3,), (2, 1, 1)])
def test_cached_is_uncached(pair: tuple[Retinue, Processor], chunks: tuple[int, ...]) -> None:
    model, processor = pair
    batch = processor.batch(documents(), pad_side="left")
    width = batch.tokens.shape[1]
    at = width - sum(chunks)
    with torch.no_grad():
        whole = model.run(batch).logits
        assert whole is not None
        cache = model.new_cache()
        pieces = [model.run(columns(batch, 0, at), cache=cache).logits]
        for size in chunks:
            rest = columns(replace(batch, visual=None), at, at + size)
            pieces.append(model.run(rest, cache=cache).logits)
            at += size
    real = batch.segments > 0
    stepwise = torch.cat([piece for piece in pieces if piece is not None], dim=1)
    torch.testing.assert_close(stepwise[real], whole[real], **CLOSE)
    assert cache.segments_BS is not None
    assert torch.equal(cache.segments_BS, batch.segments)


def test_text_alone_never_touches_what_sees(pair: tuple[Retinue, Processor]) -> None:
    model, processor = pair

    def refuse(*_: Any) -> None:
        raise AssertionError("an encoder ran")

    handles = [e.register_forward_pre_hook(refuse) for e in model.encoders.values()]
    samples = [ask("a", "how many?", answer="one"), ask("b", "what?", answer="red or blue")]
    batch = processor.batch(samples, train=True)
    assert batch.visual is None
    *_, grads = step(model, batch)
    for handle in handles:
        handle.remove()
    seeing = {name for name in grads if not name.startswith("lm.")}
    assert seeing
    assert [name for name in seeing if grads[name] is not None] == []
    assert [name for name in set(grads) - seeing if grads[name] is None] == []


def test_text_alone_is_the_language_model_alone(pair: tuple[Retinue, Processor]) -> None:
    model, processor = pair
    batch = processor.batch([ask("a", "how many shapes are there?")])
    with torch.no_grad():
        hidden = model.lm.base(inputs_embeds=model.lm.embedding(batch.tokens)).last_hidden_state
        logits = model.run(batch).logits
    assert logits is not None
    torch.testing.assert_close(logits, model.lm.head(hidden), **CLOSE)


def test_frozen_encoder_keeps_no_graph_and_stops_early(
    pair: tuple[Retinue, Processor],
) -> None:
    model, processor = pair
    eye = model.encoders["eye"]
    eye.requires_grad_(False)
    ran: list[bool] = []
    for block in eye.blocks:
        block.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    batch = processor.batch(documents()[1:2], train=True)
    assert batch.visual is not None
    features = model.encode(batch.visual)
    assert [f.x_NLD.requires_grad for f in features.values()] == [False]
    assert ran == [False] * len(eye.blocks)
    *_, grads = step(model, batch)
    assert all(grads[name] is None for name in grads if name.startswith("encoders."))
    assert all(grads[name] is not None for name in grads if name.startswith("connector."))


def test_a_trained_encoder_s_unused_layers_do_not_run() -> None:
    model, processor = tiny_model()
    take = model.plan.spec.connector.children[0]
    assert ("eye", -1) in take.takes()
    object.__setattr__(take, "layer", -2)
    ran: list[int] = []
    for number, block in enumerate(model.encoders["eye"].blocks):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    batch = processor.batch(documents()[1:2])
    assert batch.visual is not None
    (key,) = model.encode(batch.visual)
    assert key == ("eye", -2)
    assert ran == list(range(len(model.encoders["eye"].blocks) - 1))
