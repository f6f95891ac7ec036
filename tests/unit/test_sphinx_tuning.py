"""LLaMA2-Accessory's tuned variants: prefixes as its arithmetic has them, rules of what trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retinue.cli.main import run
from retinue.convert.consolidated import Consolidated, shard_files
from retinue.convert.sphinx_tuning import accessory_rules
from retinue.core.errors import CheckpointError, ConfigError
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.freeze import apply_rules
from retinue.model.freeze import plain as plain_name
from retinue.text.train import train_bpe
from retinue.train.spec import StageSpec
from retinue.types import Batch

DIM, HEADS, LAYERS, HIDDEN, VOCAB, LENGTH = 16, 2, 3, 24, 300, 5
ARGS = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "multiple_of": 8, "max_seq_len": 64,
        "lora_rank": -1, "bias_tuning": True, "prefix_len": LENGTH, "prefix_layers": 2}  # fmt: skip


def weights(*, prefix: bool = True) -> dict[str, Tensor]:
    """A llama_adapter as the original names it: Meta's names, prefixes of the last two layers."""
    torch.manual_seed(0)
    made = {
        "tok_embeddings.weight": (VOCAB, DIM),
        "norm.weight": (DIM,),
        "output.weight": (VOCAB, DIM),
    }
    for n in range(LAYERS):
        layer = f"layers.{n}."
        made |= {f"{layer}attention.w{x}.weight": (DIM, DIM) for x in "qkvo"}
        made |= {f"{layer}attention.w{x}.bias": (DIM,) for x in "qkvo"}
        made |= {f"{layer}feed_forward.w{x}.weight": (HIDDEN, DIM) for x in "13"}
        made |= {f"{layer}feed_forward.w{x}.bias": (HIDDEN,) for x in "13"}
        made |= {
            f"{layer}feed_forward.w2.weight": (DIM, HIDDEN),
            f"{layer}feed_forward.w2.bias": (DIM,),
        }
        made |= {f"{layer}attention_norm.weight": (DIM,), f"{layer}ffn_norm.weight": (DIM,)}
    if prefix:
        made |= {"prefix": (2, 1, LENGTH, DIM), "prefix_gate": (2, HEADS)}
    return {name: torch.randn(shape) / math.sqrt(shape[-1]) for name, shape in made.items()}


def stored(folder: Path, state: dict[str, Tensor], **args: Any) -> Path:
    folder.mkdir(parents=True)
    torch.save(
        {"model": {f"llma.{k}": v for k, v in state.items()}},
        folder / "consolidated.00-of-01.model.pth",
    )
    (folder / "config.json").write_text(json.dumps({**ARGS, **args}), "utf-8")
    (folder / "meta.json").write_text('{"llama_type": "llama_adapter"}', "utf-8")
    train_bpe(["what is here"], vocab_size=VOCAB).save(folder)
    return folder


