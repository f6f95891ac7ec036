"""Params files of ModelZoo run unchanged: both layouts, all modes, and what is refused by name."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from retinue.cli.main import app
from retinue.cli.params import schedule_of
from retinue.cli.params_recipe import recipe_of
from retinue.core.errors import ConfigError, RetinueError
from retinue.hub.convert import convert
from retinue.hub.load import load

GOLDEN = Path(__file__).parents[1] / "golden" / "cerebras-multimodal"
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def vit(width=16, layers=2, index=-2):
    return {
        "name": "ViTModel",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_heads": 2,
        "filter_size": 2 * width,
        "image_size": [16, 16],
        "patch_size": [8, 8],
        "dropout_rate": 0.0,
        "nonlinearity": "quick_gelu",
        "position_embedding_type": "learned",
        "use_conv_patchified_embedding": True,
        "use_embed_proj_bias": False,
        "use_post_embed_layer_norm": True,
        "image_layer_idx": index,
    }


def model():
    return {
        "name": "multimodal_simple",
        "freeze": ["^image_model.image_model_list", "^text_model"],
        "image_model_list": {
            "image_feature_select_mode": "patch",
            "image_models": [{"image_encoder": vit()}],
            "global_image_projection": {
                "name": "FeedForwardNetwork",
                "input_unit": 16,
                "layers_units": [24, 24],
                "layers_activation": ["gelu", None],
                "use_bias": True,
            },
        },
        "text_model": {
            "name": "LlamaModel",
            "vocab_size": 1001,
            "hidden_size": 24,
            "num_hidden_layers": 1,
            "num_heads": 2,
            "rotary_dim": 12,
            "filter_size": 32,
            "max_position_embeddings": 96,
            "position_embedding_type": "rotary",
            "norm_type": "rmsnorm",
            "nonlinearity": "swiglu",
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
            "use_projection_bias_in_attention": False,
            "use_ffn_bias_in_attention": False,
            "use_ffn_bias": False,
            "share_embedding_weights": False,
        },
        "loss_scaling": "num_tokens",
        "loss_weight": 1.0,
    }


def loader():
    return {
        "data_processor": "MultimodalSimpleHDF5MapDataProcessor",
        "data_dir": str(GOLDEN / "h5_llava_phase2_chat" / "out"),
        "img_data_dir": str(GOLDEN / "images"),
        "image_data_size": [3, 16, 16],
        "transforms": [
            {"name": "expand_to_square", "background_color": [122, 116, 104]},
            {"name": "resize", "size": [16, 16], "interpolation": "bicubic"},
            {"name": "center_crop", "size": [16, 16]},
            {"name": "to_tensor"},
            {"name": "normalize", "mean": MEAN, "std": STD},
        ],
        "batch_size": 4,
        "shuffle": True,
        "shuffle_seed": 274508134,
        "drop_last": True,
        "num_workers": 0,
        "max_num_img": 1,
        "num_patches": 4,
    }


LINEAR = {"initial_learning_rate": 0.0, "end_learning_rate": 1e-3, "total_iters": 1}
COSINE = {"initial_learning_rate": 1e-3, "end_learning_rate": 5e-5, "total_iters": 2}
ADAMW = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "correct_bias": True}


def new_layout():
    rates = [{"SequentialLR": {"schedulers": [{"LinearLR": LINEAR}, {"CosineDecayLR": COSINE}]}}]
    return {
        "trainer": {
            "init": {
                "backend": {"backend_type": "CPU"},
                "seed": 1,
                "model": model(),
                "optimizer": {"AdamW": ADAMW},
                "schedulers": rates,
                "precision": {"enabled": False, "max_gradient_norm": 1.0},
                "loop": {"max_steps": 2, "eval_frequency": 1, "eval_steps": 1},
                "checkpoint": {"steps": 2},
                "logging": {"log_steps": 1},
                "callbacks": [{"KeepNCheckpoints": {"n": 1}}, {"CheckLoss": {}}],
            },
            "fit": {"train_dataloader": loader(), "val_dataloader": {**loader(), "shuffle": False}},
        }
    }


def old_layout():
    section = model()
    del section["name"]
    images = section["image_model_list"]
    images["image_models"] = [{"image_model": [vit()]}]
    rates = [{"scheduler": "Linear", **LINEAR}, {"scheduler": "CosineDecay", **COSINE}]
    optimizer = {"optimizer_type": "AdamW", **ADAMW, "learning_rate": rates}
    return {
        "train_input": loader(),
        "eval_input": loader(),
        "model": {**section, "mixed_precision": False, "fp16_type": "bfloat16"},
        "optimizer": {**optimizer, "max_gradient_norm": 1.0},
        "runconfig": {"max_steps": 2, "eval_frequency": 1, "seed": 1, "checkpoint_steps": 2},
    }


def run(tmp_path, data, *options):
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(data))
    words = str(GOLDEN / "tokenizer_hf")
    command = ["train", str(file), "--device", "cpu", "--tokenizer", words]
    return CliRunner().invoke(app, [*command, "--model_dir", str(tmp_path / "out"), *options])


def lines_of(text):
    return [line for line in text.splitlines() if ": loss " in line]


def test_both_layouts_mean_the_same():
    new, old = (
        recipe_of(one, where="x", tokenizer="w").recipe for one in (new_layout(), old_layout())
    )
    old["checkpoint"]["keep"] = new["checkpoint"]["keep"]
    assert old == new
    stage = new["train"]["stages"][0]
    assert stage["trainable"] == {"connector.**": "full"}
    assert stage["optim"]["lr"] == 1e-3
    assert [part["kind"] for part in stage["schedule"]["parts"]] == ["linear", "cosine"]


def test_validate_only(tmp_path):
    found = run(tmp_path, new_layout(), "--validate-only")
    assert found.exit_code == 0, found.output
    assert "pictures" in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["new_layout", "old_layout"])
def test_validate_only_names_what_does_not_fit(layout, tmp_path):
    """One batch is read without a model's weights: shapes that disagree are found before a run."""
    data = globals()[layout]()
    text = (data["trainer"]["init"] if "trainer" in data else data)["model"]["text_model"]
    text["max_position_embeddings"] = 48
    found = run(tmp_path, data, "--validate-only")
    assert found.exit_code != 0
    assert isinstance(found.exception, RetinueError)
    assert "48" in str(found.exception)


