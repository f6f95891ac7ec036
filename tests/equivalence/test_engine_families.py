"""Every kind of model: the engine answers as the decode loop, alone and among 64 requests."""

import random

import pytest

from retinue.decode.sampling import SamplingParams
from retinue.serve.engine import Engine, EngineSpec
from tiny import ask, picture
from tiny_families import FAMILIES
from tiny_serve import reference, serve

WORDS = ["what", "how", "colour", "many", "shapes", "red", "the"]
TIGHT = EngineSpec(kv_tokens=400, block=4, step_tokens=32, step_views=4, rows=8)


def load(budgets, *, size):
    """Greedy requests of different lengths: 0 to 2 pictures, some shown before, budgets."""
    chance = random.Random(0)
    found = []
    for n in range(size):
        shapes = [(40, 30), (30, 40), (20, 20)]
        images = [
            picture(k, width=shapes[k % 3][0], height=shapes[k % 3][1])
            for k in chance.sample(range(6), k=chance.choice((0, 1, 1, 2)))
        ]
        words = " ".join(chance.choices(WORDS, k=n % 7 + 1))
        params = SamplingParams(max_new_tokens=chance.randint(1, 7))
        found.append((ask(f"r{n}", words, *images), params, chance.choice(budgets)))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_alone_and_under_a_mixed_load(name):
    model, processor = FAMILIES[name]()
    budgets = [None, *processor.plan.budgets] if "elastic" in name else [None]
    asked = load(budgets, size=64)
    wanted = {
        sample.id: reference(model, processor, sample, params=params, budget=budget)
        for sample, params, budget in asked
    }
    assert len({tuple(answer.tokens) for answer in wanted.values()}) > 6, "answers differ"
    engine = Engine(model, processor, spec=TIGHT)
    found = serve(engine, asked, seed=4)
    for one in asked[:4]:
        found |= {f"alone {k}": v for k, v in serve(Engine(model, processor), [one]).items()}
    for id, answer in found.items():
        expected = wanted[id.removeprefix("alone ")]
        assert (answer.tokens, answer.text, answer.finish) == (
            expected.tokens,
            expected.text,
            expected.finish,
        ), id
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert engine.cached_tokens > 0 or not engine.runner.pieces
