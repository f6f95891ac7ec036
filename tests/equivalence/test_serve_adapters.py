"""Adapters picked by request: each answers as the model with that adapter folded in."""

import copy

import pytest
import torch

from retinue.core.errors import RequestError
from retinue.decode.sampling import SamplingParams
from retinue.model.adapters import (
    LoraTarget,
    add_lora,
    linears,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from retinue.serve.engine import Engine, EngineSpec
from retinue.serve.prompt import Prompts
from tiny import ask, picture, tiny_model
from tiny_serve import fused, reference

TIGHT = EngineSpec(kv_tokens=160, block=4, step_tokens=24, step_views=2, rows=8)
CROSS = {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1}


def models(kind):
    if kind == "cross":
        return fused(CROSS)
    return tiny_model(seed=5, **({} if kind == "twin" else {"hidden_act": "gelu"}))


def adapter_folder(model, folder, *, seed, where):
    """An adapter whose both factors are random, for the linears whose names `where` accepts."""
    own = copy.deepcopy(model)
    layers = [name for name, _ in linears(own) if where(name)]
    torch.manual_seed(seed)
    add_lora(own, {name: LoraTarget(r=2 + seed, alpha=8) for name in layers})
    for name, parameter in own.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(own, folder)
    return folder


def language(name):
    return name.startswith("lm.") and "q_proj" in name


def everything(name):
    return ("mlp" in name or "connector" in name or "o_proj" in name) and "fusion" not in name


@pytest.mark.parametrize("kind", ["twin", "plain", "cross"])
def test_rows_of_different_adapters_answer_as_merged_models(kind, tmp_path):
    model, processor = models(kind)
    folders = {
        "": None,
        "words": adapter_folder(model, tmp_path / "words", seed=1, where=language),
        "eyes": adapter_folder(model, tmp_path / "eyes", seed=2, where=everything),
    }
    plain = {}
    for name, folder in folders.items():
        plain[name] = copy.deepcopy(model)
        if folder:
            load_adapter(plain[name], folder)
            merge_adapters(plain[name])
    engine = Engine(model, processor, spec=TIGHT)
    for name, folder in folders.items():
        if folder:
            engine.adapters.add(
                name, lambda model, key, folder=folder: load_adapter(model, folder, name=key)
            )
    assert [a.seen for a in engine.adapters.held.values()] == [False, True]
    prompts = Prompts(processor, engine.features, engine.adapters)
    asked, found = {}, {}
    for n in range(18):
        name = ["", "words", "eyes"][n % 3]
        images = [picture((n // 3 + k) % 3) for k in range(n % 2 + (n % 5 == 0))]
        sample = ask(str(n), "what colour is it? " * (n % 2), *images)
        params = SamplingParams(
            max_new_tokens=4 + n % 5, ignore_eos=True, temperature=0.7 * (n % 6 == 5), seed=n
        )
        asked[str(n)] = (name, sample, params)
    queue = list(asked.values())
    while queue or engine.busy:
        for _ in range(2):
            if queue:
                name, sample, params = queue.pop(0)
                engine.add(prompts.chat(sample, params=params, adapter=name))
        for event in engine.step():
            assert event.error is None, event.error
            found.setdefault(event.id, []).append(event.token)
        engine.check_integrity()
    answers = set()
    for id, (name, sample, params) in asked.items():
        wanted = reference(plain[name], processor, sample, params=params)
        assert found[id] == wanted.tokens, (id, name)
        answers.add(tuple(found[id]))
    assert len(answers) > 8


def test_the_same_prompt_through_three_sets_of_weights(tmp_path):
    """Keys, values and features of one adapter are never taken for another's."""
    model, processor = models("twin")
    engine = Engine(model, processor, spec=EngineSpec(block=4))
    prompts = Prompts(processor, engine.features, engine.adapters)
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)

    def answer(name):
        engine.add(prompts.chat(ask(name, "what?", picture(1)), params=params, adapter=name))
        tokens = []
        while engine.busy:
            tokens += [event.token for event in engine.step()]
        engine.check_integrity()
        return tokens

    def put(seed):
        folder = adapter_folder(model, tmp_path / str(seed), seed=seed, where=everything)
        return lambda model, key: load_adapter(model, folder, name=key)

    first = answer("")
    engine.adapters.add("a", put(1))
    with pytest.raises(RequestError, match="loaded already"):
        engine.adapters.add("a", put(1))
    one = answer("a")
    assert one != first
    assert answer("") == first
    engine.drop_adapter("a")
    with pytest.raises(RequestError, match="no adapter 'a'"):
        answer("a")
    engine.adapters.add("a", put(3))  # the same name, other weights
    assert answer("a") not in (one, first)
    assert answer("") == first
    engine.add(prompts.chat(ask("x", "what?"), params=params, adapter="a"))
    with pytest.raises(RequestError, match="1 requests use"):
        engine.drop_adapter("a")
    engine.cancel("x")
    engine.drop_adapter("a")
    assert not [name for name in model.state_dict() if "lora" in name]
    assert answer("") == first