def test_the_originals_name_of_an_accelerator(tmp_path):
    """--device gpu, as the original's command has it, means CUDA; without one that is said."""
    found = run(tmp_path, new_layout(), "--validate-only", "--device", "gpu")
    assert found.exit_code == 0, found.output
    found = run(tmp_path, new_layout(), "--device", "gpu")
    if torch.cuda.is_available():
        assert found.exit_code == 0, found.output
    else:
        assert "'cuda' is not on this machine" in str(found.exception)


def test_every_checkpoint_is_evaluated(tmp_path):
    """eval_all goes through all checkpoints of model_dir in order, eval takes the newest."""
    data = new_layout()
    init = data["trainer"]["init"]
    init["checkpoint"]["steps"] = 1
    init["callbacks"] = [{"KeepNCheckpoints": {"n": 3}}]
    found = run(tmp_path, data, "--mode", "train")
    assert found.exit_code == 0, found.output
    found = run(tmp_path, data, "--mode", "eval_all")
    assert found.exit_code == 0, found.output
    every = lines_of(found.stderr)
    assert len(every) == 2
    assert every[0].split(":")[0] < every[1].split(":")[0]
    found = run(tmp_path, data, "--mode", "eval")
    assert lines_of(found.stderr) == every[-1:]
    assert every[0].split("loss")[1] != every[1].split("loss")[1]


def test_train_then_evaluate_then_back(tmp_path):
    found = run(tmp_path, new_layout(), "--mode", "train_and_eval")
    assert found.exit_code == 0, found.output
    trained = tmp_path / "out" / "model"
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert any(row.get("kind") == "validation" for row in rows)
    found = run(tmp_path, new_layout(), "--mode", "eval", "--checkpoint-path", str(trained))
    assert found.exit_code == 0, found.output
    assert "loss" in found.stderr
    convert(trained, tmp_path / "cs", to="mm_simple")
    (file,) = (tmp_path / "cs").glob("*.mdl")
    found = run(tmp_path, old_layout(), "--mode", "eval", "--checkpoint_path", str(file))
    assert found.exit_code == 0, found.output
    one, _ = load(trained)
    two, _ = load(tmp_path / "cs")
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("optimizer",), {"Lamb": {}}, "Lamb"),
        (("model", "text_model", "hiden_size"), 3, "did you mean 'hidden_size'"),
        (("model", "text_model", "norm_type"), "layernorm", "norm_type"),
        (("callbacks",), [{"Lora": {}}], "Lora"),
        (("precision",), {"fp16_type": "float16"}, "float16"),
        (("model", "freeze"), ["nothing"], "nothing"),
        (("model", "loss_scaling"), "batch_size", "batch_size"),
    ],
)
def test_what_has_no_place_is_named(place, value, says):
    data = copy.deepcopy(new_layout())
    at = data["trainer"]["init"]
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(RetinueError, match=says):
        recipe_of(data, where="x", tokenizer="w")


