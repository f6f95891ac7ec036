"""Every packaged recipe parses, says what it is, and survives its own dump."""

import re
import shlex
from pathlib import Path

import pytest

from retinue.cli.main import run
from retinue.cli.run_spec import compose_run, run_schema, with_defaults
from retinue.core.compose import Tree, compose
from retinue.core.errors import ConfigError
from retinue.core.paths import recipes

HEADER = ("command:", "hardware:", "loss")
TRAINING = {name: path for name, path in recipes().items() if "train:" in path.read_text("utf-8")}


def test_there_are_recipes():
    assert {"llava15-7b/align", "llava15-7b/sft", "llava15-7b/lora"} <= set(TRAINING)


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_parses_and_its_defaults_parse_to_the_same(name, tmp_path):
    _, spec = compose_run(name)
    again = tmp_path / "full.yaml"
    again.write_text(Tree(data=with_defaults(spec)).dump(), "utf-8")
    assert with_defaults(compose_run(str(again))[1]) == with_defaults(spec)


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_header_says_what_command_hardware_and_loss(name):
    text = TRAINING[name].read_text("utf-8")
    header = "".join(re.findall(r"^#.*\n", text, re.MULTILINE))
    assert [word for word in HEADER if word not in header.lower()] == []
    assert f"retinue train {name}" in header or "retinue quickstart" in header


def header_command(text, word):
    """The command line that a header gives under `Data:` or the like, its lines joined."""
    found = re.search(rf"^# {word}:(.*(?:\n#   {{6,}}(?!retinue).*)*)", text, re.MULTILINE)
    return found and shlex.split(found[1].replace("(on one line)", ""), comments=False)


DRAWN = {n: w for n, p in TRAINING.items() if (w := header_command(p.read_text("utf-8"), "Data"))}


def test_other_tasks_have_recipes():
    names = {f"tiny/{name}" for name in ("text", "boxes", "poses", "relations", "pictures")}
    assert names <= set(DRAWN)


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_data_command_of_a_header_makes_what_the_recipe_reads(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for word in DRAWN[name] if word != "#"]
    assert words[:3] == ["retinue", "data", "world"]
    assert run([*words[1:], "--pictures", "2", "--questions", "2"]) == 0
    data = compose_run(name)[0].data
    assert all(Path(source["path"]).is_file() for source in data["data"]["sources"])
    assert Path(data["model"]["tokenizer"]["from"]).is_dir()
    paths = dict.fromkeys(source["path"] for source in data["data"]["sources"])
    assert run(["data", "check", *paths]) == 0


def test_llava_values_are_the_original_s():
    align, sft, lora = (compose_run(f"llava15-7b/{name}")[1] for name in ("align", "sft", "lora"))
    (stage,) = align.train.stages
    assert (stage.optim.lr, stage.global_batch, stage.optim.weight_decay) == (1e-3, 256, 0.0)
    assert stage.schedule.kind == "cosine"
    assert stage.schedule.warmup == 0.03
    (stage,) = sft.train.stages
    assert (stage.optim.lr, stage.global_batch, sft.data.max_tokens) == (2e-5, 128, 2048)
    assert stage.trainable["lm.**"] == "full"
    (stage,) = lora.train.stages
    assert stage.optim.lr == 2e-4
    assert (stage.trainable["lm.**"].lora.r, stage.trainable["lm.**"].lora.alpha) == (128, 256)
    assert stage.trainable["connector.**"].full.lr == 2e-5
    for spec in (sft, lora):  # whose text samples carry a dummy picture in the original
        assert spec.train.stages[0].idle_visual == "momentum"
    for spec in (align, sft, lora):
        assert spec.train.stages[0].epochs == 1
        assert spec.train.stages[0].optim.betas == (0.9, 0.999)


def test_m3_values_are_the_original_s():
    sft, lora = (compose_run(f"m3-7b/{name}")[1] for name in ("sft", "lora"))
    (stage,) = sft.train.stages
    assert (stage.optim.lr, stage.global_batch, stage.epochs) == (2e-5, 128, 1)
    assert stage.trainable["encoders.**"].full.lr == 2e-5
    assert (stage.schedule.kind, stage.schedule.warmup) == ("cosine", 0.03)
    assert lora.train.stages[0].trainable["lm.**"].lora.r == 128
    assert lora.train.stages[0].trainable["encoders.**"] == "frozen"
    for spec in (sft, lora):
        assert spec.model["from"] == "liuhaotian/llava-v1.5-7b"
        assert spec.model["scales"] == [1, 9, 36, 144, 576]
        objective = spec.train.stages[0].objective
        assert (objective.kind, objective.tower, objective.sample) == ("elastic", "trained", None)
        assert objective.scales == []  # those of the model


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.connector.dept=2", ["connector", "dept", "did you mean 'depth'?"]),
        ("model.connector.kind=mpl", ["unknown connector 'mpl'; did you mean 'mlp'?"]),
        ("stages.align.optim.lrr=1", ["lrr", "did you mean 'lr'?"]),
        ("stages.align.optim.lr=fast", ["train.stages.0.optim.lr", "fast"]),
        ("model.template=plian", ["unknown template 'plian'; did you mean 'plain'?"]),
        ("model.labels=llava", ["unknown label"]),
        ("model.encoders.clip.kind=clop", ["unknown encoder 'clop'; did you mean 'clip'?"]),
        ("model.encoders.clip.strem=rgb", ["strem"]),
        ("model.from=some/model", ["give `from`, or `lm` with its parts, not both"]),
        ("model.lm={}", ["give one of from and config"]),
        ("data.sampler=shufle", ["unknown sampler 'shufle'; did you mean 'shuffle'?"]),
        ("sed=1", ["sed", "did you mean 'seed'?"]),
    ],
)
def test_wrong_values_are_named_with_the_nearest(override, parts):
    with pytest.raises(ConfigError) as caught:
        compose_run("llava15-7b/align", [override])
    for part in ["llava15-7b/align", *parts]:
        assert part in str(caught.value)


