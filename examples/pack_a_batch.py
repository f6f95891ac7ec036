"""The path by hand: samples, examples, one packed row, loss and gradients, and what is in between.

    python examples/pack_a_batch.py

Builds a random model in memory, so nothing is downloaded.
"""

from __future__ import annotations

import torch
from PIL import Image

from retinue import Media, Message, Sample, Text
from retinue.model.build import build_model
from retinue.model.encoders.patches import PatchesConfig
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.text.train import train_bpe


def conversation(id: str, question: str, answer: str, *pictures: Image.Image) -> Sample:
    parts = [*(Media(source=picture) for picture in pictures), Text(text=question)]
    return Sample(
        id=id,
        messages=(
            Message(role="user", parts=tuple(parts)),
            Message(role="assistant", parts=(Text(text=answer),)),
        ),
    )


def main() -> dict[str, float]:
    words = train_bpe(["USER: What colour is this? ASSISTANT: red blue"], vocab_size=300)
    config = RetinueConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": words.vocab_size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        encoders={"eye": PatchesConfig(image_size=32, patch_size=8, hidden_size=64)},
        spec={
            "encoders": {"eye": {"kind": "patches"}},
            "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
            "image_token_id": words.image_id,
        },
    )
    spec = ProcessorSpec.parse(
        {
            "views": {"kind": "squash"},
            "streams": {"rgb": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}},
            "template": "vicuna_v1",
        }
    )
    processor = Processor(Plan(config), tokenizer=words, spec=spec)
    model = build_model(config, seed=0)
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    samples = [
        conversation("one", "\nWhat colour is this?", "red", red),
        conversation("two", "\nWhat colours are these?", "red and blue", red, blue),
        conversation("none", "What colour is the sky?", "blue"),
    ]

    # Sample -> Example: ids, labels, and where the pictures stand
    examples = [processor.example(sample, train=True) for sample in samples]
    for example in examples:
        runs = [(span.start, span.length) for span in example.spans]
        print(f"{example.id}: {len(example.tokens)} tokens, pictures at {runs}, "
              f"{example.num_supervised} targets")  # fmt: skip

    # Example -> Batch: one row without padding; documents do not see each other
    packed = processor.collate(examples, train=True, packed=True)
    padded = processor.collate(examples, train=True)
    assert packed.cu_seqlens is not None
    print(f"packed {tuple(packed.tokens.shape)}, boundaries {packed.cu_seqlens.tolist()}; "
          f"padded {tuple(padded.tokens.shape)}, {padded.num_real} of them real")  # fmt: skip

    # Batch -> loss: a sum, so that the caller decides what to divide by
    losses = {}
    for name, batch in (("packed", packed), ("padded", padded)):
        output = model.run(batch)
        assert output.loss_sum is not None
        assert output.num_supervised is not None
        losses[name] = float(output.loss_sum.detach() / output.num_supervised)
    print(f"loss {losses}")

    # the stations in between
    visual = packed.visual
    assert visual is not None
    with torch.no_grad():
        features = model.encode(visual)
        tokens = model.look(visual)
    assert tokens is not None
    print({key: tuple(feature.x_NLD.shape) for key, feature in features.items()}, tokens.lengths)
    return losses


if __name__ == "__main__":
    main()
