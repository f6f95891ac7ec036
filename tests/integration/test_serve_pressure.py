"""Fewer visual tokens while many wait, for those who allow it; replies and metrics say so."""

import threading

import openai
import pytest

from loopback_app import listening
from retinue.decode.prompt import user_message
from retinue.decode.sampling import SamplingParams
from retinue.hub.elastic import make_elastic
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.pressure import Pressure
from retinue.serve.service import ServeSpec, Service
from retinue.types import Sample
from serve_client import GREEDY, call, turn
from tiny import picture, tiny_model
from tiny_serve import reference

SCALES = [1, 9, 36, 144, 576]


def steps(policy, *, wanted=None, least=1, waits=(0, 4, 11, 18, 25, 32, 99)):
    return [policy.budget(n, wanted=wanted, least=least, budgets=SCALES, usual=576) for n in waits]


def test_budgets_fall_with_the_queue():
    policy = Pressure(who="asked", start=4, full=32)
    assert steps(policy) == [None, None, 36, 9, 1, 1, 1]
    assert steps(policy, wanted=144) == [144, 144, 36, 9, 1, 1, 1]
    assert steps(policy, least=36)[2:] == [144, 144, 36, 36, 36]
    assert steps(policy, wanted=9, least=36) == [9] * 7, "less than it can do with: as it says"
    assert steps(policy, least=None) == [None] * 7
    everyone = Pressure(who="everyone", start=4, full=32, floor=9)
    assert steps(everyone, least=None)[-1] == 9
    assert steps(everyone, wanted=576, least=None) == [576] * 7
    assert steps(Pressure(who="nobody", start=0, full=1)) == [None] * 7


@pytest.mark.parametrize("who", ["asked", "everyone"])
def test_under_load_those_who_allow_it_get_fewer_tokens(who):
    model, processor = tiny_model(seed=5)
    make_elastic(model, processor, scales=[1, 4, 16])
    pressure = Pressure(who=who, start=1, full=6, floor=1)
    engine = EngineSpec(block=4, rows=1)  # one at a time: the others wait
    spec = ServeSpec(pressure=pressure)
    service = Service(model, processor, name="tiny", engine=engine, spec=spec)
    found = {}
    with listening(create_app(service)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)

        def ask(number, **more):
            found[number] = client.chat.completions.create(
                model="tiny", messages=turn("what?", picture(number)), **GREEDY, **more
            )

        ask(0, extra_body={"visual_tokens_min": 1})
        assert found[0].visual_tokens == 16, "nobody waits: nothing shrinks"
        blocker = client.completions.create(
            model="tiny",
            prompt="the",
            max_tokens=4000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(blocker))
        threads = []

        def start(number, **more):
            before = service.under_way
            threads.append(threading.Thread(target=ask, args=(number,), kwargs=more))
            threads[-1].start()
            while service.under_way == before:
                pass

        for number in range(1, 9):
            start(number, extra_body={"visual_tokens_min": 1})
        start(9, extra_body={"visual_tokens_min": 4})
        start(10, extra_body={"visual_tokens": 16})
        start(11)
        blocker.close()
        for thread in threads:
            thread.join()
        client.close()
        _, page = call(address, "/metrics")
    used = [found[n].visual_tokens for n in range(1, 9)]
    assert used == sorted(used, reverse=True)
    assert used[0] == 16
    assert used[-1] == 1
    assert found[9].visual_tokens == 4, "not below what it can do with"
    assert found[10].visual_tokens == 16, "who names a number gets it"
    assert found[11].visual_tokens == (1 if who == "everyone" else 16)
    for number, reply in found.items():
        sample = Sample(id="a", messages=(user_message("what?", [picture(number)]),))
        params = SamplingParams(max_new_tokens=8)
        wanted = reference(model, processor, sample, params=params, budget=reply.visual_tokens)
        assert reply.choices[0].message.content == wanted.text
    rows = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    shrunk = sum(reply.visual_tokens < 16 for reply in found.values())
    assert int(rows['retinue_shrunk_total{model="tiny"}']) == shrunk
    count = sum(reply.visual_tokens == 1 for reply in found.values())
    assert int(rows['retinue_pictures_total{model="tiny",visual_tokens="1"}']) == count
    service.engine.check_integrity()


def test_models_of_one_budget_stay_as_they_are():
    model, processor = tiny_model(seed=5)
    spec = ServeSpec(pressure=Pressure(who="everyone", start=0, full=1))
    service = Service(model, processor, name="tiny", spec=spec)
    service.under_way = 50
    assert service.budget(None, None) is None
    service.under_way = 0
