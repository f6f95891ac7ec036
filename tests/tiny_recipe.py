"""Any training recipe at a size that runs in seconds: same seams, same rules, small numbers.

recipe = shrink("llava15-7b/sft", tmp_path)     # a YAML file, its data and models beside it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from retinue.cli.run_spec import compose_run
from retinue.core.compose import Tree
from retinue.hub.build import build
from retinue.text.train import train_bpe

WIDTH, SIDE = 32, 28
LM = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}

CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 8, 8, WIDTH], "depths": [1, 1, 1, 1]}

FLAMINGO = {
    "lm": {"config": {"model_type": "mpt", "d_model": WIDTH, "n_heads": 2, "n_layers": 2}},
    "encoders": {"clip": {"kind": "clip"}},
    "connector": {
        "kind": "perceiver",
        "depth": 1,
        "latents": 4,
        "of": {"kind": "take", "encoder": "clip", "layer": -1},
    },
    "fusion": {"kind": "cross", "every": 1},
    "template": "guanaco",
}

SPHINX = {
    "encoders": {"clip": {"kind": "clip"}, "other": {"kind": "clip"}},
    "connector": {
        "kind": "sequence",
        "parts": [
            {
                "kind": "linear",
                "norm": True,
                "of": {"kind": "take", "encoder": name, "layer": -1},
            }
            for name in ("clip", "other")
        ],
    },
    "layout": {"kind": "bracket"},
    "views": {"kind": "quad"},
    "template": "accessory",
}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def shrink(recipe: str, folder: Path, *, steps: int = 2) -> Path:
    """Write `folder/tiny.yaml`: the recipe with tiny parts and data, `steps` updates a stage.

    A model that the recipe would load is built first, as LLaVA-1.5's align recipe has it.
    """
    data = compose_run(recipe)[0].data
    tokenizer = folder / "tokenizer"
    marks = ["<image>", "<|endofchunk|>"] if recipe.startswith("flamingo") else []
    train_bpe(tiny.LINES, vocab_size=320, specials=marks).save(tokenizer)
    data["model"] = small_model(data["model"], tokenizer)
    if "from" in data["model"]:
        parts = compose_run("llava15-7b/align")[0].data["model"]
        if recipe.startswith("flamingo"):
            parts = FLAMINGO
        if recipe.startswith("sphinx"):
            experts = EXPERTS if recipe.startswith("sphinx-moe") else {}
            parts = {**SPHINX, "lm": {"config": {**LM, **experts}}}
            # the original's labels find an answer among sentencepiece's tokens, not among ours
            data["model"]["labels"] = "assistant"
        build(small_model(parts, tokenizer), folder / "base")
        data["model"]["from"] = str(folder / "base")
        for name in ("base", "encoders"):
            data["model"].pop(name, None)
    sources = data["data"]["sources"]
    # captions all have a picture; the model built above, which a recipe may start from, is plain
    every = 1 if data["model"].get("template", "plain") == "plain" else 2
    data["data"]["sources"] = [
        small_source(source, folder, n, every=every) for n, source in enumerate(sources)
    ]
    data["train"]["stages"] = [small_stage(stage, steps) for stage in data["train"]["stages"]]
    data["train"]["precision"] = "fp32"
    data["data"]["workers"] = 0
    if data["data"].get("epoch"):
        data["data"]["epoch"]["samples"] = 8
    data["report"] = {**data.get("report", {}), "every": 1}
    alone = {"compile": False, "tensor": 1, "shard": "none"}
    data["parallel"] = {**data.get("parallel", {}), **alone}
    path = folder / "tiny.yaml"
    path.write_text(Tree(data=data).dump(), "utf-8")
    return path


def small_model(model: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """Random backbones of the same kinds; all budgets that the small grid can meet."""
    model = {**model, "dtype": "fp32"}
    if "scales" in model:
        model["scales"] = []
    if "scales" in model.get("connector", {}):
        model["connector"] = {**model["connector"], "scales": []}
    if "lm" in model:
        own = model["lm"].get("config") or LM
        cross = model.get("fusion", {}).get("kind") == "cross"
        chosen = own if cross or "num_local_experts" in own else LM
        model["lm"], model["tokenizer"] = {"config": chosen}, {"from": str(tokenizer)}
    if model.get("connector", {}).get("kind") == "abstractor":
        model["connector"] = {**model["connector"], "tokens": 4, "hidden": WIDTH, "depth": 1}
    for name, part in model.get("encoders", {}).items():
        fields = {key: value for key, value in part.items() if key not in ("from", "config")}
        own = ENCODER
        if fields.get("kind") == "convnext":
            own, fields["size"] = CONVNEXT, 32
        elif "size" in fields:
            fields["size"] = 42  # three patches of 14 a side, where the config has two
        elif any("size" in other for other in model["encoders"].values()):
            own = {**ENCODER, "image_size": 32, "patch_size": 16}  # one view of both is 32 pixels
        model["encoders"] = {**model["encoders"], name: {**fields, "config": own}}
    return model


def small_source(
    source: dict[str, Any], folder: Path, number: int, *, every: int
) -> dict[str, Any]:
    """Eight records in LLaVA's JSON; every first, second, … has a picture."""
    rows = []
    for n in range(8):
        mark = "<image>\n" if n % every == 0 else ""
        row: dict[str, Any] = {
            "id": f"{number}-{n}",
            "conversations": [
                {"from": "human", "value": f"{mark}what colour is the circle?"},
                {"from": "gpt", "value": ["red", "green", "blue"][n % 3]},
            ],
        }
        if mark:
            row["image"] = f"{number}-{n}.png"
            tiny.picture(n).save(folder / row["image"])
        rows.append(row)
    path = folder / f"source-{number}.json"
    path.write_text(json.dumps(rows), "utf-8")
    kept = {key: value for key, value in source.items() if key != "web"}
    return {**kept, "path": str(path), "media_root": str(folder), "format": "llava"}


def small_stage(stage: dict[str, Any], steps: int) -> dict[str, Any]:
    """The same stage with `steps` updates of two micro-batches of two samples of the run's data."""
    stage = {key: value for key, value in stage.items() if key != "epochs"}
    if "data" in stage:
        stage["data"] = {key: value for key, value in stage["data"].items() if key != "sources"}
    return {**stage, "steps": steps, "global_batch": 4, "micro_batch": 2}