@pytest.mark.parametrize("given", [None, {}, {"k": 3}, {"n": "two"}, {"n": 0}, {"n": 1, "m": 2}])
def test_keep_needs_a_number(given):
    data = new_layout()
    data["trainer"]["init"]["callbacks"] = [{"KeepNCheckpoints": given}]
    with pytest.raises(RetinueError) as caught:
        recipe_of(data, where="x", tokenizer="w")
    assert "KeepNCheckpoints" in str(caught.value)
    assert any(part in str(caught.value) for part in ("n is missing", "unknown field", "n: "))


def places(value, at=()):
    """Every path into nested sections and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in items:
        yield (*at, key)
        if isinstance(one, dict | list):
            yield from places(one, (*at, key))


@pytest.mark.parametrize("layout", ["new_layout", "old_layout"])
@pytest.mark.parametrize("value", ["gone", "x", {"x": 1}], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_no_value_in_any_place_ends_in_a_traceback(layout, value):
    """Every field in turn is removed, or holds something else: accepted, or refused by name."""
    refused, whole = 0, globals()[layout]()
    for *path, last in places(whole):
        data = at = copy.deepcopy(whole)
        for key in path:
            at = at[key]
        if value == "gone":
            del at[last]
        else:
            at[last] = value
        try:
            recipe_of(data, where="x", tokenizer="w")
        except RetinueError:
            refused += 1
    assert refused > 10


def test_milestones_are_checked():
    members = [{"LinearLR": LINEAR}, {"CosineDecayLR": COSINE}]
    with pytest.raises(ConfigError, match="milestones"):
        schedule_of([{"SequentialLR": {"schedulers": members, "milestones": [7]}}], where="x")


def test_interleaved_documents_prepare_and_train(tmp_path):
    """Raw records with pictures between words -> HDF5 -> two updates; the middle of a row sees."""
    turns = [
        {"from": "human", "value": "First <image> then <image> and <image> are what?"},
        {"from": "gpt", "value": "Three pictures of things."},
    ]
    record = {"image": ["coco/a.png", "coco/b.png", "gqa/c.png"], "conversations": turns}
    broken = {**record, "image": ["coco/a.png"]}
    raw = tmp_path / "raw.json"
    raw.write_text(json.dumps([record] * 5 + [broken] + [record] * 3))
    hook = {"multi_turn_key": "conversations", "image_key": "image", "image_token": "<image>"}
    config = {
        "setup": {
            "data": {"type": "local", "source": str(raw)},
            "output_dir": str(tmp_path / "h5"),
            "image_dir": str(GOLDEN / "images"),
            "mode": "finetuning",
        },
        "processing": {
            "huggingface_tokenizer": str(GOLDEN / "tokenizer_hf"),
            "max_seq_length": 96,
            "read_hook": "interleaved_hook",
            "read_hook_kwargs": hook,
        },
        "dataset": {
            "is_multimodal": True,
            "num_patches": 4,
            "max_num_img": 3,
            "chat_template": "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
        },
    }
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump(config))
    made = CliRunner().invoke(app, ["data", "preprocess", str(file), "--processes", "1"])
    assert made.exit_code == 0, made.output
    assert "1 records left out" in made.stderr
    assert "record 6" in made.stderr
    data = new_layout()
    loaders = data["trainer"]["fit"]
    loaders["train_dataloader"] |= {"data_dir": str(tmp_path / "h5"), "max_num_img": 3}
    found = run(tmp_path, data, "--mode", "train")
    assert found.exit_code == 0, found.output
    _, processor = load(tmp_path / "out" / "model")
    from retinue.data.formats import open_format

    rows = open_format(tmp_path / "h5", media_root=GOLDEN / "images")
    assert len(rows) == 8
    example = processor.example(rows[0], train=True)
    starts = [span.start for span in example.spans]
    assert starts == sorted(starts)
    assert all(b - a > 4 for a, b in itertools.pairwise(starts))
