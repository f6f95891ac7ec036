"""Image questions through `retinue eval`'s runner against one-by-one generate of transformers.

A LLaVA of the quickstart's size (language model 128 x 3 layers, CLIP encoder 128 x 3 layers, 36
tokens a picture), random weights in fp32, as a folder that transformers wrote and both sides load.
TinyWorld draws pictures and questions. Both sides open the picture file, make pixels and prompt,
decode greedily up to 8 tokens and score the text; of 1,000 texts 998 must be equal. 2,000
questions, or 120 with --quick. What counts is the CPU time of everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.eval.questions import Question, read_questions
from retinue.eval.runner import evaluate
from retinue.eval.scorers import SCORERS, headline
from retinue.hub.load import load
from retinue.text.train import train_bpe
from retinue.world.make import write_split

PEER = "transformers-generate"
SIDE, PATCH, NEW, BATCH = 72, 12, 8, 32
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
"""Of the dialect vicuna_v1, which our side writes by name."""


def peer_of(lines: list[str], folder: Path) -> tuple[Any, Any]:
    """transformers' model and processor, written to `folder` as well."""
    tokenizer = train_bpe(lines, vocab_size=600, specials=["<image>"]).hf()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=token)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # answers that differ from question to question
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def questions_in(folder: Path, number: int) -> list[Question]:
    """`number` questions about TinyWorld's pictures, eight or so a picture."""
    path = write_split(folder, name="bench", num_pictures=-(-number // 4), seed=0)
    found = read_questions(path.with_suffix(".jsonl"))
    asked = [one for one in found if len(one.sample.media) == 1][:number]
    common.require(len(asked) == number, f"TinyWorld gave {len(asked)} questions")
    return asked


def their_side(model: Any, processor: Any, asked: list[Question]) -> Callable[[], Any]:
    def run() -> list[tuple[str, float]]:
        rows = []
        for question in asked:
            said = question.sample.messages[-1].text.strip()
            image = Image.open(str(question.sample.media[0].source)).convert("RGB")
            prompt = f"{SYSTEM} USER: <image>\n{said} ASSISTANT:"
            inputs = processor(text=prompt, images=image, return_tensors="pt")
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            new = ids[0, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
            scores = SCORERS.get(question.scorer)(text, question.references)
            rows.append((text, headline(scores)))
        return rows

    return run


def our_side(model: Any, processor: Any, asked: list[Question]) -> Callable[[], Any]:
    params = SamplingParams(max_new_tokens=NEW, temperature=0.0)

    def run() -> list[tuple[str, float]]:
        rows = evaluate(
            lambda samples: generate(model, processor, samples, params=params, batch_size=BATCH),
            asked,
        )
        return [(row["text"].strip(), row["score"]) for row in rows]

    return run


def main() -> None:
    args = common.parser(__doc__).parse_args()
    number = 120 if args.quick else 2000
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        asked = questions_in(root / "data", number)
        lines = [question.sample.messages[-1].text for question in asked] + [SYSTEM]
        theirs, their_processor = peer_of(lines, root / "model")
        model, processor = load(str(root / "model"), template="vicuna_v1")
        sides = {
            PEER: their_side(theirs, their_processor, asked),
            "retinue-eval": our_side(model, processor, asked),
        }
        wanted, found = (run() for run in sides.values())
        same = sum(one == other for one, other in zip(wanted, found, strict=True))
        # Among thousands of random answers a near tie may fall otherwise in a batch's sums.
        print(f"{same} of {number} answers are equal, {len({text for text, _ in found})} differ")
        common.require(same >= 0.998 * number, "texts or scores")
        timings = common.alternate(sides, rounds=3, warmup=0)
    print(f"fp32, {number} questions, up to {NEW} tokens each, batches of {BATCH}, CPU time:")
    common.table(timings, peer=PEER)
    speed = {name: round(number / timing.min_s, 1) for name, timing in timings.items()}
    for name, each in speed.items():
        print(f"{name}: {each} questions/s")
    common.finish(
        "bench_eval",
        ratio=timings[PEER].min_s / timings["retinue-eval"].min_s,
        target=3.0,
        against=PEER,
        quick=args.quick,
        timings=timings,
        details={
            "questions": number,
            "batch": BATCH,
            "new_tokens": NEW,
            "image_tokens": (SIDE // PATCH) ** 2,
            "questions_per_s": speed,
        },
    )


if __name__ == "__main__":
    main()
