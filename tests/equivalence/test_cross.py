"""Gated cross-attention: cached = uncached, packed = padded, closed gates = the bare model."""

from dataclasses import replace

import pytest
import torch

from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.ops.collate import collate
from retinue.types import Batch
from tiny_cross import TEXTS, bare, example, make

ROWS = [example("two", 9, (2, 5), seed=1), example("one", 7, (3,), seed=2)]
ROWS.append(example("none", 6, (), seed=3))


def chunk(rows, start, stop):
    """Columns start..stop of rows as examples of their own."""
    cut = []
    for row in rows:
        spans = [span for span in row.spans if start <= span.start < stop]
        items = [row.items[span.item] for span in spans]
        moved = [
            replace(span, start=span.start - start, item=number)
            for number, span in enumerate(spans)
        ]
        tokens = row.tokens[start:stop]
        own = replace(row, tokens=tokens, labels=tokens, spans=moved, items=items)
        cut.append(replace(own, positions=list(range(start, start + len(tokens)))))
    return cut


@pytest.mark.parametrize("sees", ["immediate", "previous"])
@pytest.mark.parametrize("kind", TEXTS)
@torch.no_grad()
def test_chunks_with_new_pictures_after_cached_ones(kind, sees):
    model = make(kind, fusion={"sees": sees})
    rows = [ROWS[0], example("late", 9, (6,), seed=4), example("first", 9, (0,), seed=5)]
    whole = model.run(collate(rows)).logits
    cache = model.new_cache()
    parts = [
        model.run(collate(chunk(rows, start, stop)), cache=cache).logits
        for start, stop in ((0, 4), (4, 7), (7, 8), (8, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["picture_first", "text_first"])
@pytest.mark.parametrize("kind", ["llama", "mpt"])
def test_packed_is_padded(kind, order):
    model = make(kind, fusion={"order": order})
    packed, padded = (model.run(collate(ROWS, train=True, packed=one)) for one in (True, False))
    torch.testing.assert_close(packed.loss_sum, padded.loss_sum, rtol=1e-5, atol=0)
    packed.loss_sum.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    padded.loss_sum.backward()
    for name, parameter in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(grads[name], parameter.grad, atol=2e-5, rtol=1e-3)
    assert any("gated_cross_attn_layer" in name for name in grads)
    assert grads["connector.latents"].abs().sum() > 0


@pytest.mark.parametrize("counting", ["media", "ids"])
@pytest.mark.parametrize("kind", TEXTS)
@torch.no_grad()
def test_closed_gates_change_no_bit(kind, counting):
    """Text through the model with closed gates, and through the bare language model."""
    model = make(kind, gate=0.0, fusion={"counting": counting})
    batch = collate(
        [ROWS[2], replace(ROWS[2], id="short", tokens=ROWS[2].tokens[:4], labels=[0] * 4)]
    )
    assert torch.equal(model.run(batch).logits, bare(kind, model).run(batch).logits)


@torch.no_grad()
def test_rows_that_end_leave_the_media_of_the_others():
    """Greedy answers of a batch whose rows end at different times, against one row at a time."""
    model = make()
    params = [SamplingParams(max_new_tokens=count) for count in (2, 6, 4)]

    class Decoder:
        def decode(self, ids, *, skip_special=True):
            return " ".join(map(str, ids))

    together = complete(
        model, collate(ROWS, pad_side="left"), params=params, decoder=Decoder(), eos_ids=()
    )
    for row, own, found in zip(ROWS, params, together, strict=True):
        (alone,) = complete(model, collate([row]), params=own, decoder=Decoder(), eos_ids=())
        assert alone.tokens == found.tokens


@torch.no_grad()
def test_lost_pictures_are_seen_by_no_cached_word():
    model = make(fusion={"decoding": "lost"})
    cache = model.new_cache()
    model.run(collate(ROWS[:1]), cache=cache)
    assert all(int(lengths.max()) == 0 for *_, lengths in cache.cross.values())
    kept = make()
    other = kept.new_cache()
    kept.run(collate(ROWS[:1]), cache=other)
    step = Batch(
        ids=["two"],
        tokens=torch.tensor([[7]]),
        positions=torch.tensor([[9]]),
        segments=torch.ones(1, 1, dtype=torch.long),
    )
    one, two = model.run(step, cache=cache).logits, kept.run(step, cache=other).logits
    assert (one - two).abs().max() > 1e-4
