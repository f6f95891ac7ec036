"""What the engine refuses, forgets and survives; blocks and caches by themselves."""

from dataclasses import replace

import pytest
import torch

from retinue.core.errors import MediaError, RequestError
from retinue.decode.sampling import SamplingParams
from retinue.serve.blocks import Blocks
from retinue.serve.engine import Engine, EngineSpec
from retinue.serve.features import FeatureCache
from retinue.serve.prefix import Chain, Run
from retinue.serve.prompt import Prompts, told
from retinue.types import Features
from tiny import ask, picture, tiny_model
from tiny_serve import fused, reference

PARAMS = SamplingParams(max_new_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(seed=5)


def drained(engine):
    events = []
    while engine.busy:
        events += engine.step()
        engine.check_integrity()
    return events


def test_cancel_at_any_time_leaks_nothing(loaded):
    for after in range(8):
        engine = Engine(*loaded, spec=EngineSpec(kv_tokens=96, block=4, step_tokens=8))
        prompts = Prompts(engine.processor, engine.features)
        for n in range(5):
            engine.add(prompts.chat(ask(str(n), "what?", picture(n % 2)), params=PARAMS))
        for _ in range(after):
            engine.step()
        for n in (0, 3, 4):
            engine.cancel(str(n))
            engine.check_integrity()
        engine.cancel("nobody")
        events = drained(engine)
        assert {event.id for event in events if event.finish} <= {"1", "2"}
        assert engine.blocks.free == engine.blocks.usable


def test_a_broken_picture_fails_alone(loaded):
    engine = Engine(*loaded)
    prompts = Prompts(engine.processor, engine.features)
    good, bad = (
        prompts.chat(ask(name, "what?", picture(n)), params=PARAMS)
        for n, name in enumerate(("good", "bad"))
    )
    item = replace(bad.example.items[0], pixels={})
    broken = replace(bad.pictures[0], media=replace(bad.pictures[0].media, source=b"no picture"))
    bad = replace(bad, example=replace(bad.example, items=[item]), pictures=[broken])
    engine.add(bad)
    engine.add(good)
    events = drained(engine)
    (failed,) = [event for event in events if event.id == "bad"]
    assert failed.finish == "error"
    assert isinstance(failed.error, MediaError)
    tokens = [event.token for event in events if event.id == "good"]
    expected = reference(*loaded, ask("good", "what?", picture(0)), params=PARAMS)
    assert tokens == expected.tokens


def test_a_row_that_cannot_be_computed_fails_alone(loaded):
    engine = Engine(*loaded)
    prompts = Prompts(engine.processor, engine.features)
    for name in ("a", "b", "c"):
        engine.add(prompts.chat(ask(name, "what " + name), params=PARAMS))
    engine.requests["b"].tokens[3] = "no id"
    events = drained(engine)
    assert [event.id for event in events if event.finish == "error"] == ["b"]
    assert {event.id for event in events if event.finish == "length"} == {"a", "c"}


TILED = {"views": {"kind": "quad"}, "side": 16}
CROSS = {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1}


@pytest.mark.parametrize("kind", ["views", "whole prompts"])
def test_what_exceeds_a_step_comes_beside_an_answer_that_never_ends(kind):
    """A picture of more views, or an indivisible prompt of more tokens, than a step may have."""
    model, processor = tiny_model(seed=5, **TILED) if kind == "views" else fused(CROSS)
    engine = Engine(model, processor, spec=EngineSpec(block=4, step_tokens=8, step_views=2))
    prompts = Prompts(processor, engine.features)
    long = SamplingParams(max_new_tokens=400, ignore_eos=True)
    engine.add(prompts.chat(ask("long", "what?"), params=long))
    engine.step()
    for n in range(3):
        engine.add(prompts.chat(ask(str(n), "what " * 5, picture(n)), params=PARAMS))
    ended = [event.id for event in drained(engine) if event.finish]
    assert ended == ["0", "1", "2", "long"]


def test_requests_without_room_are_refused(loaded):
    engine = Engine(*loaded, spec=EngineSpec(kv_tokens=32, block=4))
    prompts = Prompts(engine.processor, engine.features)
    request = prompts.chat(ask("long", "what " * 9, picture()), params=PARAMS)
    with pytest.raises(RequestError, match="room for 32 tokens"):
        engine.add(request)
    assert not engine.busy
    with pytest.raises(RequestError, match="visual_tokens"):
        prompts.chat(ask("few", "what?", picture()), params=PARAMS, budget=4)


def test_likeliest_ids_are_reported(loaded):
    engine = Engine(*loaded)
    prompts = Prompts(engine.processor, engine.features)
    engine.add(prompts.chat(ask("a", "what?"), params=PARAMS, top=3))
    for event in drained(engine):
        assert len(event.top) == 3
        assert event.top[0] == (event.token, pytest.approx(event.logprob, abs=1e-5))
        chances = [chance for _, chance in event.top]
        assert chances == sorted(chances, reverse=True)


def test_bare_prompts_with_pictures_and_ids(loaded):
    _, processor = loaded
    prompts = Prompts(processor, FeatureCache(0))
    media = ask("", "", picture()).media
    text = prompts.bare("t", "USER: <image>\nwhat? ASSISTANT:", media, params=PARAMS)
    chat = prompts.chat(ask("t", "what?", picture()), params=PARAMS)
    assert text.example.tokens.count(processor.image_id) == 16
    assert told(text, processor.plan) == (16, 16)
    assert text.pictures[0].key == chat.pictures[0].key
    ids = processor.tokenizer.call("what colour")
    assert prompts.bare("i", ids, params=PARAMS).example.tokens == ids
    for prompt in ([], [10**9], [-1]):
        with pytest.raises(RequestError, match="ids are 0 to"):
            prompts.bare("i", prompt, params=PARAMS)
    with pytest.raises(RequestError, match="1 pictures for 2"):
        prompts.bare("t", "<image><image>", media, params=PARAMS)


def test_known_pictures_are_not_decoded_again(loaded):
    engine = Engine(*loaded)
    prompts = Prompts(engine.processor, engine.features)
    for n in range(2):
        request = prompts.chat(ask(str(n), "what?", picture(4)), params=PARAMS)
        assert bool(request.example.items[0].pixels) == (n == 0)
        engine.add(request)
        drained(engine)
    assert engine.runner.encoded == 1


def test_names_of_blocks_know_pictures_and_their_tokens():
    def names(key=b"p", start=2, tokens=range(12)):
        return Chain([Run(start=start, stop=start + 5, key=key)], size=4).upto(list(tokens), 3)

    assert names() == names()
    assert names(key=b"q")[0] != names()[0]
    assert names(start=3)[0] != names()[0]
    late = names(start=7)
    assert late[0] == names(key=b"q", start=7)[0]
    assert late[1] != names(key=b"q", start=7)[1]
    assert len({*names(), *late}) == 6


def test_blocks_are_shared_named_and_forgotten():
    blocks = Blocks(5, size=2)
    first = blocks.take(2)
    blocks.name(first[0], b"a")
    blocks.name(first[1], b"b")
    assert blocks.find([b"a", b"b", b"c"]) == first
    assert blocks.find([b"x", b"b"]) == []
    blocks.share(first[:1])
    blocks.check([first, first[:1]])
    assert blocks.take(3) is None
    blocks.release(first)
    blocks.release(first[:1])
    blocks.check([])
    assert blocks.find([b"a", b"b"]) == first
    blocks.take(3)
    assert blocks.find([b"a", b"b"]) == first[:1], "the end of a chain is forgotten first"
    with pytest.raises(AssertionError, match="once too often"):
        blocks.release(first[1:] * 3)


def test_features_leave_when_bytes_run_out():
    cache = FeatureCache(100)
    one = Features(x_NLD=torch.zeros(1, 2, 5), grid=None)
    for name in (b"a", b"b", b"c"):
        cache.put(name, one)
        assert cache.get(b"a") is one
        cache.check()
    assert [name in cache for name in (b"a", b"b", b"c")] == [True, False, True]
    cache.put(b"large", Features(x_NLD=torch.zeros(1, 100, 1), grid=None))
    assert b"large" not in cache
    assert cache.get(b"b") is None
    assert (cache.hits, cache.misses, cache.bytes) == (3, 1, 80)
