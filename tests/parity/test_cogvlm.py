"""CogVLM beside a plain reference written from its paper and names: prefill and cached decode."""

import math

import pytest
import torch
from torch.nn import functional as F

import tiny_cogvlm
from retinue.types import Batch, Grid, Media, Message, Sample, Text, Visual
from tiny_cogvlm import EYE, HEADS, IMAGE, LAYERS, TEXT, VOCAB, WIDE, D


@pytest.fixture(scope="module")
def model():
    return tiny_cogvlm.make()


# ---------------------------------------------------------------- the plain reference


def rms(x, weight):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def see(w, pixels):
    p = "encoders.eva.net."
    x = F.conv2d(
        pixels, w[p + "patch_embedding.proj.weight"], w[p + "patch_embedding.proj.bias"], stride=4
    )
    x = torch.cat([w[p + "patch_embedding.cls_embedding"], x[0].flatten(1).T])
    x = x + w[p + "patch_embedding.position_embedding.weight"]
    for i in range(EYE["num_hidden_layers"]):
        q = f"{p}transformer.layers.{i}."

        def lin(y, name, q=q):
            return y @ w[f"{q}{name}.weight"].T + w[f"{q}{name}.bias"]

        def norm(y, name, q=q):
            return F.layer_norm(y, y.shape[-1:], w[f"{q}{name}.weight"], w[f"{q}{name}.bias"], 1e-6)

        parts = [y.view(len(x), 3, 4) for y in lin(x, "attention.query_key_value").chunk(3, -1)]
        scores = torch.einsum("lhk,mhk->hlm", parts[0], parts[1]) / 2.0
        mixed = torch.einsum("hlm,mhk->lhk", scores.softmax(-1), parts[2]).flatten(1)
        x = x + norm(lin(mixed, "attention.dense"), "input_layernorm")
        x = x + norm(lin(F.gelu(lin(x, "mlp.fc1")), "mlp.fc2"), "post_attention_layernorm")
    x = x[1:] @ w["connector.linear_proj.weight"].T
    x = F.gelu(F.layer_norm(x, (D,), w["connector.norm1.weight"], w["connector.norm1.bias"], 1e-5))
    wide = F.silu(x @ w["connector.gate_proj.weight"].T) * (
        x @ w["connector.dense_h_to_4h.weight"].T
    )
    x = wide @ w["connector.dense_4h_to_h.weight"].T
    return torch.cat([w["layout.start"][None], x, w["layout.end"][None]])


def positions_of(types):
    """boi and eoi count as words; a word, or the first inner vision token, takes a step."""
    kinds = list(types)
    for t in range(len(types)):
        edge = t in (0, len(types) - 1) or types[t - 1] == 0 or types[t + 1] == 0
        if types[t] == 1 and edge:
            kinds[t] = 0
    found, now = [], 0
    for t, kind in enumerate(kinds):
        if t and (kind == 0 or kinds[t - 1] == 0):
            now += 1
        found.append(now)
    return found


