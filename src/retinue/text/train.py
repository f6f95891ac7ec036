"""A small byte-level BPE vocabulary, trained in a second: for tiny models and tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from retinue.core.errors import ConfigError
from retinue.text.tokenizer import Tokenizer

UNK, BOS, EOS = "<unk>", "<s>", "</s>"


def train_bpe(texts: Iterable[str], *, vocab_size: int, specials: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE over `texts`; ids 0, 1, 2 are unk (also pad), bos, eos, then `specials`.

    Every text can be encoded; prompts start with bos. The same texts give the same vocabulary;
    little text gives fewer than `vocab_size` ids.
    Raises ConfigError if `vocab_size` cannot hold the 256 bytes and the specials.
    Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (over bytes).
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    names = list(dict.fromkeys([UNK, BOS, EOS, *specials]))
    least = 256 + len(names)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small",
            rule=f"256 bytes and {len(names)} special tokens need {least}",
        )
    model = Fast(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    model.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 1)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "pad_token": UNK,
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "tokenizer.json": model.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
    return Tokenizer({name: text.encode("utf-8") for name, text in files.items()})
