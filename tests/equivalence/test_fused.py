"""The inference twin gives what transformers' layers give, and leaves alone what it does not know.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

import tiny
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.model.build import build_model
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.lm.fused import Twin, inference_twin, unlike
from retinue.model.lm.fused_cache import CHUNK
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.types import Batch, Example, Grid, Item, Span

VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KNOWN: dict[str, PreTrainedConfig] = {
    "llama, grouped heads": LlamaConfig(**SIZES),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, tied, wide heads": LlamaConfig(**SIZES, tie_word_embeddings=True, head_dim=16),
    "llama, scaled rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "llama, rope by length": LlamaConfig(
        **{**SIZES, "max_position_embeddings": 12},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "phi3": Phi3Config(**SIZES),
}
ODD: dict[str, PreTrainedConfig] = {
    "sliding window": MistralConfig(**SIZES, sliding_window=8),
    "some layers slide": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "activation": LlamaConfig(**SIZES, hidden_act="gelu"),
    "a part turns": Phi3Config(
        **SIZES,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
        },
    ),
    "other family": GemmaConfig(**SIZES, head_dim=8),
}


def make(text: PreTrainedConfig) -> Retinue:
    spec = {
        "encoders": {"eye": {"kind": "patches"}},
        "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
        "image_token_id": VOCAB,
    }
    eye = PatchesConfig(hidden_size=32, image_size=16)
    model = build_model(RetinueConfig(text, {"eye": eye}, spec), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.lm.parameters():  # biases and norms too
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise, alpha=0.1)
    return model


def rows(lengths: list[int], *, picture: bool = False) -> list[Example]:
    generator = torch.Generator().manual_seed(sum(lengths))
    made = []
    for number, length in enumerate(lengths):
        tokens = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        spans, items = [], []
        if picture and number == 0:
            pixels = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=generator)
            tokens[2:6] = [VOCAB] * 4
            spans = [Span(start=2, length=4, item=0)]
            items = [Item(pixels={"rgb": pixels}, grid=Grid(size=(16, 16)), num_tokens=4)]
        made.append(Example(id=str(number), tokens=tokens, labels=tokens, spans=spans, items=items))
    return made


def batch_of(examples: list[Example], **how: Any) -> Batch:
    from retinue.ops.collate import collate

    return collate(examples, **how)


def close(found: Tensor | None, wanted: Tensor | None) -> None:
    assert found is not None
    assert wanted is not None
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", KNOWN)
def test_twin_equals_the_model(name: str) -> None:
    """A picture, left padding, a packed row; a prefill and steps over several chunks of cache."""
    model = make(KNOWN[name])
    twin = inference_twin(model)
    assert isinstance(twin, Twin), unlike(model)
    for how in ({"pad_side": "left"}, {"pad_side": "right"}, {"packed": True}):
        batch = batch_of(rows([9, 14, 5], picture=True), **how)
        real = batch.segments > 0
        found, wanted = twin.run(batch).logits, model.run(batch).logits
        assert found is not None
        assert wanted is not None
        close(found[real], wanted[real])

    batch = batch_of(rows([CHUNK + 3, CHUNK - 20], picture=True), pad_side="left")
    caches = [twin.new_cache(), model.new_cache()]
    outs = [
        runner.run(batch, cache=cache, keep="last")
        for runner, cache in zip((twin, model), caches, strict=True)
    ]
    close(outs[0].logits, outs[1].logits)
    for step in range(3):
        tokens = torch.tensor([[5 + step], [9 + step]])
        positions = batch.positions[:, -1:] + 1 + step
        new = Batch(
            ids=["0", "1"], tokens=tokens, positions=positions, segments=torch.ones_like(tokens)
        )
        outs = [
            runner.run(new, cache=cache, keep="last")
            for runner, cache in zip((twin, model), caches, strict=True)
        ]
        close(outs[0].logits, outs[1].logits)


@torch.inference_mode()
def test_cached_equals_uncached() -> None:
    """One forward, single steps, and steps of several tokens onto a cache."""
    model = make(KNOWN["qwen3"])
    twin = inference_twin(model)
    (example,) = rows([23])
    whole = batch_of([example])
    wanted = twin.run(whole).logits
    assert wanted is not None
    for cuts in ([0, 10, *range(11, 24)], [0, 7, 8, 15, 23]):
        cache = twin.new_cache()
        for start, stop in itertools.pairwise(cuts):
            part = Batch(
                ids=["0"],
                tokens=whole.tokens[:, start:stop],
                positions=whole.positions[:, start:stop],
                segments=whole.segments[:, start:stop],
            )
            close(twin.run(part, cache=cache).logits, wanted[:, start:stop])
        assert cache.lm.get_seq_length() == 23


def test_loop_gives_the_same_answers_as_rows_leave() -> None:
    """Greedy ids through the decoding loop, rows of different lengths ending one by one."""
    model, processor = tiny.tiny_model(num_key_value_heads=1)
    twin = inference_twin(model)
    assert isinstance(twin, Twin)
    questions = ["what?", "what colour is the circle?", "how many shapes?"]
    samples = [
        tiny.ask(str(n), text, *([tiny.picture(n)] if n else []))
        for n, text in enumerate(questions)
    ]
    batch = processor(samples, pad_side="left")
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True) for n in (9, 3, 14)]
    found, wanted = (
        complete(runner, batch, params=params, decoder=processor, eos_ids=[])
        for runner in (twin, model)
    )
    assert [answer.tokens for answer in found] == [answer.tokens for answer in wanted]
    assert [len(answer.tokens) for answer in found] == [9, 3, 14]


@torch.inference_mode()
def test_rows_selected_forget_the_others_padding() -> None:
    """When only rows without padding remain, the mask goes and nothing changes."""
    model = make(KNOWN["mistral"])
    twin = inference_twin(model)
    batch = batch_of(rows([6, 11]), pad_side="left")
    cache = twin.new_cache()
    twin.run(batch, cache=cache, keep="last")
    assert cache.lm.uniform is None
    cache.lm.batch_select_indices(torch.tensor([1]))
    assert cache.lm.uniform == 1
    new = batch_of([Example(id="1", tokens=[7], labels=[7])])
    new = Batch(ids=["1"], tokens=new.tokens, positions=new.positions + 11, segments=new.segments)
    alone = batch_of([Example(id="1", tokens=[*rows([6, 11])[1].tokens, 7], labels=[7] * 12)])
    close(twin.run(new, cache=cache, keep="last").logits, model.run(alone, keep="last").logits)


def test_reduced_precision_is_close() -> None:
    """bf16 products laid out by oneDNN: the error that bf16 itself brings, at most twice."""
    model = make(KNOWN["llama, biases"])
    batch = batch_of(rows([40, 31], picture=True), pad_side="left")
    real = batch.segments > 0
    with torch.no_grad():
        exact = model.run(batch).logits
        found = inference_twin(model, dtype=torch.bfloat16).run(batch).logits
        plain = model.to(torch.bfloat16).run(batch).logits
    assert found.dtype == torch.bfloat16
    allowed = 2 * (plain.float() - exact)[real].abs().max()
    assert (found.float() - exact)[real].abs().max() <= allowed


def test_a_labelled_batch_goes_through_the_model() -> None:
    model = make(KNOWN["qwen2"])
    batch = batch_of(rows([12, 7]), train=True)
    assert torch.equal(inference_twin(model).run(batch).loss_sum, model.run(batch).loss_sum)


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_known_is_left_alone(name: str) -> None:
    model = make(ODD[name])
    assert unlike(model)
    assert inference_twin(model) is model


def test_changed_modules_are_left_alone() -> None:
    """Adapters, hooks and other language-model code, even on a known class."""
    from peft import LoraConfig, get_peft_model

    hooked = make(KNOWN["qwen2"])
    hooked.lm.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert inference_twin(hooked) is hooked
    adapted = make(KNOWN["qwen2"])
    get_peft_model(adapted, LoraConfig(target_modules=["q_proj"]))
    assert inference_twin(adapted) is adapted
    stranger = object()
    assert inference_twin(stranger) is stranger


def test_no_copy_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from retinue.model.lm import fused

    model = make(KNOWN["qwen2"])
    monkeypatch.setattr(fused, "free_bytes", lambda: 1000.0)
    assert inference_twin(model) is model
