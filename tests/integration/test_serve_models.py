"""Several models and adapters behind one server, loaded and unloaded while it runs."""

import copy
import threading

import openai
import pytest
import torch

from loopback_app import listening
from retinue.cli.main import run
from retinue.decode.prompt import user_message
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.adapters import LoraTarget, add_lora, linears, merge_adapters, save_adapter
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.models import Models, load_adapter
from retinue.serve.opening import Opening, adapter_places, named_paths
from retinue.serve.service import ServeSpec
from retinue.types import Sample
from serve_client import GREEDY, call, turn
from tiny import picture, tiny_model
from tiny_serve import reference

KEY, ADMIN = "sk-user", "sk-admin"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models, and an adapter of the first, on disk."""
    place = tmp_path_factory.mktemp("models")
    for seed, name in ((5, "one"), (6, "two")):
        save(*tiny_model(seed=seed), place / name)
    model, _ = load(place / "one")
    torch.manual_seed(1)
    add_lora(model, {n: LoraTarget(r=2, alpha=8) for n, _ in linears(model) if "mlp" in n})
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(model, place / "art", base="one")
    return place


@pytest.fixture(scope="module")
def models(folders):
    spec = ServeSpec(keys=(KEY,), admin=(ADMIN,))
    opening = Opening(load=load, engine=EngineSpec(block=4), spec=spec)
    first = opening.service(str(folders / "one"), "one")
    put = opening.attach(first, str(folders / "art"))
    load_adapter(first, "art", str(folders / "art"), put)
    return Models([first], open=opening.service, attach=opening.attach)


@pytest.fixture(scope="module")
def address(models):
    with listening(create_app(models)) as address:
        yield address
    for service in models.held.values():
        service.engine.check_integrity()


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def expected(folders, name, text, *images, adapter=False):
    model, processor = load(folders / name)
    if adapter:
        model, _ = load(folders / name, adapters=[folders / "art"])
        model = copy.deepcopy(model)
        merge_adapters(model)
    sample = Sample(id="a", messages=(user_message(text, images),))
    return reference(model, processor, sample, params=SamplingParams(max_new_tokens=8)).text


def test_models_and_adapters_are_picked_per_request(client, address, folders):
    status, state = call(
        address, "/admin/models/load", {"path": str(folders / "two"), "name": "two"}, key=ADMIN
    )
    assert (status, state) == (200, {"models": {"one": ["art"], "two": []}})
    assert [card.id for card in client.models.list().data] == ["one", "art", "two"]
    assert client.models.retrieve("art").parent == "one"
    asked = [
        ({"model": "one"}, ("one", False)),
        ({"model": "two"}, ("two", False)),
        ({"model": "one", "extra_body": {"adapter": "art"}}, ("one", True)),
        ({"model": "art"}, ("one", True)),
    ]
    wanted = [
        expected(folders, name, "what colour?", picture(1), adapter=art) for _, (name, art) in asked
    ]
    assert len(set(wanted)) == 3
    found = {}

    def ask(number, fields):
        reply = client.chat.completions.create(
            messages=turn("what colour?", picture(1)), **fields, **GREEDY
        )
        found[number] = reply

    threads = [
        threading.Thread(target=ask, args=(4 * k + n, fields))
        for k in range(3)
        for n, (fields, _) in enumerate(asked)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, reply in found.items():
        assert reply.choices[0].message.content == wanted[number % 4]
        assert getattr(reply, "adapter", None) == ("art" if number % 4 > 1 else None)
    _, page = call(address, "/metrics", key=KEY)
    assert 'retinue_adapters{model="one"} 1' in page
    assert 'retinue_blocks{model="two"}' in page


def test_what_is_not_there_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="three", messages=turn("what?"), **GREEDY)
    assert caught.value.body["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="one", messages=turn("what?"), extra_body={"adapter": "nothing"}, **GREEDY
        )
    assert caught.value.body["code"] == "adapter_not_found"


def test_admin_routes_want_their_own_key(address, folders):
    body = {"path": str(folders / "two"), "name": "three"}
    for key in ("", KEY, "sk-wrong"):
        assert call(address, "/admin/models/load", body, key=key)[0] == 401
    assert call(address, "/v1/models", key=ADMIN)[0] == 200
    status, reply = call(address, "/admin/models/load", {**body, "name": "one"}, key=ADMIN)
    assert (status, reply["error"]["param"]) == (400, "name")
    missing = {"path": str(folders / "nowhere"), "name": "three"}
    assert call(address, "/admin/models/load", missing, key=ADMIN)[0] == 400
    assert call(address, "/admin/adapters/load", missing, key=ADMIN)[0] == 400
    assert call(address, "/admin/models/unload", {"name": "three"}, key=ADMIN)[0] == 404


def test_without_admin_keys_nobody_may_load(folders):
    opening = Opening(load=load, engine=EngineSpec(), spec=ServeSpec())
    models = Models([opening.service(str(folders / "one"), "one")], open=opening.service)
    with listening(create_app(models)) as address:
        body = {"path": str(folders / "two"), "name": "two"}
        status, reply = call(address, "/admin/models/load", body)
        assert (status, reply["error"]["code"]) == (403, "no_admin")


def test_adapters_come_and_go_under_load(address, models, folders, client):
    """Unloading waits for nobody, but is refused while requests use the adapter."""
    body = {"path": str(folders / "art"), "name": "again", "model": "one"}
    assert call(address, "/admin/adapters/load", body, key=ADMIN)[0] == 200
    assert call(address, "/admin/adapters/load", body, key=ADMIN)[0] == 400
    stream = client.completions.create(
        model="again",
        prompt="the",
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    name = {"name": "again", "model": "one"}
    status, reply = call(address, "/admin/adapters/unload", name, key=ADMIN)
    assert (status, reply["error"]["code"]) == (409, "busy")
    stream.close()
    while call(address, "/admin/adapters/unload", name, key=ADMIN)[0] != 200:
        pass
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="again", prompt="the", max_tokens=2)
    wanted = expected(folders, "one", "what?")
    reply = client.chat.completions.create(model="one", messages=turn("what?"), **GREEDY)
    assert reply.choices[0].message.content == wanted


def test_a_model_that_leaves_answers_what_it_has(address, client, folders):
    body = {"path": str(folders / "two"), "name": "leaving"}
    assert call(address, "/admin/models/load", body, key=ADMIN)[0] == 200
    stream = client.completions.create(
        model="leaving", prompt="the", max_tokens=150, stream=True, extra_body={"ignore_eos": True}
    )
    pieces = iter(stream)
    next(pieces)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            call(address, "/admin/models/unload", {"name": "leaving"}, key=ADMIN)
        )
    )
    thread.start()
    last = list(pieces)[-1]
    thread.join()
    assert last.choices[0].finish_reason == "length"
    assert found[0][0] == 200
    assert "leaving" not in found[0][1]["models"]
    assert call(address, "/health")[0] == 200


def test_names_on_the_command_line(folders, capsys):
    assert named_paths(["runs/a/model"], "own") == {"own": "runs/a/model"}
    assert named_paths(["x=runs/a/model", "b"], None) == {"x": "runs/a/model", "b": "b"}
    always, picked = adapter_places(["plain", "art=folder"], ["m"])
    assert always == ["plain"]
    assert (picked[0].model, picked[0].name, picked[0].folder) == ("m", "art", "folder")
    assert adapter_places(["m:art=folder"], ["l", "m"])[1][0].model == "m"
    one = str(folders / "one")
    for words, said in (
        ([one, one], "two models are called 'one'"),
        ([f"a={one}", f"b={one}", "--adapter", "art=x"], "write MODEL:NAME=FOLDER"),
        ([f"a={one}", f"b={one}", "--name", "c"], "--name is for one model"),
        ([one, "--backend", "http://localhost:1"], "a model and servers behind this one"),
        ([], "no model is named"),
        ([one, "--adapter", f"art={folders / 'nowhere'}"], "nowhere"),
    ):
        assert run(["serve", *words, "--port", "0"]) == 2
        assert said in capsys.readouterr().err
