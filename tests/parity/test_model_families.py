"""Language models of many families give transformers' logits on our path, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from retinue.core.errors import ConfigError
from retinue.model.build import build_model
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.lm.causal import CausalLM
from retinue.model.lm.support import plan_arrives
from retinue.model.spec import Plan, RetinueConfig
from retinue.ops.collate import collate
from retinue.types import Example, LMInputs

VOCAB = 40
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Gemma": {},
    "Gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "Gemma3Text": {"sliding_window": 5},
    "Phi": {},
    "Phi3": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTNeoX": {},
    "GPT2": GPT2,
    "Cohere": {"logit_scale": 0.5},
    "Granite": {
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    },
    "Olmo2": {},
    "Mpt": {"hidden_size": 36, "num_attention_heads": 6},
}


def config(name: str) -> Any:
    return getattr(transformers, f"{name}Config")(**{**COMMON, **FAMILIES[name]})


def pair(name: str) -> tuple[Any, CausalLM]:
    """transformers' model with its own attention, and ours with the same weights."""
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(config(name)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.3)
    ours = CausalLM(config(name)).eval()
    # key for key; a tied head is one tensor under two names in both
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def inputs(lm: CausalLM, ids_BT: Tensor, real_BT: Tensor) -> LMInputs:
    places = (real_BT.cumsum(1) - 1).clamp_min(0)
    return LMInputs(embeds_BTD=lm.embed(ids_BT), positions_BT=places, segments_BT=real_BT)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@torch.no_grad()
def test_logits_loss_and_cache_are_transformers(name: str) -> None:
    reference, ours = pair(name)
    ids = torch.randint(3, VOCAB, (2, 12))
    real = torch.ones_like(ids)
    real[1, :4] = 0
    wanted = reference(
        input_ids=ids,
        attention_mask=real,
        position_ids=(real.cumsum(1) - 1).clamp_min(0),
    ).logits
    hidden = ours(inputs(ours, ids, real))
    keep = real > 0
    torch.testing.assert_close(ours.logits(hidden)[keep], wanted[keep], atol=1e-5, rtol=1e-5)

    targets = torch.randint(3, VOCAB, (12,))
    loss = ours.loss_sum(hidden[0], targets, None)
    expected = F.cross_entropy(wanted[0].float(), targets, reduction="sum")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)

    cache = ours.new_cache()
    whole = inputs(ours, ids, real)
    for start, stop in ((0, 9), (9, 11), (11, 12)):
        part = LMInputs(
            embeds_BTD=whole.embeds_BTD[:, start:stop],
            positions_BT=whole.positions_BT[:, start:stop],
            segments_BT=whole.segments_BT[:, start:stop],
        )
        last = ours(part, cache=cache)
    torch.testing.assert_close(ours.logits(last)[:, -1], wanted[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@torch.no_grad()
def test_documents_of_one_row_do_not_see_each_other(name: str) -> None:
    _, ours = pair(name)
    rows = [torch.randint(3, VOCAB, (1, n)) for n in (7, 4)]
    alone = [ours.logits(ours(inputs(ours, row, torch.ones_like(row)))) for row in rows]
    examples = [Example(id="", tokens=r[0].tolist(), labels=r[0].tolist()) for r in rows]
    batch = collate(examples, packed=True)
    packed = ours.logits(
        ours(
            LMInputs(
                embeds_BTD=ours.embed(batch.tokens),
                positions_BT=batch.positions,
                segments_BT=batch.segments,
                cu_seqlens=batch.cu_seqlens,
            )
        )
    )
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)


def composite(text: Any) -> RetinueConfig:
    return RetinueConfig(
        text,
        {"eye": PatchesConfig(image_size=16, hidden_size=16, intermediate_size=16)},
        {
            "encoders": {"eye": {"kind": "patches"}},
            "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye"}},
        },
    )


def test_visual_tokens_are_not_scaled_where_words_are() -> None:
    """Gemma multiplies its word vectors by the root of the width; visual tokens stay as given."""
    model = build_model(composite(config("Gemma")), seed=0).eval()
    ids = torch.tensor([[3, -1, -1, -1, -1, 4]])
    seen: list[Tensor] = []
    model.lm.base.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        words = model.connector(model.encode(_visual(pixels)), [1], [None])[0].x_NLD[0]
        model(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(seen[0][0, 1:5], words, atol=1e-6, rtol=0)
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(seen[0][0, 0], table[3] * 32**0.5, atol=1e-6, rtol=0)


def _visual(pixels: Tensor) -> Any:
    from retinue.types import Grid, Visual

    none = torch.zeros(0, dtype=torch.long)
    return Visual(
        pixels={"rgb": pixels},
        grids=[Grid(size=(16, 16))],
        budgets=[None],
        spans=none.view(0, 3),
        index=none,
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Bloom", "keyword arguments"),
        ("Falcon", "keyword arguments"),
        ("Mamba", "keyword arguments"),
        ("GptOss", "sinks"),
        ("RecurrentGemma", "recurrent"),
        ("Llama4Text", "chunked_attention"),
        ("T5", "no causal language model"),
        ("Gemma3", "sees already"),
    ],
)
def test_families_that_cannot_be_driven_are_refused_before_a_model_exists(
    name: str, reason: str
) -> None:
    text = getattr(transformers, f"{name}Config")()
    with pytest.raises(ConfigError, match=reason) as caught:
        Plan(composite(text))
    assert text.model_type in str(caught.value)


def test_a_model_that_drops_the_plan_on_its_way_is_refused() -> None:
    """Nemotron's layers accept keywords, yet hand none to their attention."""
    text = transformers.NemotronConfig(**COMMON)
    with pytest.raises(ConfigError, match="does not arrive"):
        build_model(composite(text), device="meta")
    llama = transformers.LlamaForCausalLM(config("Llama"))
    before = llama.config._attn_implementation
    assert plan_arrives(llama)
    assert llama.config._attn_implementation == before


def test_an_encoder_s_causal_face_is_refused() -> None:
    text = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with pytest.raises(ConfigError, match="later tokens"):
        build_model(composite(text))
