"""Gated cross-attention: cached = uncached, packed = padded, closed gates = the bare model."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig
from retinue.ops.collate import collate
from retinue.types import Batch, Example, Grid, Item, Span

IMAGE = 5
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60}
TEXTS = {
    "llama": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "vocab_size": 60},
    "mistral": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8},
    "qwen2": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
}


def make(kind="llama", *, gate=0.7, fusion=None, **text):
    vision = AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    take = {"kind": "take", "encoder": "eye", "layer": -1}
    perceiver = {
        "kind": "perceiver",
        "depth": 1,
        "latents": 3,
        "heads": 2,
        "head_width": 4,
        "of": take,
    }
    cross = {"kind": "cross", "every": 2, "heads": 2, "head_width": 4, **(fusion or {})}
    config = RetinueConfig(
        text_config=AutoConfig.for_model(kind, **TEXTS[kind], **text),
        encoders={"eye": vision},
        spec={
            "encoders": {"eye": {"kind": "clip"}},
            "connector": perceiver,
            "fusion": cross,
            "image_token_id": IMAGE,
        },
    )
    model = build_model(config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(gate)
    return model.eval()


def example(id, length, places, *, seed):
    """Words with a picture's mark at each of `places`."""
    stream = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, 60, (length,), generator=stream).tolist()
    items, spans = [], []
    for number, place in enumerate(places):
        tokens[place] = IMAGE
        pixels = torch.randn(1, 3, 8, 8, generator=stream)
        items.append(Item(pixels={"rgb": pixels}, grid=Grid(size=(8, 8)), num_tokens=3))
        spans.append(Span(start=place, length=1, item=number))
    return Example(id=id, tokens=tokens, labels=list(tokens), spans=spans, items=items)


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


@pytest.mark.parametrize("kind", TEXTS)
@torch.no_grad()
def test_closed_gates_change_no_bit(kind):
    """Text through the model with closed gates, and through the bare language model."""
    model = make(kind, gate=0.0)
    batch = collate(
        [ROWS[2], replace(ROWS[2], id="short", tokens=ROWS[2].tokens[:4], labels=[0] * 4)]
    )
    text = torch.equal(model.run(batch).logits, bare(kind, model).run(batch).logits)
    assert text


def bare(kind, model):
    """The same language model without blocks."""
    config = RetinueConfig.from_dict(model.config.to_dict())
    config.spec = {
        "connector": {"kind": "identity", "of": {"kind": "take", "encoder": "eye"}},
        "encoders": config.spec["encoders"],
        "image_token_id": IMAGE,
    }
    plain = build_model(config).eval()
    state = {name: value for name, value in model.state_dict().items() if name.startswith("lm.")}
    kept = {name: value for name, value in state.items() if "gated_cross_attn" not in name}
    missing, odd = plain.load_state_dict(kept, strict=False)
    assert not odd
    assert not [name for name in missing if name.startswith("lm.")]
    return plain


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
