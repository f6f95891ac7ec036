"""A list of OpenFlamingo checkpoints, a language model and a vision tower -> one opened model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retinue.convert.flamingo import (
    LAYERS,
    Flamingo,
    flamingo_keys,
    folds,
    is_flamingo,
    language_rules,
    plain_name,
    read_flamingo,
    settings_of,
    state_of,
    table_of,
)
from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.open_clip import open_clip_tower, vision_table
from retinue.convert.pictures import stream_of
from retinue.convert.towers import OPENAI, open_tower, tower_keys
from retinue.convert.translation import FOREIGN, Tower
from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError
from retinue.hub.lora import Lora, read_lora
from retinue.hub.resolve import resolve
from retinue.hub.stream import Source
from retinue.hub.towers import override
from retinue.model.spec import RetinueConfig
from retinue.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from retinue.hub.sources import Encoders, Opened

TOKENS = ("<|endofchunk|>", "<image>")
PAD = "<PAD>"
"""What the original adds to every vocabulary, in this order; the last only where it has no pad."""

TOWER = "openai/clip-vit-large-patch14"
"""The tower that every released model was trained with, in two sizes."""


TABLES = (
    "lm_head",
    "transformer.wte",
    "model.embed_tokens",
    "model.decoder.embed_tokens",
    "gpt_neox.embed_in",
)
"""Tensors with a row per word, by the language models' names."""


ADAPTER = "adapter_config.json"


def files_of(path: str | Path) -> list[Path] | None:
    """The entries of a comma-separated list; None where one is neither file nor adapter folder."""
    files = [Path(part) for part in str(path).split(",")]
    known = all(file.is_file() or (file / ADAPTER).is_file() for file in files)
    return files if known and any(file.is_file() for file in files) else None


def names_flamingo(path: str | Path) -> bool:
    """Whether a path names OpenFlamingo checkpoints: told by what the files hold."""
    files = files_of(path)
    if files is None:
        return False
    return any(is_flamingo(state_of(file)) for file in checkpoints(files))


def checkpoints(files: list[Path]) -> list[Path]:
    """The torch files of a list, without tuning config and adapter."""
    return [file for file in files if file.is_file() and file.suffix != ".json"]


def tuning_of(files: list[Path]) -> dict[str, Any]:
    """The tuning config in a list of files, {} without one."""
    found = [read_json(file) for file in files if file.suffix == ".json"]
    return found[-1] if found else {}


def adapter_of(files: list[Path], tuning: Mapping[str, Any]) -> Lora | None:
    """The adapter that lies under the checkpoints: a folder in the list, or `from_pretrained`."""
    folders = [file for file in files if file.is_dir()]
    named = tuning.get("from_pretrained")
    if not folders and named:
        folders = [resolve(str(named))]
    return read_lora(folders[-1]) if folders else None


