"""For bench_serve: a burst of texts, our engine against a warm manager of `generate_batch`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import common
import peer
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from retinue.decode.sampling import SamplingParams
from retinue.serve.request import Request
from retinue.types import Example

ANSWERS = (4, 8, 16, 48)
Asked = list[tuple[list[int], int]]
"""(ids of a prompt, tokens of its answer)."""


def language_model(theirs: Any, dims: peer.Dims) -> LlamaForCausalLM:
    """The peer's language model alone, with the same weights."""
    first = next(theirs.parameters())
    model = LlamaForCausalLM(peer.text_config(dims)).to(first.dtype).eval()
    model.model.load_state_dict(theirs.model.language_model.state_dict())
    model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return model


def burst(dims: peer.Dims, count: int, *, seed: int) -> Asked:
    """Prompts of 60 to 300 tokens, answers of 4 to 48."""
    chance = random.Random(seed)
    return [
        (
            [chance.randrange(3, dims.vocab - 1) for _ in range(chance.randint(60, 300))],
            ANSWERS[n % len(ANSWERS)],
        )
        for n in range(count)
    ]


class Manager:
    """transformers' continuous batching, started once and kept warm."""

    def __init__(self, model: LlamaForCausalLM, *, tokens: int) -> None:
        from transformers import ContinuousBatchingConfig

        plain = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        plain.max_new_tokens = max(ANSWERS)
        sizes = ContinuousBatchingConfig(
            block_size=32, num_blocks=-(-tokens // 32) + 8, max_batch_tokens=1024
        )
        self.manager = model.init_continuous_batching(
            generation_config=plain, continuous_batching_config=sizes
        )
        self.manager.start()

    def run(self, asked: Asked) -> list[list[int]]:
        ids = [
            self.manager.add_request(prompt, max_new_tokens=new, eos_token_id=-1)
            for prompt, new in asked
        ]
        found: dict[str, list[int]] = {}
        while len(found) < len(asked):
            result = self.manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
            elif result is None:
                common.require(self.manager.is_running(), "transformers' manager has stopped")
        return [found[id] for id in ids]

    def end(self) -> None:
        self.manager.stop(block=True)


def our_requests(asked: Asked) -> list[Request]:
    return [
        Request(
            id=str(number),
            example=Example(id=str(number), tokens=prompt, labels=prompt),
            pictures=[],
            params=SamplingParams(max_new_tokens=new, ignore_eos=True),
        )
        for number, (prompt, new) in enumerate(asked)
    ]


def fresh(dims: peer.Dims, count: int, work: Callable[[Asked], Any]) -> Callable[[], Any]:
    """Runs `work` on a new burst each time, the same ones for every side."""
    number = iter(range(10**6))
    return lambda: work(burst(dims, count, seed=100 + next(number)))


@torch.no_grad()
def check(theirs: Any, dims: peer.Dims, run: Callable[[Asked], list[list[int]]]) -> None:
    """fp32 ids of both sides on one burst."""
    asked = burst(dims, 4, seed=7)
    manager = Manager(language_model(theirs, dims), tokens=4096)
    try:
        common.require(manager.run(asked) == run(asked), "fp32 ids of a burst of texts")
    finally:
        manager.end()
    print("fp32: answers to a burst of texts are equal")
