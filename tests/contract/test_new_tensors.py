"""What a checkpoint lacks is initialised, at the scale its leaf documents, and nothing else is.

transformers leaves raw parameters that a folder lacks as uninitialised memory unless the model
class initialises them.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
)

import retinue.model
from retinue.hub.build import build
from retinue.model.build import build_model
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig

WIDTH = 64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {"image_size": 28, "patch_size": 7}


def config(**text: Any) -> RetinueConfig:
    """Every encoder and connector kind that owns weights, and the layout with a vector."""
    parts = [
        {"kind": "linear", "of": {"kind": "take", "encoder": "clip"}},
        {"kind": "mlp", "of": {"kind": "take", "encoder": "siglip"}},
        {"kind": "mlp", "depth": 3, "hidden": 48, "of": {"kind": "take", "encoder": "dinov2"}},
        {"kind": "linear", "bias": False, "of": {"kind": "take", "encoder": "patches"}},
    ]
    return RetinueConfig(
        LlamaConfig(
            vocab_size=300,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **text,
        ),
        {
            "clip": CLIPVisionConfig(intermediate_size=48, **SIZES, **SEEN),
            "siglip": SiglipVisionConfig(intermediate_size=48, **SIZES, **SEEN),
            "dinov2": Dinov2WithRegistersConfig(mlp_ratio=2, **SIZES, **SEEN),
            "patches": PatchesConfig(intermediate_size=48, stem=[8], **SIZES, **SEEN),
        },
        {
            "encoders": {name: {"kind": name} for name in ("clip", "siglip", "dinov2", "patches")},
            "connector": {"kind": "channel", "parts": parts},
            "layout": {"kind": "newline"},
        },
    )


def fits(config: RetinueConfig) -> RetinueConfig:
    """`channel` adds the widths of its parts; one more map brings them to the LM's width."""
    config.spec["connector"] = {"kind": "linear", "of": config.spec["connector"]}
    return config


@pytest.fixture(scope="module")
def garbage() -> Any:
    """Fresh memory is not zero but NaN here, so that nothing uninitialised passes as small."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert math.isnan(float(torch.empty(3)[0]))
    yield
    torch.use_deterministic_algorithms(False)


def bare(model: Retinue, folder: Path, *, keep: Any) -> dict[str, Tensor]:
    """A folder of the model with only the tensors whose names `keep` accepts; returns them."""
    model.config.save_pretrained(folder)
    kept = {name: t.clone() for name, t in model.state_dict().items() if keep(name)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return kept


def check_scales(model: Retinue, *, new: Any) -> None:
    """Every new tensor is finite and as its leaf says."""
    for name, module in model.named_modules():
        for own, tensor in module.named_parameters(recurse=False):
            full, tensor = f"{name}.{own}", tensor.detach().float()
            if not new(full):
                continue
            assert bool(tensor.isfinite().all()), full
            if full == "layout.newline":
                assert 0.6 < float(tensor.std()) * WIDTH**0.5 < 1.4, full
            elif name.startswith("connector"):
                fan = module.in_features if isinstance(module, nn.Linear) else 0
                bound = fan**-0.5  # torch's own rule for linear layers
                assert float(tensor.abs().max()) <= 1.01 * bound, full  # half types round up
                assert float(tensor.std()) > 0.4 * bound, full
            elif "norm" in name.lower() and own == "weight":
                assert bool((tensor == 1).all()), full
            elif own == "bias":
                assert float(tensor.abs().max()) <= 0.3, full
            else:
                assert float(tensor.abs().max()) < 5, full


@pytest.mark.usefixtures("garbage")
def test_a_fresh_model_has_the_documented_scales() -> None:
    check_scales(build_model(fits(config()), seed=1), new=lambda _: True)


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bare_language_model_gets_initialised_parts(tmp_path: Path, dtype: torch.dtype) -> None:
    first = build_model(fits(config()), seed=1)
    kept = bare(first, tmp_path, keep=lambda name: name.startswith("lm."))
    assert kept
    loaded = Retinue.from_pretrained(tmp_path, dtype=dtype)
    check_scales(loaded, new=lambda name: not name.startswith("lm."))
    state = loaded.state_dict()
    for name, tensor in kept.items():
        assert torch.equal(state[name], tensor.to(dtype)), name


@pytest.mark.usefixtures("garbage")
def test_half_a_module_keeps_the_half_it_has(tmp_path: Path) -> None:
    """A weight whose bias is missing stays; the bias is new."""
    first = build_model(fits(config()), seed=1)
    kept = bare(first, tmp_path, keep=lambda name: not name.endswith(".bias"))
    loaded = Retinue.from_pretrained(tmp_path)
    state = loaded.state_dict()
    missing = set(state) - set(kept)
    assert any(name.startswith("connector") for name in missing)
    for name, tensor in kept.items():
        assert torch.equal(state[name], tensor), name
    check_scales(loaded, new=lambda name: name in missing)


@pytest.mark.usefixtures("garbage")
def test_whole_folder_is_read_bit_for_bit_and_buffers_are_right(tmp_path: Path) -> None:
    first = build_model(fits(config()), seed=1).eval()
    first.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(first.state_dict())
    loaded = Retinue.from_pretrained(tmp_path)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    buffers = dict(loaded.named_buffers())
    assert buffers
    for name, tensor in first.named_buffers():
        assert torch.equal(tensor, buffers[name]), name


@pytest.mark.usefixtures("garbage")
def test_build_around_a_language_model_folder(tmp_path: Path, tiny_tokenizer: Any) -> None:
    text = config().text_config
    text.vocab_size = tiny_tokenizer.vocab_size
    torch.manual_seed(0)
    lm = LlamaForCausalLM(text)
    lm.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    section = {
        "lm": {"from": str(tmp_path)},
        "encoders": {
            "patches": {"kind": "patches", "config": {"intermediate_size": 48, **SIZES, **SEEN}}
        },
        "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "patches"}},
        "layout": {"kind": "newline"},
        "template": "vicuna_v1",
    }
    made = build(section).model
    check_scales(made, new=lambda name: not name.startswith("lm."))
    for name, tensor in lm.state_dict().items():
        assert torch.equal(made.state_dict()[f"lm.{name}"], tensor), name


def test_meta_device_holds_no_memory() -> None:
    model = build_model(fits(config()), device="meta")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name for name, tensor in tensors.items() if tensor.device.type != "meta"} == set()
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in build_model(fits(config())).parameters()
    )


def own_modules() -> list[type[nn.Module]]:
    """Every module class defined below retinue.model."""
    found = []
    for info in pkgutil.walk_packages(retinue.model.__path__, "retinue.model."):
        module = importlib.import_module(info.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, nn.Module) and kind.__module__ == info.name:
                found.append(kind)
    return found


def test_every_class_that_makes_a_parameter_can_reset_it() -> None:
    """A raw nn.Parameter in our code means a `reset_parameters` beside it."""
    kinds = own_modules()
    assert len(kinds) > 10
    bare = [
        kind.__name__
        for kind in kinds
        if "nn.Parameter(" in inspect.getsource(kind) and not hasattr(kind, "reset_parameters")
    ]
    assert bare == []
    assert any("nn.Parameter(" in inspect.getsource(kind) for kind in kinds)