def turned(x_THE: Tensor) -> Tensor:
    """Meta's rotation of neighbouring channels."""
    length, _, width = x_THE.shape
    rate = 1.0 / 10000 ** (torch.arange(0, width, 2) / width)
    angle = torch.outer(torch.arange(length), rate)
    pairs = torch.view_as_complex(x_THE.reshape(length, -1, width // 2, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(
        2
    )


def by_hand(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The original's forward of one row, prefixes and all, from its own weights."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (DIM,), state[f"{name}.weight"], 1e-5)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1))

    def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)[0].transpose(0, 1)

    h = state["tok_embeddings.weight"][ids]
    for n in range(LAYERS):
        at, ff = f"layers.{n}.attention", f"layers.{n}.feed_forward"
        x = norm(h, f"layers.{n}.attention_norm")
        q, k = (turned(heads(linear(x, f"{at}.{w}"))) for w in ("wq", "wk"))
        seen = attend(q, k, heads(linear(x, f"{at}.wv")), causal=True)
        row = n - (LAYERS - 2)
        if row >= 0 and "prefix" in state:
            own = state["prefix"][row, 0]
            k, v = heads(linear(own, f"{at}.wk")), heads(linear(own, f"{at}.wv"))
            gate = state["prefix_gate"][row].tanh()[None, :, None]
            seen = seen + gate * attend(q, k, v, causal=False)
        h = h + linear(seen.flatten(1), f"{at}.wo")
        x = norm(h, f"layers.{n}.ffn_norm")
        h = h + linear(F.silu(linear(x, f"{ff}.w1")) * linear(x, f"{ff}.w3"), f"{ff}.w2")
    return norm(h, "norm") @ state["output.weight"].T


def scores(model: Any, ids: Tensor, *, cache: Any = None, start: int = 0) -> Tensor:
    rows = ids[None]
    batch = Batch(
        ids=["1"],
        tokens=rows,
        positions=torch.arange(start, start + len(ids))[None],
        segments=torch.ones_like(rows),
    )
    found: Tensor = model.run(batch, cache=cache).logits[0]
    return found


@torch.no_grad()
def test_prefixes_are_the_original_s(tmp_path: Path) -> None:
    """Scores by hand from the file; the same with a cache; the same after a way back in 2 files."""
    state = weights()
    model, processor = load(stored(tmp_path / "model", state))
    ids = torch.tensor([1, 40, 7, 256, 299, 3])
    wanted = by_hand(state, ids)
    torch.testing.assert_close(scores(model, ids), wanted, atol=2e-5, rtol=0)
    plain = {k: v for k, v in state.items() if not k.startswith("prefix")}
    assert (by_hand(plain, ids) - wanted).abs().max() > 0.05
    cache = model.new_cache()
    parts = [scores(model, ids[:3], cache=cache)]
    parts += [scores(model, ids[n : n + 1], cache=cache, start=n) for n in range(3, 6)]
    torch.testing.assert_close(torch.cat(parts), wanted, atol=2e-5, rtol=0)
    save(model, processor, tmp_path / "ours")
    for source in ("model", "ours"):
        two = tmp_path / f"two-{source}"
        convert(tmp_path / source, two, to="sphinx", shards=2)
        assert json.loads((two / "meta.json").read_text())["llama_type"] == "llama_adapter"
        again = Consolidated(shard_files(two))
        assert set(again) == set(state)
        for name, value in state.items():
            torch.testing.assert_close(again.read(name), value, atol=0, rtol=0, msg=name)
        half = torch.load(two / "consolidated.01-of-02.model.pth", weights_only=True)["model"]
        assert half["llma.prefix_gate"].shape == (2, HEADS // 2)
        torch.testing.assert_close(scores(load(two)[0], ids), wanted, atol=2e-5, rtol=0)


def test_a_closed_gate_changes_nothing(tmp_path: Path) -> None:
    state = weights()
    state["prefix_gate"].zero_()
    model, _ = load(stored(tmp_path / "model", state))
    ids = torch.tensor([1, 40, 7])
    plain = {k: v for k, v in state.items() if not k.startswith("prefix")}
    with torch.no_grad():
        torch.testing.assert_close(scores(model, ids), by_hand(plain, ids), atol=2e-5, rtol=0)


def test_visual_prompts_are_named_as_missing(tmp_path: Path) -> None:
    state = weights() | {"visual_query": torch.zeros(LENGTH, 8)}
    with pytest.raises(CheckpointError, match="visual prompts"):
        load(stored(tmp_path / "model", state))


def trained(model: Any, rules: dict[str, Any]) -> set[str]:
    stage = StageSpec.parse(
        {
            "name": "a",
            "optim": {"lr": 1e-3},
            "trainable": rules,
            "steps": 1,
            "global_batch": 1,
            "micro_batch": 1,
        },
        where="stage",
    )
    apply_rules(model, stage.trainable, lr=1e-3)
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, {"norm", "prefix"}),
        ({"bias_tuning": True}, {"norm", "prefix", "bias"}),
        ({"bias_tuning": True, "lora_rank": 2}, {"norm", "prefix", "bias", "lora"}),
        ({"norm_tuning": False}, {"prefix"}),
    ],
)
def test_what_trains_is_what_the_original_s_words_say(
    args: dict[str, Any], words: set[str], tmp_path: Path
) -> None:
    """By the words in the names, here in ours: every norm, bias, adapter and prefix, no matrix."""
    model, _ = load(stored(tmp_path / "model", weights()))
    names = [name for name, _ in model.named_parameters()]
    found = trained(model, accessory_rules(args, names, prefixed=True))
    all_names = {name for name, _ in model.named_parameters()}
    assert found == {n for n in all_names if any(word in n.lower() for word in words)}
    if "lora" in words:
        adapters = {n for n in found if "lora" in n.lower()}
        assert len(adapters) == 2 * 7 * LAYERS
        factors = [
            m.scaling for m in model.modules() if hasattr(m, "scaling") and hasattr(m, "lora_A")
        ]
        assert all(set(one.values()) == {1.0} for one in factors)
        assert len(factors) == 7 * LAYERS


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama_peft", "llama_adapter"])
def test_tuning_starts_from_a_plain_checkpoint(name: str, tmp_path: Path) -> None:
    """New biases are zero, new gates closed: it answers as before, and has what is to be tuned."""
    state = {k: v for k, v in weights(prefix=False).items() if not k.endswith(".bias")}
    plain = stored(tmp_path / "plain", state, bias_tuning=False)
    (plain / "meta.json").write_text('{"llama_type": "llama"}', "utf-8")
    args = tmp_path / "tuning.json"
    own = {k: v for k, v in ARGS.items() if name == "llama_adapter" or "prefix" not in k}
    args.write_text(json.dumps({**own, "lora_rank": 4}), "utf-8")
    before, _ = load(plain)
    model = load_sphinx(plain, llama_type=name, llama_config=[args])
    ids = torch.tensor([1, 40, 7])
    torch.testing.assert_close(scores(model, ids), scores(before, ids), atol=0, rtol=0)
    names = {n for n, _ in model.named_parameters()}
    new = names - {n for n, _ in before.named_parameters()}
    biases = {n for n in new if n.endswith(".bias")}
    assert len(biases) == 7 * LAYERS
    assert len(new - biases) == (4 if name == "llama_adapter" else 0)
    rules = accessory_rules(json.loads(args.read_text()), names, prefixed=name == "llama_adapter")
    assert new <= {plain_name(one) for one in trained(model, rules)}


