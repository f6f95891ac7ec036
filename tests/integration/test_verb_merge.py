"""retinue merge: two tiny models into one, by options and by recipe, whole or not at all."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases
from torch import Tensor

import tiny_hf
from retinue.cli.main import run
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError, ConfigError
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.merge.run import Merge, merge
from retinue.hub.merge.spec import MergeSpec
from retinue.hub.save import save
from retinue.model.adapters import LoraTarget, add_lora
from tiny import ask, picture, tiny_model

HEAD = "lm.lm_head.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(*tiny_model(seed=n), root / name) for n, name in enumerate("abc")}


def state(folder: Path) -> dict[str, Tensor]:
    weights = Weights.of(folder)
    return {name: weights.read(name) for name in weights}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        torch.testing.assert_close(tensor, right[name], rtol=1e-5, atol=1e-6, msg=name)


def spoil(folder: Path, to: Path, change: Any) -> Path:
    """A copy of a folder whose config.json went through `change`."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    fields = json.loads((to / "config.json").read_text())
    change(fields)
    (to / "config.json").write_text(json.dumps(fields))
    return to


def test_linear_by_options(folders: Any, tmp_path: Path, capsys: Any) -> None:
    a, b, out = folders["a"], folders["b"], tmp_path / "out"
    words = [str(a), str(b), "--weights", "3,1", "--out", str(out)]
    assert run(["merge", *words, "--weight-of", "connector.**=0,1"]) == 0
    said = capsys.readouterr()
    assert "distance to a, relative" in said.out
    for group in ("lm.embed_tokens", "lm.layers", "lm.lm_head", "encoders.eye", "connector"):
        assert group in said.out
    assert "merging: " in said.err
    left, right = state(a), state(b)
    share = {name: 1.0 if name.startswith("connector.") else 0.25 for name in left}
    same(state(out), {n: (1 - share[n]) * left[n] + share[n] * right[n] for n in left})
    model, processor = load(out)
    assert model.run(processor([ask("q", "what?", picture())])).logits.isfinite().all()
    for name in ("config.json", "processor.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (a / name).read_bytes(), name
    kept = json.loads((out / "provenance.json").read_text())["merge"]
    assert kept["recipe"]["sources"][0]["weight"] == 3
    assert kept["method"] == "linear"


def test_a_model_with_itself_and_one_of_two(folders: Any, tmp_path: Path) -> None:
    a, b = (str(folders[name]) for name in "ab")
    for words in ([a, a, "--weights", "0.3,0.7"], [a, b, "--weights", "1,0"]):
        assert run(["merge", *words, "--out", str(tmp_path / "out")]) == 0
        for name, tensor in state(folders["a"]).items():
            assert torch.equal(tensor, state(tmp_path / "out")[name]), name


RECIPE = """
method: {{kind: ties, density: 1.0}}
base: {c}
sources:
  - {{name: one, from: {a}}}
  - {{name: two, from: {b}, weights: {{"encoders.**": 0}}}}
dtype: bf16
"""


def test_a_recipe_with_changes(folders: Any, tmp_path: Path, capsys: Any) -> None:
    file, out = tmp_path / "merge.yaml", tmp_path / "out"
    file.write_text(RECIPE.format(**folders))
    words = [str(file), "sources.two.weight=2", "method.scale=0.5", "--json", "--out", str(out)]
    assert run(["merge", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "ties"
    assert report["distances_to"] == "base"
    a, b, c = (state(folders[name]) for name in "abc")
    made = state(out)
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    x, y = a[HEAD] - c[HEAD], b[HEAD] - c[HEAD]
    sign = (x + 2 * y).sign()
    agree = [(x * sign > 0).float(), (y * sign > 0).float() * 2]
    count = (agree[0] + agree[1]).clamp(min=1)
    wanted = c[HEAD] + 0.5 * (x * agree[0] + y * agree[1]) / count
    torch.testing.assert_close(made[HEAD].float(), wanted, rtol=1e-2, atol=1e-3)
    name = next(name for name in c if name.startswith("encoders."))
    wanted = c[name] + 0.5 * (a[name] - c[name])
    torch.testing.assert_close(made[name].float(), wanted, rtol=1e-2, atol=1e-3)
    apart = report["groups"]["lm.lm_head"]["distance"]
    assert apart["one"] == pytest.approx(float(x.norm() / c[HEAD].norm()), rel=1e-5)
    assert 0 < apart["merged"] < apart["one"] + apart["two"]
    assert report["groups"]["encoders.eye"]["changed"]["two"] == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_without_a_folder_it_only_compares(folders: Any, capsys: Any) -> None:
    a, b = (str(folders[name]) for name in "ab")
    before = sorted(folders["a"].parent.iterdir())
    assert run(["merge", a, b, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    left, right = state(folders["a"])[HEAD], state(folders["b"])[HEAD]
    assert report["groups"]["lm.lm_head"]["distance"] == {
        "b": pytest.approx(float((right - left).norm() / left.norm()), rel=1e-5)
    }
    assert sorted(folders["a"].parent.iterdir()) == before


def test_never_more_than_one_tensor_of_each(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: dict[str, int] = {}
    most: dict[str, int] = {}
    read = Weights.read

    def counted(self: Weights, name: str) -> Tensor:
        tensor = read(self, name)
        place = str(self.files[0].parent)
        alive[place] = alive.get(place, 0) + 1
        most[place] = max(most.get(place, 0), alive[place])

        def gone() -> None:
            alive[place] -= 1

        weakref.finalize(tensor, gone)
        return tensor

    monkeypatch.setattr(Weights, "read", counted)
    # shards of one byte: each result is written before the next is held
    for method in ({"kind": "linear"}, {"kind": "dare_ties"}):
        spec = {"method": method, "sources": [str(folders["a"]), str(folders["b"])]}
        spec |= {"base": str(folders["c"])} if method["kind"] != "linear" else {}
        merge(spec, tmp_path / method["kind"], shard_bytes=1)
        assert most == {str(folders[name]): 1 for name in ("ab" if len(spec) == 2 else "abc")}
        assert len(list((tmp_path / method["kind"]).glob("model-*.safetensors"))) > 10
    # reads are in step: after one tensor of each comes the next, so no model is read ahead
    assert all(count <= 1 for count in alive.values())


def test_other_formats_and_adapters_are_sources(tmp_path: Path) -> None:
    tiny_hf.save("llava", tmp_path / "hf")
    own = tmp_path / "own"
    convert(tmp_path / "hf", own, to="retinue", template="vicuna_v1")
    model, processor = load(own)
    head = model.lm.get_submodule("model.layers.0.self_attn.q_proj")
    before = head.weight.detach().clone()
    add_lora(model, {"lm.model.layers.0.self_attn.q_proj": LoraTarget(r=2, alpha=4)})
    layer = model.lm.get_submodule("model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)
        delta = layer.get_delta_weight("default").clone()
    save(model, processor, tmp_path / "tuned")
    spec = {
        "method": "task",
        "base": str(own),
        "sources": [{"from": str(tmp_path / "tuned"), "weight": 0.5}, str(tmp_path / "hf")],
    }
    report = merge(spec, tmp_path / "out")
    name = "lm.model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(state(tmp_path / "out")[name], before + 0.5 * delta)
    others = {n: t for n, t in state(own).items() if n != name}
    found = state(tmp_path / "out")
    assert all(torch.equal(found[n], t) for n, t in others.items())
    assert report.groups["lm.layers"]["changed"]["tuned"] == 1
    assert report.groups["lm.layers"]["changed"]["hf"] == 0


def test_configs_that_disagree_are_refused_by_name(
    folders: Any, tmp_path: Path, capsys: Any
) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["text_config"]["rms_norm_eps"] = 0.5
        fields["text_config"]["attention_dropout"] = 0.25
        fields["use_cache"] = False

    other = spoil(folders["b"], tmp_path / "other", change)
    words = ["merge", str(folders["a"]), str(other), "--out", str(tmp_path / "out")]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert "text_config.rms_norm_eps is 1e-06" in said
    assert "0.5 in" in said
    assert "--accept" in said
    assert "dropout" not in said
    assert not (tmp_path / "out").exists()
    assert run([*words, "--accept", "text_config.rms_*"]) == 0
    said = capsys.readouterr().err
    assert "rms_norm_eps" in said
    assert "attention_dropout is" in said
    assert "use_cache" not in said


def test_other_shapes_are_refused_and_can_be_left_out(folders: Any, tmp_path: Path) -> None:
    wider = save(*tiny_model(seed=4, intermediate_size=48), tmp_path / "wider")
    spec: dict[str, Any] = {"method": "linear", "sources": [str(folders["a"]), str(wider)]}
    with pytest.raises(CheckpointError) as refused:
        merge(spec)
    text = str(refused.value)
    assert "text_config.intermediate_size is 64" in text
    assert "lm.model.layers.0.mlp.gate_proj.weight has the shape (64, 32)" in text
    assert "(48, 32)" in text
    assert "--weight-of" in text
    spec["accept"] = ["text_config.intermediate_size"]
    with pytest.raises(CheckpointError, match="gate_proj"):
        merge(spec)
    spec["sources"][1] = {"from": str(wider), "weights": {"**.mlp.**": 0}}
    merge(spec, tmp_path / "out")
    found, left, right = state(tmp_path / "out"), state(folders["a"]), state(wider)
    for name in found:
        wanted = left[name] if ".mlp." in name else (left[name] + right[name]) / 2
        torch.testing.assert_close(found[name], wanted, msg=name)


def test_keys_only_in_one(folders: Any, tmp_path: Path) -> None:
    deeper = save(*tiny_model(seed=5, layers=3), tmp_path / "deeper")
    accept = ["text_config.num_hidden_layers", "text_config.layer_types"]
    spec = {"method": "linear", "sources": [str(folders["a"]), str(deeper)], "accept": accept}
    report = merge(spec, tmp_path / "out")
    assert any("only in deeper, left out: lm.model.layers.2" in line for line in report.notes)
    assert state(tmp_path / "out").keys() == state(folders["a"]).keys()
    report = merge({**spec, "sources": spec["sources"][::-1]}, tmp_path / "out")
    assert any("merged without it: lm.model.layers.2" in line for line in report.notes)
    name = "lm.model.layers.2.mlp.up_proj.weight"
    assert torch.equal(state(tmp_path / "out")[name], state(deeper)[name])


def test_other_tokens_behind_the_same_ids_are_refused(folders: Any, tmp_path: Path) -> None:
    other = spoil(folders["b"], tmp_path / "other", lambda fields: None)
    file = other / "tokenizer.json"
    data = json.loads(file.read_text())
    vocab = data["model"]["vocab"]
    last, one = (next(token for token, n in vocab.items() if n == i) for i in (310, 311))
    vocab[last], vocab[one] = vocab[one], vocab[last]
    file.write_text(json.dumps(data))
    spec = {"method": "slerp", "sources": [str(folders["a"]), str(other)]}
    with pytest.raises(CheckpointError, match=r"tokenizer: 2 ids mean other tokens \(310"):
        merge(spec)
    merge({**spec, "accept": ["tokenizer"]})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A", "B", "--method", "tie"], "did you mean 'ties'"),
        (["A", "B", "--method", "ties"], "--base PATH"),
        (["A", "B", "A", "--method", "slerp"], "takes 2 sources, not 3"),
        (["A"], "name two or more"),
        (["A", "B", "--weights", "1"], "not 2 numbers"),
        (["A", "B", "--weights", "1,-1"], "sum to 0"),
        (["A", "B", "--weight-of", "0.5,0.5"], "PATTERN=W,W"),
        (["A", "B", "--weight-of", "connecter.**=1,0"], "did you mean 'connector"),
        (["A", "B", "--weight-of", "re:(=1,0"], "no regular expression"),
        (["A", "B", "--method", "linear", "--density", "0.5"], "density: unknown key"),
        (["A", "B", "--method", "ties", "--density", "2", "--base", "A"], "density"),
        (["A", "B", "--weights", "0,0"], "no checkpoint with a weight"),
        (["A", "nowhere"], "does not exist"),
        (["A", "B", "--weights", "3e38,3e38", "--no-normalize"], "leaves the range of float32"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_said(
    folders: Any, tmp_path: Path, capsys: Any, words: list[str], said: str
) -> None:
    places = {"A": str(folders["a"]), "B": str(folders["b"])}
    out = tmp_path / "out"
    code = run(["merge", *(places.get(word, word) for word in words), "--out", str(out)])
    assert code == 2
    found = capsys.readouterr().err
    assert said in found, found
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_not_overwritten_and_a_failed_merge_keeps_the_old_folder(
    folders: Any, tmp_path: Path
) -> None:
    a, b = str(folders["a"]), str(folders["b"])
    with pytest.raises(ConfigError, match="one of the models"):
        merge({"method": "linear", "sources": [a, b]}, a)
    out = tmp_path / "out"
    merge({"method": "linear", "sources": [a, b]}, out)
    before = state(out)
    bad = {"from": b, "weights": {HEAD: -1}}
    with pytest.raises(ConfigError, match=HEAD):
        merge({"method": "linear", "sources": [a, bad]}, out)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(out).items())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_of_sources() -> None:
    sources = ["r/m", {"from": "r/m/"}, {"from": "x", "name": "base"}, {"from": "a/y"}, "b/m"]
    spec = MergeSpec.parse({"method": "linear", "sources": sources})
    assert spec.labels == ["r/m", "r/m/", "base (3)", "y", "b/m"]
    same = MergeSpec.parse({"method": "linear", "sources": ["m", "m"]})
    assert same.labels == ["m (1)", "m (2)"]
    assert spec.method.model_dump() == {"kind": "linear", "normalize": True}


def test_progress_counts_every_tensor(folders: Any) -> None:
    seen: list[tuple[int, int]] = []
    spec = {"method": "linear", "sources": [str(folders["a"]), str(folders["b"])]}
    plan = Merge(MergeSpec.parse(spec))
    plan.run(None, progress=lambda done, total: seen.append((done, total)))
    count = len(state(folders["a"]))
    assert seen == [(n, count) for n in range(1, count + 1)]


@pytest.mark.parametrize("case", cases("sphinx", "*shard*", having="outputs.json"), ids=str)
def test_shards_of_any_number_are_mixed(case: Path, tmp_path: Path) -> None:
    """SPHINX's mix of two domains: the second model is the first one changed and cut anew."""
    first = next(path.parent for path in sorted(case.glob("*/meta.json")))
    convert(first, tmp_path / "own", to="retinue")
    model, processor = load(tmp_path / "own")
    with torch.no_grad():
        for number, tensor in enumerate(model.parameters()):
            tensor.mul_(1 + number / 10)
    save(model, processor, tmp_path / "changed")
    convert(tmp_path / "changed", tmp_path / "second", to="sphinx", shards=2)
    beta = 0.25
    paths, weights = (str(first), str(tmp_path / "second")), (beta, 1 - beta)
    sources = [{"from": p, "weight": w} for p, w in zip(paths, weights, strict=True)]
    merge({"method": "linear", "sources": sources}, tmp_path / "mixed")
    left, right = state(tmp_path / "own"), state(tmp_path / "changed")
    wanted = {n: beta * left[n].float() + (1 - beta) * right[n].float() for n in left}
    same(state(tmp_path / "mixed"), {n: t.to(left[n].dtype) for n, t in wanted.items()})
    convert(tmp_path / "mixed", tmp_path / "back", to="sphinx", shards=2)
    again, _ = load(tmp_path / "back")
    assert torch.equal(again.state_dict()[HEAD], state(tmp_path / "mixed")[HEAD])


@pytest.mark.parametrize("case", cases("m3-llava", "llava15-core*", having="model"), ids=str)
def test_a_merged_tower_goes_into_an_original_s_checkpoint(case: Path, tmp_path: Path) -> None:
    """LLaVA keeps its tower outside; a mix of two towers is no longer that one."""
    for name in ("model", "openai"):
        shutil.copytree(case / name, tmp_path / name)
    first = tmp_path / "model"
    model, processor = load(first, template="vicuna_v1")
    with torch.no_grad():
        next(model.encoders["clip"].parameters()).add_(1)
    save(model, processor, tmp_path / "changed")
    spec: dict[str, Any] = {"method": "linear", "template": "vicuna_v1"}
    for other, inside in ((first, False), (tmp_path / "changed", True)):
        merge({**spec, "sources": [str(first), str(other)]}, tmp_path / "out")
        convert(tmp_path / "out", tmp_path / "back", to="llava")
        found = [name for name in Weights.of(tmp_path / "back") if "vision_tower" in name]
        assert bool(found) == inside
        if not inside:
            weights, original = Weights.of(tmp_path / "back"), Weights.of(first)
            assert set(weights) == set(original)
            assert all(torch.equal(weights.read(n), original.read(n)) for n in original)


def test_a_base_has_no_weight_and_a_recipe_no_options(
    folders: Any, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(RECIPE.format(**folders))
    assert run(["merge", str(file), "base={from: x, weight: 2}"]) == 2  # x does not exist either
    assert "only sources have one" in capsys.readouterr().err
    assert run(["merge", str(file), "--density", "0.5"]) == 2
    assert "method.density=0.3" in capsys.readouterr().err
    assert run(["merge", str(file), "sources.three.weight=2"]) == 2
    assert "no item is named 'three'" in capsys.readouterr().err