def text_config(folder: Path) -> dict[str, Any]:
    """config.json of the language model; MPT-1B's own fields become MPT's."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "mosaic_gpt":
        return config
    return {
        "model_type": "mpt",
        "d_model": config["d_model"],
        "n_heads": config["n_heads"],
        "n_layers": config["n_layers"],
        "expansion_ratio": config.get("mlp_ratio", 4),
        "max_seq_len": config.get("max_seq_len", 2048),
        "vocab_size": config["vocab_size"],
        "attn_config": {
            "alibi": bool(config.get("alibi", True)),
            "alibi_bias_max": config.get("alibi_bias_max", 8),
            "qk_ln": bool(config.get("attn_qk_ln", False)),
            "clip_qkv": config.get("attn_clip_qkv"),
        },
    }


def open_flamingo(
    path: str | Path,
    *,
    base: str | Path | None,
    encoders: Encoders = None,
    version: int | None = None,
) -> Opened:
    """Open checkpoints on a language model (base) and a tower (encoders={"clip": PATH}).

    path: files separated by commas, later ones over earlier ones; a tuning config may be among
    them, for the scale of LoRA factors, which are folded in. An adapter's folder in the list, or
    the config's `from_pretrained`, is put on the language model first: factors of a checkpoint take
    the place of its factors for the same layer, and are scaled as it says. version: 1 or 2 of
    OpenFlamingo, None = as the names of the keys say. Raises CheckpointError for parts that are
    missing or misfit.
    """
    from retinue.hub.sources import Opened

    where = str(path)
    files = files_of(path) or []
    if base is None:
        raise CheckpointError(
            "is a Flamingo checkpoint, which needs the language model it stands on",
            where=where,
            fix="name it: base=PATH, or --base PATH",
        )
    folder = resolve(base)
    text = text_config(folder)
    tuning = tuning_of(files)
    adapter = adapter_of(files, tuning)
    found = read_flamingo(checkpoints(files), model_type=str(text["model_type"]))
    if version is not None:
        found.first_version = version == 1
    tower = tower_of(found, encoders)
    tokenizer = Tokenizer.load(folder)
    added = [*TOKENS, *([] if tokenizer.token_text("pad") else [PAD])]
    grown = tokenizer.with_tokens(added)
    vocab = grown.vocab_size
    text = {**text, "vocab_size": vocab}
    spec = settings_of(found, where=where)
    config = RetinueConfig(
        text_config={k: v for k, v in text.items() if k not in ("architectures", "torch_dtype")},
        encoders={"clip": tower.config},
        spec={
            **spec,
            "encoders": {"clip": {"kind": "clip"}},
            "layout": {"kind": "plain"},
            "image_token_id": grown.id_of("<image>"),
        },
        **{FOREIGN: {"format": "flamingo", "tuning": tuning}},
    )
    alpha = tuning.get("lora_alpha") if adapter is None else adapter.config.get("lora_alpha")
    keys = flamingo_keys(str(text["model_type"]))
    changes = folds(
        found.lora, keys=keys, alpha=None if alpha is None else float(alpha), where=where
    )
    if adapter is not None:
        layers = LAYERS[str(text["model_type"])]

        def ours(name: str) -> str | None:
            return keys.to_retinue(plain_name(f"lang_encoder.{name}", layers=layers))

        changes = {**adapter.changes(ours), **changes}
    return Opened(
        format="flamingo",
        folder=folder,
        config=config,
        processor={
            "template": {"name": "guanaco", "end": tokenizer.token_text("eos") or "</s>"},
            "views": {"kind": "stored"},
            "streams": {"rgb": stream_of(tower)},
            "labels": "assistant",
        },
        tokenizer=folder,
        sources=[
            Source(weights=table_of(found.tensors), keys=keys, label=where, changes=changes),
            Source(weights=tower.weights, keys=tower_keys("clip"), label=f"tower {tower.source}"),
            base_source(folder, vocab=vocab, changes=changes, text=text),
        ],
        default="guanaco",
        added=added,
        pad=None if tokenizer.token_text("pad") else PAD,
    )


def base_source(
    folder: Path,
    *,
    vocab: int,
    changes: Mapping[str, Callable[[Tensor], Tensor]],
    text: Mapping[str, Any],
) -> Source:
    """The language model's own files; tables are cut or filled to the vocabulary's rows."""
    layers = LAYERS[str(text["model_type"])]
    weights = Weights.of(folder)
    rules = []
    for name in weights:
        ours = plain_name(f"lang_encoder.{name}", layers=layers).removeprefix("lang_encoder.")
        rules += [Rule(name, f"lm.{ours}", written=False)] if ours != name else []
    own = dict(changes)
    for name in TABLES:
        own[f"lm.{name}.weight"] = rows_to(vocab)
    keys = KeyMap([*rules, *language_rules(str(text["model_type"]), "")])
    return Source(weights=weights, keys=keys, label=str(folder), changes=own)


def rows_to(count: int) -> Callable[[Tensor], Tensor]:
    """A table cut to `count` rows; rows that no file has (logits of new tokens) are zero."""

    def fit(table: Tensor) -> Tensor:
        missing = count - len(table)
        if missing <= 0:
            return table[:count]
        return torch.cat([table, table.new_zeros(missing, *table.shape[1:])])

    return fit


def tower_of(found: Flamingo, encoders: Encoders) -> Tower:
    """The tower: named (a folder, or open_clip's weights with a config), else in the checkpoint."""
    given = override(encoders)
    if given is not None and Path(given).is_file():
        return open_clip_tower(Path(given))
    if given is None and found.vision:
        weights = vision_table(found.vision)
        side = weights.shape("embeddings.position_embedding.weight")[0]
        name = TOWER if side == 257 else f"{TOWER}-336"
        return Tower(kind="clip", config=OPENAI[name], weights=weights, source="the checkpoint")
    return open_tower(resolve(given or TOWER), source=str(given or TOWER))