def load_sphinx(folder: Path, **given: Any) -> Any:
    from retinue.hub.sphinx import open_sphinx
    from retinue.hub.stream import fill, skeleton

    opened = open_sphinx(folder, **given)
    model = skeleton(opened.config)
    fill(model, opened.sources, dtype=torch.float32, device="cpu", where=str(folder))
    return model.eval()


def test_what_the_model_lacks_is_named(tmp_path: Path) -> None:
    model, _ = load(stored(tmp_path / "model", weights(), prefix_len=LENGTH))
    names = [n for n, _ in model.named_parameters() if not n.endswith(".bias")]
    with pytest.raises(ConfigError, match="biases are to be tuned"):
        accessory_rules({"bias_tuning": True}, names)
    with pytest.raises(ConfigError, match="tune nothing"):
        accessory_rules({"norm_tuning": False}, names)


def test_the_rules_of_a_folder_as_a_verb(tmp_path: Path, capsys: Any) -> None:
    folder = stored(tmp_path / "model", weights())
    words = ["config", "tuning", str(folder / "config.json"), "--model", str(folder), "--json"]
    assert run(words) == 0
    rules = json.loads(capsys.readouterr().out)["trainable"]
    assert rules == {
        "lm.**norm.weight": "full",
        "lm.**.bias": "full",
        "lm.**.prefix": "full",
        "lm.**.prefix_gate": "full",
    }
