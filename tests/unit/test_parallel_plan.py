"""Plans of tensor parallelism: what divides, what is refused and in which words; cuts and joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from retinue.convert.weights import Weights
from retinue.core.errors import ConfigError
from retinue.hub.stream import skeleton
from retinue.model.adapters import LoraTarget, add_lora
from retinue.model.build import build_model
from retinue.model.quant.swap import quantize
from retinue.parallel.plan import plan_of
from retinue.parallel.tensor_split import Split
from tiny_divided import GROUPED, MODELS, config


def made(**fields: Any) -> Any:
    MODELS["asked"] = ("Llama", {**GROUPED, **fields})
    return skeleton(config("asked"))


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_a_layer_has_a_part(name: str) -> None:
    model: Any = skeleton(config(name))
    splits = plan_of(model, size=2).splits
    for key, parameter in model.named_parameters():
        if ".layers." in key and parameter.dim() > 1 and ".gate." not in key:
            assert key in splits
            assert parameter.shape[splits[key].dim] == sum(splits[key].blocks)
    assert not any(key.startswith(("encoders.", "connector.")) for key in splits)


def test_heads_that_do_not_divide_are_refused_with_the_sum() -> None:
    model = made(num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(ConfigError, match=r"2 key/value heads over 4 ranks: 2 / 4 = 0\.5"):
        plan_of(model, size=4)
    with pytest.raises(ConfigError, match=r"4 attention heads over 3 ranks: .* allow 1, 2"):
        plan_of(model, size=3)


def test_widths_that_do_not_divide_are_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"gate_proj.weight: 47 columns over 2 ranks: 47 / 2"):
        plan_of(made(intermediate_size=47), size=2)


def test_normalising_over_all_heads_is_refused() -> None:
    kind = transformers.Olmo2Config(**GROUPED)
    MODELS["olmo2"] = ("Olmo2", GROUPED)
    assert kind.model_type == "olmo2"
    with pytest.raises(ConfigError, match="olmo2 cannot be divided"):
        plan_of(skeleton(config("olmo2")), size=2)


def test_a_matrix_that_no_rule_speaks_of_is_refused() -> None:
    model = made()
    layer = model.lm.layers[1]
    layer.mlp.extra_proj = nn.Linear(32, 32)
    with pytest.raises(ConfigError, match=r"no rule says how mlp.extra_proj.weight \(32, 32\)"):
        plan_of(model, size=2)


def test_quantized_weights_are_refused() -> None:
    model: Any = build_model(config("llama"), seed=0)
    quantize(model, kind="int8")
    with pytest.raises(ConfigError, match="holds int8 weights, which are not divided"):
        plan_of(model, size=2)


def test_adapters_are_divided_as_peft_does_and_dora_is_refused() -> None:
    model: Any = build_model(config("llama"), seed=0)
    name = "lm.model.layers.0.self_attn."
    targets = {f"{name}{leaf}_proj": LoraTarget(r=2, alpha=4) for leaf in "qo"}
    add_lora(model, targets)
    splits = plan_of(model, size=2).splits
    assert splits[f"{name}q_proj.lora_B.default.weight"].dim == 0
    assert splits[f"{name}o_proj.lora_A.default.weight"].dim == 1
    assert f"{name}q_proj.lora_A.default.weight" not in splits
    assert f"{name}o_proj.lora_B.default.weight" not in splits
    model.get_submodule(f"{name}q_proj").use_dora["default"] = True
    with pytest.raises(ConfigError, match="DoRA"):
        plan_of(model, size=2)


@pytest.mark.parametrize("blocks", [(12,), (4, 8), (8, 4, 4)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_cuts_join_to_the_whole(blocks: tuple[int, ...], ranks: int) -> None:
    split = Split(dim=1, blocks=blocks)
    whole = torch.arange(3 * sum(blocks)).view(3, -1)
    parts = [split.cut(whole, rank, of=ranks) for rank in range(ranks)]
    assert {tuple(part.shape) for part in parts} == {(3, sum(blocks) // ranks)}
    ranked = torch.cat(parts, 1)
    assert torch.equal(split.to_ranks(whole, of=ranks), ranked)
    assert torch.equal(split.to_plain(ranked, of=ranks), whole)
    first = split.ranges(0, of=ranks)
    assert [stop - start for start, stop in first] == [block // ranks for block in blocks]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_part_of_a_tensor_is_read_as_it_would_be_cut(suffix: str, tmp_path: Path) -> None:
    whole = torch.arange(96.0).view(6, 16)
    file = tmp_path / f"model{suffix}"
    if suffix == ".bin":
        torch.save({"a": whole}, file)
    else:
        save_file({"a": whole}, file)
    weights = Weights([file])
    for split in (Split(dim=0, blocks=(2, 4)), Split(dim=1, blocks=(16,))):
        for rank in range(2):
            part = weights.read_part("a", dim=split.dim, ranges=split.ranges(rank, of=2))
            assert torch.equal(part, split.cut(whole, rank, of=2))