def turn(x, positions):
    half = x.shape[-1] // 2
    freqs = 10000.0 ** (-torch.arange(half, dtype=torch.float) / half)
    angles = torch.tensor(positions, dtype=torch.float)[:, None, None] * freqs
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def reference(w, x, types):
    """Logits (T, V) of one row of embeddings."""
    T = len(x)
    eye = torch.tensor([types[t] == 1 and t + 1 < T and types[t + 1] == 1 for t in range(T)])
    positions = positions_of(types)
    for i in range(LAYERS):
        p = f"lm.model.layers.{i}."

        def both(y, word, image, p=p):
            return torch.where(eye[:, None], y @ w[p + image].T, y @ w[p + word].T)

        y = rms(x, w[p + "input_layernorm.weight"])
        names = [(f"self_attn.{n}_proj.weight", f"self_attn.visual_{n}_proj.weight") for n in "qkv"]
        q, k, v = (both(y, *pair).view(T, HEADS, -1) for pair in names)
        q, k = turn(q, positions), turn(k, positions)
        scores = torch.einsum("thk,shk->hts", q, k) / math.sqrt(D // HEADS)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("hts,shk->thk", scores.softmax(-1), v).flatten(1)
        x = x + both(mixed, "self_attn.o_proj.weight", "self_attn.visual_o_proj.weight")
        y = rms(x, w[p + "post_attention_layernorm.weight"])
        mlp = {}
        for kind in ("mlp", "visual_mlp"):
            gate, up, down = (w[f"{p}{kind}.{n}_proj.weight"] for n in ("gate", "up", "down"))
            mlp[kind] = (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
        x = x + torch.where(eye[:, None], mlp["visual_mlp"], mlp["mlp"])
    return rms(x, w["lm.model.norm.weight"]) @ w["lm.lm_head.weight"].T


def batch_of(ids, pixels, spans):
    rows, width = ids.shape
    index = torch.cat([torch.arange(r * width + s, r * width + s + n) for r, s, n in spans])
    return Batch(
        ids=[str(r) for r in range(rows)],
        tokens=ids,
        positions=torch.arange(width).expand(rows, width),
        segments=torch.ones_like(ids),
        visual=Visual(
            pixels={"rgb": pixels},
            grids=[Grid(size=(8, 8))] * len(spans),
            budgets=[None] * len(spans),
            spans=torch.tensor(spans),
            index=index,
        ),
    )


def test_positions_of_the_paper():
    assert positions_of([0, 1, 1, 1, 1, 1, 0, 0, 0]) == [0, 1, 2, 2, 2, 3, 4, 5, 6]


@torch.no_grad()
def test_prefill_and_cached_decode(model):
    torch.manual_seed(0)
    weights, length = dict(model.state_dict()), 6
    spans = [[0, 1, length], [1, 3, length]]
    ids = torch.randint(0, VOCAB, (2, 12))
    pixels = torch.randn(2, 3, 8, 8)
    for row, start, count in spans:
        ids[row, start : start + count] = IMAGE
    later = torch.randint(0, VOCAB, (2, 4))
    expected = []
    for row, start, count in spans:
        x = weights["lm.model.embed_tokens.weight"][torch.cat([ids[row], later[row]]).clamp(min=0)]
        x = torch.cat([x[:start], see(weights, pixels[row : row + 1]), x[start + count :]])
        types = [int(start <= t < start + count) for t in range(16)]
        expected.append(reference(weights, x, types))
    expected = torch.stack(expected)
    cache = model.new_cache()
    found = [model.run(batch_of(ids, pixels, spans), cache=cache).logits]
    for step in range(4):
        batch = Batch(
            ids=["0", "1"],
            tokens=later[:, step : step + 1],
            positions=torch.full((2, 1), 12 + step),
            segments=torch.ones(2, 1, dtype=torch.long),
        )
        found.append(model.run(batch, cache=cache).logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_experts_differ_and_text_alone_does_not_use_them(model):
    ids = torch.randint(0, VOCAB, (1, 7))
    plain = Batch(
        ids=["0"],
        tokens=ids,
        positions=torch.arange(7)[None],
        segments=torch.ones_like(ids),
    )
    weights = dict(model.state_dict())
    expected = reference(weights, weights["lm.model.embed_tokens.weight"][ids[0]], [0] * 7)
    torch.testing.assert_close(model.run(plain).logits[0], expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- folders


def test_public_layout_loads(model, tmp_path):
    """A folder with the names and packed projections of the public checkpoints."""
    from retinue.hub.load import load

    state = tiny_cogvlm.write_public(model, tmp_path)
    assert "model.layers.0.self_attn.vision_expert_query_key_value.weight" in state
    assert state["model.vision.boi"].shape == (1, 1, D)
    loaded, processor = load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    parts = (Media(source="x.png"), Text(text="What is it?"))
    found = processor.template.text([Message(role="user", parts=parts)], reply=True)
    assert found == "<image>Question: What is it? Answer:"
    sample = Sample(id="s", messages=(Message(role="user", parts=(Text(text="Hi"),)),))
    assert processor.example(sample).tokens[0] == processor.tokenizer.bos_id


def test_experts_start_as_copies(model, tmp_path):
    """On a language model from a folder, second weights are those of the first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from retinue.hub.build import build

    torch.manual_seed(0)
    fields = {key: value for key, value in TEXT.items() if key not in ("model_type", "vocab_size")}
    LlamaForCausalLM(LlamaConfig(vocab_size=1000, **fields)).save_pretrained(tmp_path)
    tiny_cogvlm.copy_words(tmp_path)
    take = {"kind": "take", "encoder": "eva", "layer": -1, "prefix": False}
    made = build(
        {
            "lm": {"from": str(tmp_path)},
            "encoders": {"eva": {"kind": "eva2", "config": EYE}},
            "connector": {"kind": "glu", "inner": WIDE, "of": take},
            "layout": {"kind": "bracket"},
            "fusion": {"kind": "expert"},
            "template": "plain",
        }
    ).model
    layer = made.lm.layers[0]
    assert torch.equal(layer.visual_mlp.up_proj.weight, layer.mlp.up_proj.weight)
    assert torch.equal(layer.self_attn.visual_k_proj.weight, layer.self_attn.k_proj.weight)
    assert layer.self_attn.visual_k_proj.weight is not layer.self_attn.k_proj.weight