def test_an_incomplete_model_is_refused():
    with pytest.raises(ConfigError, match="give `from`, or all of lm"):
        compose_run("llava15-7b/align", ["model.lm=null"])


def test_schema_covers_the_model():
    schema = run_schema()
    model = schema["$defs"]["ModelSection"]
    assert {"from", "lm", "encoders", "connector"} <= set(model["properties"])
    sections = {"model", "train", "data", "parallel", "checkpoint", "report", "seed", "include"}
    assert set(schema["properties"]) == sections
    known = set(compose("llava15-7b/align").data)
    assert known <= sections


def test_sphinx_values_are_the_original_s():
    """SPHINX's tuning command, value by value; its text length alone cannot hold a picture."""
    _, spec = compose_run("sphinx-13b/sft")
    (stage,) = spec.train.stages
    found = {
        "epochs": stage.epochs,
        "warmup_epochs": stage.schedule.warmup,
        "batch_size x data groups x accum_iter": stage.global_batch,
        "batch_size": stage.micro_batch,
        "num_workers": spec.data.workers,
        "lr": stage.optim.lr,
        "min_lr": stage.schedule.floor * stage.optim.lr,
        "schedule": stage.schedule.kind,
        "clip_grad": stage.optim.clip,
        "weight_decay": stage.optim.weight_decay,
        "betas": stage.optim.betas,
        "model_parallel_size": spec.parallel.tensor,
        "data_parallel": spec.parallel.shard,
        "checkpointing": spec.parallel.activation,
        "dialog": spec.data.sources[0].format,
        "image_transform": spec.model.get("views"),
        "seed": spec.seed,
    }
    assert found == {
        "epochs": 1,
        "warmup_epochs": 0.03,
        "batch_size x data groups x accum_iter": 4 * (8 // 2) * 4,
        "batch_size": 4,
        "num_workers": 2,
        "lr": 2e-5,
        "min_lr": 0.0,
        "schedule": "cosine",
        "clip_grad": 8.0,
        "weight_decay": 0.0,
        "betas": (0.9, 0.95),
        "model_parallel_size": 2,
        "data_parallel": "keep",  # sdp
        "checkpointing": "full",
        "dialog": "accessory",
        "image_transform": None,  # padded_resize is the checkpoint's own
        "seed": 0,
    }
    assert spec.data.max_tokens > 1455 > 512
    _, moe = compose_run("sphinx-moe/sft")
    (other,) = moe.train.stages
    assert (other.optim.lr, other.objective.kind) == (5e-6, "moe")
    same = other.model_copy(update={"optim": stage.optim, "objective": stage.objective})
    assert same == stage
    assert moe.parallel == spec.parallel


def test_accessory_s_words_for_sharding_are_ours():
    for theirs, ours in (("sdp", "keep"), ("fsdp", "reshard")):
        _, spec = compose_run("sphinx-13b/sft", [f"parallel.shard={theirs}"])
        assert spec.parallel.shard == ours


def test_mm1_values_are_the_papers():
    spec = compose_run("mm1-7b/pretrain")[1]
    (stage,) = spec.train.stages
    assert (stage.steps, stage.global_batch, stage.trainable) == (200000, 512, {"**": "full"})
    assert (stage.schedule.warmup, stage.schedule.floor) == (2000, 0.1)
    assert stage.optim.lr == pytest.approx(6.5e9**-0.4214 * 2.718281828**-0.5535, rel=0.01)
    data = spec.data
    assert [source.share for source in data.sources] == [0.45, 0.45, 0.10]
    assert (data.max_tokens, data.max_views, data.packing) == (4096, 16, "window")
    encoder = spec.model["encoders"]["clip"]
    connector = spec.model["connector"]
    assert (encoder["size"] // 14) ** 2 == 729
    assert (connector["kind"], connector["tokens"], connector["depth"]) == ("abstractor", 144, 3)
