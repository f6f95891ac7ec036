"""Keys and values of pictures: once per picture, also behind PEFT, compiled, and in the engine."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from retinue.decode.sampling import SamplingParams
from retinue.model.fusions.gated import CrossAttention
from retinue.ops.collate import collate
from retinue.processor_hf import hf_inputs
from retinue.serve.engine import Engine, EngineSpec
from tiny import ask, picture
from tiny_cross import example, make
from tiny_serve import fused, reference, serve

CROSS = {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1}
SEVERAL = [
    ask("two", "what colour <image>?", picture(1), picture(2)),
    ask("none", "how many?"),
    ask("one", "one two", picture(3)),
]


@pytest.fixture
def counted(monkeypatch):
    """Latents that became keys and values, a number for every projection."""
    seen: list[int] = []
    media = CrossAttention.media

    def watched(self, memory, *, number):
        if memory.x_SD is not None:
            seen.append(len(memory.x_SD))
        return media(self, memory, number=number)

    monkeypatch.setattr(CrossAttention, "media", watched)
    return seen


def blocks_of(model):
    return sum(isinstance(module, CrossAttention) for module in model.modules())


def generated(model, processor, **options):
    inputs = hf_inputs(processor, processor.batch(SEVERAL, pad_side="left"))
    with torch.inference_mode():
        return model.generate(
            **inputs, max_new_tokens=6, do_sample=False, pad_token_id=processor.tokenizer.pad_id,
            eos_token_id=None, **options,
        )  # fmt: skip


@pytest.mark.parametrize("beams", [1, 3])
def test_once_per_picture_with_generate_bare_and_behind_peft(counted, beams):
    model, processor = fused(CROSS)
    plain = generated(model, processor, num_beams=beams)
    blocks = blocks_of(model)
    assert len(counted) == blocks, "a step projected pictures anew"
    counted.clear()
    config = LoraConfig(r=2, target_modules=["q_proj", "to_q", "to_kv"])
    tuned = get_peft_model(model, config)
    assert isinstance(tuned, PeftModel)
    assert torch.equal(generated(tuned, processor, num_beams=beams), plain)
    assert len(counted) == blocks
    # the adapter's own part of keys and values is in what is kept: cached = recomputed
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    moved = generated(tuned, processor, num_beams=beams)
    assert not torch.equal(moved, plain)
    assert torch.equal(generated(tuned, processor, num_beams=beams, use_cache=False), moved)


def test_once_per_picture_in_the_engine(counted):
    model, processor = fused(CROSS)
    params = SamplingParams(max_new_tokens=6, ignore_eos=True)
    wanted = {one.id: reference(model, processor, one, params=params).tokens for one in SEVERAL}
    counted.clear()
    engine = Engine(model, processor, spec=EngineSpec(block=4))
    found = serve(engine, [(one, params, None) for one in SEVERAL])
    assert {id: one.tokens for id, one in found.items()} == wanted
    own = [len(one.media) for one in SEVERAL if one.media]
    per_picture = sum(counted) / blocks_of(model) / sum(own)
    assert per_picture == processor.plan.per_view().length


# torch's tracer looks at every tensor's .grad
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("kind", ["llama"])
def test_compiled_layers_compute_the_same(kind):
    """Loss, gradients and a decoding step; the graphs are made, what they run on is not."""
    rows = [example("two", 9, (2, 5), seed=1), example("none", 6, (), seed=3)]
    batch = collate(rows, train=True, packed=True)
    plain, other = make(kind), make(kind)
    for layer in other.lm.layers:
        layer.compile(dynamic=True, backend="aot_eager")
    losses = [model.run(batch).loss_sum for model in (plain, other)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    grads = dict(plain.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, grads[name].grad, atol=2e-5, rtol=1e-3)
    with torch.inference_mode():
        steps = []
        for model in (plain, other):
            cache = model.new_cache()
            model.run(collate(rows[:1]), cache=cache)
            step = collate([example("more", 1, (), seed=5)])
            step.positions.fill_(9)
            steps.append(model.run(step, cache=cache).logits)
    torch.testing.assert_close(steps[1], steps[0], atol=1e-5, rtol=0)
