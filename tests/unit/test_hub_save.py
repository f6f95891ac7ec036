"""One self-describing folder: same model back, shards, adapters, changed tensors over a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from retinue.core.errors import CheckpointError
from retinue.hub.convert import convert
from retinue.hub.load import load, load_with_report
from retinue.hub.save import save
from retinue.model.adapters import LoraTarget, adapter_names, add_lora, merge_adapters
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from tiny import ask, picture, tiny_model


def logits(model: Retinue, processor: Processor) -> torch.Tensor:
    batch = processor([ask("a", "what colour?", picture()), ask("b", "how many?")])
    with torch.no_grad():
        found = model.run(batch).logits
    assert found is not None
    return found


def adapted(model: Retinue, *, seed: int = 0) -> None:
    """LoRA with non-zero factors on two layers of the language model."""
    names = ["lm.model.layers.0.self_attn.q_proj", "lm.model.layers.1.mlp.up_proj"]
    add_lora(model, {name: LoraTarget(r=2 + i, alpha=4.0) for i, name in enumerate(names)})
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)


def test_a_folder_holds_everything(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "m", provenance={"stage": "sft"})
    names = {path.name for path in (tmp_path / "m").iterdir()}
    files = {"config.json", "generation_config.json", "processor.json", "provenance.json"}
    assert files | {"model.safetensors", "tokenizer.json"} <= names
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("retinue", ["Retinue"])
    assert str(tmp_path) not in (tmp_path / "m/config.json").read_text()
    facts = json.loads((tmp_path / "m/provenance.json").read_text())
    assert facts["stage"] == "sft"
    assert "torch" in facts["versions"]
    again, other = load(tmp_path / "m")
    assert torch.equal(logits(model, processor), logits(again, other))
    assert other.fingerprint() == processor.fingerprint()
    assert not again.training


def test_shards_with_an_index(tmp_path: Path) -> None:
    model, processor = tiny_model()
    limit = 60_000
    save(model, processor, tmp_path / "m", shard_bytes=limit)
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    sizes = []
    for shard in shards:
        with safe_open(tmp_path / "m" / shard, "pt") as file:
            tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
            assert {index["weight_map"][key] for key in file.keys()} == {shard}  # noqa: SIM118
        size = sum(t.numel() * t.element_size() for t in tensors)
        assert size <= limit or len(tensors) == 1
        sizes.append(size)
    assert sum(sizes) == index["metadata"]["total_size"]
    again, other = load(tmp_path / "m")
    assert torch.equal(logits(model, processor), logits(again, other))


def test_dtype_is_the_files_unless_asked(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in load(tmp_path / "half")[0].parameters()} == {torch.bfloat16}
    back, _ = load(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor.bfloat16().float())


def test_tied_embeddings_are_written_once_and_stay_one(tmp_path: Path) -> None:
    model, processor = tiny_model(tie_word_embeddings=True)
    save(model, processor, tmp_path / "m")
    with safe_open(tmp_path / "m/model.safetensors", "pt") as file:
        assert "lm.lm_head.weight" not in file.keys()  # noqa: SIM118
    again, other = load(tmp_path / "m")
    assert again.lm.head.weight is again.lm.embedding.weight
    assert torch.equal(logits(model, processor), logits(again, other))


def test_an_adapter_is_saved_in_peft_layout_and_comes_back(tmp_path: Path) -> None:
    model, processor = tiny_model()
    plain = logits(model, processor)
    adapted(model)
    wanted = logits(model, processor)
    assert not torch.equal(plain, wanted)
    save(model, processor, tmp_path / "m")
    assert (tmp_path / "m/adapter/adapter_config.json").exists()
    again, other = load(tmp_path / "m")
    assert adapter_names(again) == ["default"]
    torch.testing.assert_close(logits(again, other), wanted)
    merge_adapters(again)
    torch.testing.assert_close(logits(again, other), wanted, atol=1e-5, rtol=1e-5)


def test_only_what_changed_over_a_base(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "base")
    adapted(model)
    for parameter in model.connector.parameters():
        parameter.requires_grad_(True)
        parameter.data.add_(0.1)
    wanted = logits(model, processor)
    save(model, processor, tmp_path / "lora", base=str(tmp_path / "base"))
    with safe_open(tmp_path / "lora/model.safetensors", "pt") as file:
        assert all(key.startswith("connector.") for key in file.keys())  # noqa: SIM118
    again, other = load(tmp_path / "lora")
    torch.testing.assert_close(logits(again, other), wanted)
    fields = json.loads((tmp_path / "lora/adapter/adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(tmp_path / "base")


def test_an_adapter_folder_alone_finds_its_base(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "base")
    adapted(model)
    wanted = logits(model, processor)
    save(model, processor, tmp_path / "lora", base=str(tmp_path / "base"))
    again, other = load(tmp_path / "lora/adapter")
    torch.testing.assert_close(logits(again, other), wanted)
    stacked, other = load(tmp_path / "base", adapters=[tmp_path / "lora/adapter"])
    torch.testing.assert_close(logits(stacked, other), wanted)


def test_converting_folds_the_adapter_in(tmp_path: Path) -> None:
    model, processor = tiny_model()
    adapted(model)
    wanted = logits(model, processor)
    save(model, processor, tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "merged", to="retinue")
    again, other = load(tmp_path / "merged")
    assert adapter_names(again) == []
    torch.testing.assert_close(logits(again, other), wanted, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_does_not_fit_names_tensor_and_shapes(tmp_path: Path) -> None:
    model, processor = tiny_model()
    adapted(model)
    save(model, processor, tmp_path / "m")
    wide, other = tiny_model(width=48)
    save(wide, other, tmp_path / "wide")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "m/adapter", base=tmp_path / "wide")
    text = str(error.value)
    assert "lm.model.layers.0.self_attn.q_proj" in text
    assert "(32, 32)" in text
    assert "(48, 48)" in text
    shallow, other = tiny_model(layers=1)
    save(shallow, other, tmp_path / "shallow")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj is no module"):
        load(tmp_path / "shallow", adapters=[tmp_path / "m/adapter"])


def test_template_of_a_folder_can_be_overridden(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "m")
    assert load(tmp_path / "m")[1].spec.template == processor.spec.template
    assert load(tmp_path / "m", template="chatml")[1].template.name == "chatml"


def test_unused_tensors_are_reported_and_missing_ones_fatal(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, processor = tiny_model()
    save(model, processor, tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    state: dict[str, Any] = load_file(file)
    state |= {"lm.model.extra": torch.ones(2), "lm.model.rotary_emb.inv_freq": torch.ones(2)}
    save_file(state, file)
    cover = load_with_report(tmp_path / "m").coverage
    assert cover.unused == ["lm.model.extra"]
    assert cover.ignored == ["lm.model.rotary_emb.inv_freq"]
    del state["lm.model.norm.weight"]
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"1 tensors are missing: lm\.model\.norm\.weight"):
        load(tmp_path / "m")
    state["lm.model.norm.weight"] = torch.ones(7)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"lm\.model\.norm\.weight has the shape \(7,\)"):
        load(tmp_path / "m")
