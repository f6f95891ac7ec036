"""The engine answers as the decode loop does, token for token, whatever runs beside a request."""

import pytest

from retinue.decode.sampling import SamplingParams
from retinue.hub.elastic import make_elastic
from retinue.serve.engine import Engine, EngineSpec
from retinue.types import Media, Message, Sample, Text
from tiny import ask, picture, tiny_model
from tiny_serve import fused, reference, serve

BUDGETS = [1, 4, 16]
ROOMY = EngineSpec()
TIGHT = EngineSpec(kv_tokens=88, block=4, step_tokens=24, step_views=2, rows=6)
FUSIONS = {
    "cross": {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1},
    "cross, v1": {
        "kind": "cross",
        "every": 1,
        "heads": 2,
        "head_width": 8,
        "ff_mult": 1,
        "order": "text_first",
        "counting": "ids",
        "decoding": "lost",
    },
    "expert": {"kind": "expert"},
}


def load(number, *, size):
    """Requests of all kinds: 0 to 2 pictures, some shown before, budgets, sampled, with stops."""
    found = []
    for n in range(size):
        images = [picture((n + k) % 5) for k in range(n % 3)]
        sample = ask(f"{number}-{n}", "what " * (n % 5) + "colour?", *images)
        params = SamplingParams(
            max_new_tokens=3 + n % 9,
            temperature=0.8 * (n % 4 == 3),
            top_k=5 * (n % 8 == 7),
            repetition_penalty=1.0 + 0.2 * (n % 5 == 4),
            seed=n,
            stop=("e",) if n % 6 == 5 else (),
        )
        found.append((sample, params, [None, *BUDGETS][n % 4]))
    return found


def same(model, processor, found, asked):
    for sample, params, budget in asked:
        expected = reference(model, processor, sample, params=params, budget=budget)
        answer = found[sample.id]
        assert (answer.tokens, answer.text, answer.finish) == (
            expected.tokens,
            expected.text,
            expected.finish,
        ), sample.id
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.fixture(scope="module", params=["twin", "plain"])
def elastic(request):
    """A model that has an inference twin, and one that has none."""
    model, processor = tiny_model(
        seed=5, **({} if request.param == "twin" else {"hidden_act": "gelu"})
    )
    make_elastic(model, processor, scales=BUDGETS)
    return model, processor


@pytest.mark.parametrize("spec", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_mixed_load_at_random_arrivals(elastic, spec):
    engine = Engine(*elastic, spec=spec)
    asked = load(0, size=24 if spec is TIGHT else 64)
    same(*elastic, serve(engine, asked, seed=1), asked)
    assert (engine.scheduler.preemptions > 0) == (spec is TIGHT)
    assert engine.runner.encoded == 5, "every different picture passes the encoder once"


def test_alone(elastic):
    engine = Engine(*elastic)
    for one in load(1, size=8):
        same(*elastic, serve(engine, [one]), [one])


def test_a_second_run_is_the_first(elastic):
    asked = load(2, size=16)
    first, second = (serve(Engine(*elastic, spec=TIGHT), asked, seed=s) for s in (3, 4))
    assert {k: v.tokens for k, v in first.items()} == {k: v.tokens for k, v in second.items()}


@pytest.mark.parametrize("name", FUSIONS)
def test_fusions_that_keep_more_than_keys_and_values(name):
    model, processor = fused(FUSIONS[name])
    engine = Engine(model, processor, spec=TIGHT)
    assert not engine.runner.pieces
    asked = [(sample, params, None) for sample, params, _ in load(3, size=16)]
    same(model, processor, serve(engine, asked, seed=5), asked)


def test_a_rope_that_knows_the_length():
    text = {
        "max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    }
    model, processor = tiny_model(seed=5, **text)
    engine = Engine(model, processor, spec=TIGHT)
    assert not engine.runner.pieces
    asked = [(sample, params, None) for sample, params, _ in load(4, size=16)]
    same(model, processor, serve(engine, asked, seed=6), asked)


def test_windows_and_grouped_heads():
    from transformers import MistralConfig

    from retinue.model.build import build_model
    from retinue.model.spec import Plan, RetinueConfig
    from retinue.processor import Processor

    model, processor = tiny_model(seed=5)
    old = model.config.text_config
    text = MistralConfig(
        vocab_size=old.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=12,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        initializer_range=0.2,
    )
    config = RetinueConfig(text, model.config.encoders, model.config.spec)
    model = build_model(config, seed=5).eval()
    processor = Processor(Plan(config), tokenizer=processor.tokenizer, spec=processor.spec)
    engine = Engine(model, processor, spec=TIGHT)
    asked = [(sample, params, None) for sample, params, _ in load(5, size=16)]
    same(model, processor, serve(engine, asked, seed=7), asked)


def test_a_chat_never_reads_its_history_again(elastic):
    model, processor = elastic
    engine = Engine(model, processor, spec=EngineSpec(block=4))
    turns = [Message(role="user", parts=(Media(source=picture(9)), Text(text="\nwhat colour?")))]
    params, said = SamplingParams(max_new_tokens=9), 0
    for turn in range(4):
        sample = Sample(id=f"turn {turn}", messages=tuple(turns))
        before = engine.cached_tokens
        (answer,) = serve(engine, [(sample, params, None)]).values()
        same(model, processor, {sample.id: answer}, [(sample, params, None)])
        prompt = len(processor.example(sample).tokens)
        reread = prompt - (engine.cached_tokens - before)
        if turn:
            fresh = prompt - said
            # what is new, what the answer's text became when it was split into ids anew, a block
            assert reread <= fresh + 9 + engine.blocks.size
            assert engine.cached_tokens > before
        said = prompt
        text = Text(text=answer.text or "red")
        turns += [Message(role="assistant", parts=(text,))]
        turns += [Message(role="user", parts=(Text(text=f"and {turn}?"),))]
    assert engine.runner.encoded == 1


def test_pictures_that_differ_are_never_taken_for_each_other(elastic):
    """The same words and ids, other pictures or budgets: nothing after the picture is shared."""
    engine = Engine(*elastic, spec=EngineSpec(block=4))
    params = SamplingParams(max_new_tokens=6)
    asked = [
        (ask(f"{n}-{budget}", "what colour?", picture(n)), params, budget)
        for n in range(4)
        for budget in (None, 4, 16)
    ]
    found = serve(engine, asked)
    same(*elastic, found, asked)
    assert len({tuple(answer.tokens) for answer in found.values()}) > 2
    again = serve(engine, [(sample, *rest) for sample, *rest in asked])
    assert {k: v.tokens for k, v in again.items()} == {k: v.tokens for k, v in found.items()}


def test_the_same_question_side_by_side_is_read_once(elastic):
    engine = Engine(*elastic, spec=EngineSpec(block=4))
    params = SamplingParams(max_new_tokens=4)
    asked = [(ask(str(n), "what colour is it?", picture(1)), params, None) for n in range(6)]
    same(*elastic, serve(engine, asked), asked)
    assert engine.cached_tokens >= 5 * (engine.prompt_tokens // 6 - 5)
