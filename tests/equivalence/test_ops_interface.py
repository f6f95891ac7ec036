"""transformers' models with attn_implementation="retinue": tiny, random, fp32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retinue.core.errors import ConfigError
from retinue.ops.attention import plan_cached, plan_documents
from retinue.ops.interface import NAME, attention_forward, register_attention
from retinue.ops.spans import positions_from_segments

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def build(family: str, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """The same random model with our attention and with transformers' eager one."""
    import transformers

    name = register_attention()
    config = getattr(transformers, f"{family}Config")(**TINY | changes)
    torch.manual_seed(0)
    models = []
    for attention in (name, "eager"):
        config = copy.deepcopy(config)
        config._attn_implementation = attention
        models.append(getattr(transformers, f"{family}ForCausalLM")(config).eval())
    models[1].load_state_dict(models[0].state_dict())
    return models[0], models[1]


def packed(*lengths: int) -> tuple[Tensor, Tensor]:
    segments = torch.cat([torch.full((n,), k + 1) for k, n in enumerate(lengths)])[None]
    return segments, positions_from_segments(segments)


def test_packed_is_separate_forwards() -> None:
    ours, eager = build("Llama")
    lengths = (7, 12, 3)
    segments, positions = packed(*lengths)
    ids = torch.randint(40, segments.shape)
    plan = plan_documents(segments)
    out = ours(input_ids=ids, position_ids=positions, plan=plan, use_cache=False).logits
    at = 0
    for n in lengths:
        alone = eager(input_ids=ids[:, at : at + n]).logits
        torch.testing.assert_close(out[:, at : at + n], alone, atol=2e-6, rtol=0)
        at += n


def test_packed_gradients_are_separate_gradients() -> None:
    ours, eager = build("Llama")
    segments, positions = packed(5, 9)
    ids = torch.randint(40, segments.shape)
    plan = plan_documents(segments)
    ours(input_ids=ids, position_ids=positions, plan=plan).logits.square().sum().backward()
    for part in (ids[:, :5], ids[:, 5:]):
        eager(input_ids=part).logits.square().sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Qwen2", {}),
        ("Mistral", {"sliding_window": 4}),
        ("Gemma2", {"sliding_window": 4, "attn_logit_softcapping": 2.0}),
    ],
)
def test_decoding_with_a_cache_is_one_forward(family: str, changes: dict[str, Any]) -> None:
    """Chunked prefill of left-padded rows, then single tokens, against eager without padding."""
    ours, eager = build(family, **changes)
    lengths, T = (9, 6), 9
    segments = (torch.arange(T) >= T - torch.tensor(lengths)[:, None]).long()
    positions = positions_from_segments(segments)
    ids = torch.randint(40, segments.shape)
    cache, outs = None, []
    for start, stop in ((0, 4), (4, 7), (7, 8), (8, 9)):
        past = segments[:, :start] if start else None
        out = ours(
            input_ids=ids[:, start:stop],
            position_ids=positions[:, start:stop],
            past_key_values=cache,
            plan=plan_cached(past, segments[:, start:stop]),
            use_cache=True,
        )
        cache = out.past_key_values
        outs.append(out.logits)
    logits = torch.cat(outs, 1)
    for row, n in enumerate(lengths):
        alone = eager(input_ids=ids[row : row + 1, T - n :]).logits[0]
        torch.testing.assert_close(logits[row, T - n :], alone, atol=1e-5, rtol=1e-5)


def test_without_a_plan_rows_are_causal() -> None:
    ours, eager = build("Llama")
    ids = torch.randint(40, (2, 11))
    torch.testing.assert_close(ours(input_ids=ids).logits, eager(input_ids=ids).logits)


def test_encoders_see_everything() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 16}
    config = CLIPVisionConfig(patch_size=4, num_hidden_layers=2, intermediate_size=24, **sizes)
    config._attn_implementation = register_attention()
    ours = CLIPVisionModel(config).eval()
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    eager = CLIPVisionModel(config).eval()
    eager.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 16, 16)
    out, expected = (m(pixel_values=x).last_hidden_state for m in (ours, eager))
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)


def test_autocast_mixes_no_dtypes() -> None:
    ours, _ = build("Llama")
    segments, positions = packed(5, 4)
    ids, plan = torch.randint(40, segments.shape), plan_documents(segments)
    exact = ours(input_ids=ids, position_ids=positions, plan=plan).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(input_ids=ids, position_ids=positions, plan=plan).logits
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_has_no_form_is_refused() -> None:
    x = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ConfigError, match="s_aux"):
        attention_forward(nn.Module(), x, x, x, None, s_aux=torch.zeros(2))
    with pytest.raises(ConfigError, match="attention_mask"):
        attention_forward(nn.Module(), x, x, x, torch.zeros(1, 1, 3, 3))


def test_no_mask_is_built_for_the_name() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    assert register_attention() == NAME
    assert NAME not in ALL_MASK_ATTENTION_FUNCTIONS


# torch's tracer looks at the gradient of what enters a layer and warns about itself
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.slow
def test_layers_compile_without_a_break() -> None:
    ours, _ = build("Llama", num_hidden_layers=1)
    expected, grads = [], []
    batches = [packed(5, 9), packed(3, 4, 6, 2), packed(11, 2, 5)]
    ids = [torch.randint(40, segments.shape) for segments, _ in batches]

    def step(at: int) -> Tensor:
        segments, positions = batches[at]
        plan = plan_documents(segments)
        logits: Tensor = ours(
            input_ids=ids[at], position_ids=positions, plan=plan, use_cache=False
        ).logits
        ours.zero_grad()
        logits.square().sum().backward()
        return logits.detach()

    for at in range(3):
        expected.append(step(at))
        grads.append(ours.model.layers[0].self_attn.q_proj.weight.grad.clone())
    for layer in ours.model.layers:
        layer.compile(dynamic=True, fullgraph=True)
    for at in range(3):
        torch.testing.assert_close(step(at), expected[at], atol=1e-5, rtol=1e-5)
        mine = ours.model.layers[0].self_attn.q_proj.weight.grad
        torch.testing.assert_close(mine, grads[at], atol=1e-4, rtol=1e-4)
