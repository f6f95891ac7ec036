"""What a trained model loses in fewer bits: KL on its test answers, and its score.

For each kind: bytes of the quantized matrices, KL(full || few bits) over the tokens of the right
answers (the model reads question and answer), how often the likeliest token is the same, and the
mean score of its own answers, with the difference's 95 % interval over the same questions. Usage:

    python benchmarks/quant_quality.py runs/quickstart/model runs/quickstart/worlds/test.jsonl
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import replace
from pathlib import Path
from typing import Any

import decode_quant
import torch

from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.eval.questions import Question, read_questions
from retinue.eval.runner import evaluate
from retinue.hub.load import load
from retinue.model.quant import QUANTS
from retinue.types import Message, Text


@torch.no_grad()
def answer_logits(model: Any, processor: Any, questions: list[Question]) -> torch.Tensor:
    """Log-probabilities (S, V) at every token of the first reference of each question."""
    found = []
    for item in questions:
        reply = Message(role="assistant", parts=(Text(text=item.references[0]),))
        told = replace(item.sample, messages=(*item.sample.messages, reply))
        batch = processor([told], train=True)
        output = model.run(replace(batch, labels=None, supervised=None, weights=None))
        found.append(output.logits.flatten(0, 1)[batch.supervised].float().log_softmax(-1))
    return torch.cat(found)


def scores(model: Any, processor: Any, questions: list[Question]) -> torch.Tensor:
    params = SamplingParams(max_new_tokens=32, temperature=0.0)

    def predict(samples: Any) -> Any:
        return generate(model, processor, samples, params=params, batch_size=16)

    return torch.tensor([float(row["score"]) for row in evaluate(predict, questions)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("data", type=Path, help="its test questions, as `retinue eval` reads them")
    parser.add_argument("--kinds", nargs="*", default=list(QUANTS))
    parser.add_argument("--limit", type=int, default=500, help="questions to score")
    parser.add_argument("--kl-limit", type=int, default=100, help="questions for the KL")
    parser.add_argument("--head", action="store_true", help="quantize the output head too")
    parser.add_argument("--encoders", action="store_true", help="quantize the encoders too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    questions = read_questions(args.data, limit=args.limit)
    full, processor = load(args.model)
    wanted = answer_logits(full, processor, questions[: args.kl_limit])
    right = scores(full, processor, questions)
    print(f"full: score {right.mean():.4f} on {len(right)} questions")
    for kind in args.kinds:
        model, _ = load(args.model, quant=kind, quant_head=args.head, quant_encoders=args.encoders)
        found = answer_logits(model, processor, questions[: args.kl_limit])
        decode_quant.say(kind, model, decode_quant.compare(wanted, found))
        change = scores(model, processor, questions) - right
        half = 1.96 * change.std() / len(change) ** 0.5
        print(
            f"{kind}: score {(right + change).mean():.4f}, "
            f"{100 * change.mean():+.2f} points (95 % interval +- {100 * half:.2f})"
        )


if __name__ == "__main__":
    main()
