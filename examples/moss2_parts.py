"""A small language model in MOSS2's layout and a small CLIP tower, both with random weights.

python examples/moss2_parts.py quickstart/data parts      # writes parts/lm and parts/tower

The tokenizer is learned from the training text; docs/moss2.md builds and trains a model of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from retinue.media.views import CLIP_MEAN, CLIP_STD
from retinue.text.template import resolve

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 128, 384, 3, 4, 2
STD = 0.06
SIDE, PATCH = 72, 24  # one token for each cell of the world


def tokenizer(data: Path, folder: Path) -> int:
    """tokenizer.model of the words of train.json and of the conversation; returns its size."""
    rows = json.loads((data / "train.json").read_text("utf-8"))
    turns = {
        turn["value"].replace("<image>\n", "") for row in rows for turn in row["conversations"]
    }
    frame = f"[INST] <<SYS>> {resolve('llava_llama_2').system} <</SYS>> [/INST]".replace("\n", " ")
    SentencePieceTrainer.train(
        sentence_iterator=iter([*sorted(turns), *[frame] * 3000]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=900,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    kind = {"tokenizer_class": "Moss2Tokenizer", "add_bos_token": True}
    (folder / "special_tokens_map.json").write_text(json.dumps(names), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **kind}), "utf-8")
    words = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return int(words.get_piece_size())


def weights(vocab: int) -> dict[str, Tensor]:
    """MOSS2's names and shapes: queries, keys and values of a group lie together in `wqkv`."""
    width = HIDDEN // HEADS
    shapes = {
        "attention.wqkv": ((HEADS + 2 * KV_HEADS) * width, HIDDEN),
        "attention.wo": (HIDDEN, HIDDEN),
        "feed_forward.w1": (INNER, HIDDEN),
        "feed_forward.w3": (INNER, HIDDEN),
        "feed_forward.w2": (HIDDEN, INNER),
    }
    found = {
        "model.tok_embeddings.weight": torch.randn(vocab, HIDDEN) * STD,
        "output.weight": torch.randn(vocab, HIDDEN) * STD,
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        found |= {f"{layer}.{n}.weight": torch.randn(shape) * STD for n, shape in shapes.items()}
        found |= {f"{layer}.{n}_norm.weight": torch.ones(HIDDEN) for n in ("attention", "ffn")}
    return found


def main(line: list[str] | None = None) -> int:
    """Write both folders; returns the number of parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a TinyWorld folder with train.json")
    parser.add_argument("out", type=Path)
    told = parser.parse_args(line)
    lm, tower = told.out / "lm", told.out / "tower"
    lm.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vocab = tokenizer(told.data, lm)
    config = {
        "model_type": "Moss2",
        "architectures": ["Moss2ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 1024,
        "rope_theta": 1000000,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "initializer_range": STD,
        "bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float32",
    }
    (lm / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    tensors = weights(vocab)
    torch.save(tensors, lm / "pytorch_model.bin")
    eye = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        )
    )
    eye.save_pretrained(tower)
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    (tower / "preprocessor_config.json").write_text(json.dumps(pictures), "utf-8")
    count = sum(int(tensor.numel()) for tensor in [*tensors.values(), *eye.parameters()])
    print(f"{count:,} parameters, {vocab} tokens in {told.out}")
    return count


if __name__ == "__main__":
    main()
