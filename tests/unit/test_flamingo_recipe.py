"""Recipe flamingo-9b/lora against the original's training command, argument by argument."""

import json
from random import Random

import pytest

from retinue.cli.run_spec import compose_run
from retinue.convert.tuning import trainable_rules
from retinue.data.dataset import open_dataset
from retinue.data.files import packaged
from retinue.data.formats import open_format

GPUS = 8
STAGE = "train.stages.0"
TUNING = {
    "lora": True,
    "from_pretrained": False,
    "lora_target_modules": [
        *("Wqkv", "out_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"),
        *("to_q", "to_kv", "to_out", "ff.1", "ff.3"),
    ],
    "lora_r": 128,
    "lora_alpha": 64,
    "lora_dropout": 0.0,
    "unfrozen": ["perceiver"],
}
NAMES = [
    *(f"lm.transformer.blocks.0.{n}.weight" for n in ("attn.Wqkv", "attn.out_proj")),
    *(f"lm.transformer.blocks.0.ffn.{n}.weight" for n in ("up_proj", "down_proj")),
    *(
        f"lm.transformer.blocks.3.gated_cross_attn_layer.{n}.weight"
        for n in ("attn.to_q", "attn.to_kv", "attn.to_out", "ff.1", "ff.3")
    ),
    "connector.latents",
    "lm.transformer.wte.weight",
]

COMMAND = {
    "instruction_data": ("the 27 sets", "data.sources.0.path", "recipe:flamingo-9b/mixture.json"),
    "instruction_prompt_templete": (
        "guanaco-no-prompt", "model.template.name", "guanaco_no_prompt",
    ),
    "run_name": ("a folder", "report.dir", "runs/flamingo-9b-lora"),
    "seed": (42, "seed", 42),
    "vision_encoder_path": (
        "ViT-L-14-336", "model.encoders.clip.from", "openai/clip-vit-large-patch14-336",
    ),
    "vision_encoder_pretrained": (
        "openai", "model.encoders.clip.from", "openai/clip-vit-large-patch14-336",
    ),
    "lm_path": ("anas-awadalla/mpt-7b", "model.base", "anas-awadalla/mpt-7b"),
    "tokenizer_path": ("anas-awadalla/mpt-7b", "model.base", "anas-awadalla/mpt-7b"),
    "cross_attn_every_n_layers": (4, "model.from", "OpenFlamingo-9B-vitl-mpt7b.pt"),
    "resume_from_checkpoint": (
        "OpenFlamingo-9B-vitl-mpt7b.pt", "model.from", "OpenFlamingo-9B-vitl-mpt7b.pt",
    ),
    "freeze_lm_embeddings": (True, f"{STAGE}.trainable", "no table of words"),
    "tuning_config": ("lora[lm+xqttn]+perceiver", f"{STAGE}.trainable", "its rules"),
    "max_length": (2048, "data.max_tokens", 2048),
    "multiturn_augmentation": (32, "data.sources.0.turns.add", 32),
    "max_img": (16, "data.sources.0.turns.max_media", 16),
    "batch_size": (2, f"{STAGE}.micro_batch", 2),
    "gradient_accumulation_steps": (4, f"{STAGE}.global_batch", 2 * 4 * GPUS),
    "learning_rate": (1e-4, f"{STAGE}.optim.lr", 1e-4),
    "weight_decay": (0.1, f"{STAGE}.optim.weight_decay", 0.1),
    "precision": ("bf16", "model.dtype", "bf16"),
    "train_num_samples": (10_000_000, "data.epoch.replace", True),
    "epoch_num_samples": (500_000, "data.epoch.samples", 500_000),
    "dataset_sampling_mode": ("ratio", "data.epoch.share", "ratio"),
    "skip_check_overlength": (True, "data.overlong", "truncate"),
    "num_epochs": (20, f"{STAGE}.epochs", 20),
    "lr_scheduler": ("constant", f"{STAGE}.schedule.kind", "constant"),
    "warmup_steps": (1000, f"{STAGE}.schedule.warmup", 1000),
    "logging_steps": (500, "report.every", 500 // 4),
    "workers": (32, "data.workers", 32),
}  # fmt: skip
"""Argument -> (its value, the one field that carries it, the field's value)."""


def field(data, path):
    for part in path.split("."):
        data = data[int(part)] if part.isdecimal() else data[part]
    return data


@pytest.fixture(scope="module")
def recipe():
    return compose_run("flamingo-9b/lora")[0].data


@pytest.mark.parametrize("argument", COMMAND)
def test_every_argument_has_a_field(recipe, argument):
    _, path, wanted = COMMAND[argument]
    found = field(recipe, path)
    if path.endswith("trainable"):
        assert not [pattern for pattern in found if "wte" in pattern or "embed" in pattern]
        rules = trainable_rules(TUNING, NAMES)
        assert {p.replace("**connector**", "connector.**"): r for p, r in rules.items()} == {
            pattern: rule if rule == "full" else {"lora": {**rule["lora"], "dropout": 0.0}}
            for pattern, rule in found.items()
        }
    else:
        assert found == wanted


def test_the_mixture_is_the_original_s():
    rows = json.loads(packaged("recipe:flamingo-9b/mixture.json").read_text("utf-8"))
    assert len(rows) == 27
    assert sum(row["ratio"] for row in rows) == pytest.approx(100, abs=0.05)
    ratios = {row["dataset_name"]: row["ratio"] for row in rows}
    assert ratios["alpaca_cot_merged"] == 33.85
    assert ratios["PF-1M Filtered by reward score"] == 16.93
    assert len({row["json_path"] for row in rows}) == 27


def test_the_mixture_opens_where_its_files_are(tmp_path, monkeypatch):
    """Shares of an epoch are those of the mixture, from files as `data convert` writes them."""
    from fake_processor import FakeProcessor
    from retinue.data.spec import DataSpec

    monkeypatch.chdir(tmp_path)
    data = dict(compose_run("flamingo-9b/lora")[0].data["data"])
    config = packaged(data["sources"][0]["path"])
    for row in json.loads(config.read_text("utf-8")):
        file = tmp_path / "instructions" / row["json_path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        made = [
            {"input": f"q{k}", "output": "a"} for k in range(Random(row["ratio"]).randint(2, 5))
        ]
        file.write_text(json.dumps(made), "utf-8")
    assert len(open_format(config, media_root="instructions").shares) == 27
    spec = DataSpec.parse({**data, "workers": 0, "epoch": {**data["epoch"], "samples": 10000}})
    opened = open_dataset(spec, FakeProcessor())
    kinds = [opened.train.kind(k) for k in opened.train.epoch(0, spec=spec.epoch)]
    assert kinds.count("alpaca_cot_merged") == 3385
    assert kinds.count("xiaobing_hard_coded") == 11
