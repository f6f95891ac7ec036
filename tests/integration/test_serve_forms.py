"""Answers of a given form, and beams: asked by the official client, compared with `generate`."""

import json
import re
import socket
import threading

import jsonschema
import openai
import pytest
import torch

from loopback_app import listening
from retinue.decode.prompt import end_ids, user_message
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.service import ServeSpec, Service
from retinue.types import Sample
from serve_client import call, turn, until
from tiny import picture, tiny_model

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "edges": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["colour", "count", "edges"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def service():
    model, processor = tiny_model(seed=5)
    spec = ServeSpec(choices=4)
    return Service(model, processor, name="tiny", engine=EngineSpec(block=4), spec=spec)


@pytest.fixture(scope="module")
def address(service):
    with listening(create_app(service)) as address:
        yield address
    service.engine.check_integrity()


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept_by_every_answer(client, stream):
    asked = {
        "model": "tiny",
        "messages": turn("what?", picture(1)),
        "response_format": FORMAT,
        "temperature": 1.3,
        "n": 3,
        "seed": 4,
        "max_tokens": 120,
    }
    if stream:
        texts, ends = ["", "", ""], {}
        for piece in client.chat.completions.create(**asked, stream=True):
            for choice in piece.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    ends[choice.index] = choice.finish_reason
        assert ends == {0: "stop", 1: "stop", 2: "stop"}
    else:
        reply = client.chat.completions.create(**asked)
        texts = [choice.message.content for choice in reply.choices]
        assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1


def test_guided_rows_run_beside_free_ones(client, service):
    """The form of one answer leaves its neighbours as they are alone."""
    free = {"model": "tiny", "messages": turn("how many?"), "temperature": 0, "max_tokens": 12}
    alone = client.chat.completions.create(**free).choices[0].message.content
    found = {}

    def ask(name, **more):
        found[name] = client.chat.completions.create(**{**free, **more}).choices[0].message.content

    threads = [threading.Thread(target=ask, args=("free",))]
    threads += [
        threading.Thread(
            target=ask, args=(n,), kwargs={"response_format": FORMAT, "max_tokens": 90}
        )
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["free"] == alone
    for n in range(3):
        jsonschema.validate(json.loads(found[n]), SCHEMA)


def test_objects_expressions_and_choices(client):
    asked = {"model": "tiny", "temperature": 1.0, "seed": 1, "max_tokens": 60}
    reply = client.chat.completions.create(
        messages=turn("what?"),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "any", "schema": {"type": "object", "maxProperties": 1}},
        },
        **asked,
    )
    assert reply.choices[0].message.content.startswith("{")
    reply = client.completions.create(
        prompt="the", extra_body={"guided_regex": r"[0-9]{3}-[ab]"}, **asked
    )
    assert re.fullmatch(r"[0-9]{3}-[ab]", reply.choices[0].text)
    for seed in range(3):
        reply = client.chat.completions.create(
            messages=turn("what?"),
            extra_body={"guided_choice": ["a circle", "two (2) stars"]},
            **{**asked, "seed": seed},
        )
        assert reply.choices[0].message.content in ("a circle", "two (2) stars")
        assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            None,
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}},
                }
            },
            None,
        ),
        ({"extra_body": {"guided_regex": "("}}, None),
        ({"extra_body": {"guided_choice": []}}, "guided_choice"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, "guided_choice"),
        ({"response_format": FORMAT, "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"response_format": FORMAT, "extra_body": {"num_beams": 2}}, None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_forms_that_are_none_are_refused(client, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=turn("what?"), max_tokens=4, **change)
    assert caught.value.status_code == 400
    if param:
        assert caught.value.body["param"] == param


def generated(service, text, images, **keywords):
    """Texts of the beams that `generate` finds."""
    model, processor = service.engine.model, service.processor
    sample = Sample(id="a", messages=(user_message(text, images),))
    prompt = processor.template.text(sample.messages, reply=True)
    inputs = processor(text=[prompt], images=[[one.source for one in sample.media]])
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            do_sample=False,
            eos_token_id=end_ids(processor),
            pad_token_id=processor.tokenizer.pad_id,
            **keywords,
        )
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [processor.decode(row).strip() for row in rows]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_beams_are_those_of_generate(client, service, images):
    pictures = [picture(n) for n in range(images)]
    for penalty in (1.0, -2.0):
        reply = client.chat.completions.create(
            model="tiny",
            messages=turn("what colour?", *pictures),
            n=2,
            max_tokens=7,
            extra_body={"num_beams": 4, "length_penalty": penalty},
        )
        wanted = generated(
            service,
            "what colour?",
            pictures,
            num_beams=4,
            num_return_sequences=2,
            max_new_tokens=7,
            length_penalty=penalty,
        )
        assert [choice.message.content for choice in reply.choices] == wanted
        assert reply.decoder == "generate"
    pieces = client.chat.completions.create(
        model="tiny",
        messages=turn("what colour?", *pictures),
        max_tokens=7,
        stream=True,
        extra_body={"use_beam_search": True},
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    (best,) = generated(service, "what colour?", pictures, num_beams=4, max_new_tokens=7)
    assert text == best


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"num_beams": 2, "n": 3}, "n"),
        ({"num_beams": 2, "temperature": 1}, "temperature"),
        ({"num_beams": 17}, "num_beams"),
        ({"length_penalty": 2}, "length_penalty"),
        ({"num_beams": 3, "logprobs": True}, "logprobs"),
        ({"num_beams": 3, "stop": "e"}, "stop"),
    ],
    ids=str,
)
def test_what_beams_exclude_is_said(address, change, param):
    body = {"model": "tiny", "messages": turn("what?"), "max_tokens": 2, **change}
    status, reply = call(address, "/v1/chat/completions", body)
    assert (status, reply["error"]["param"]) == (400, param)


def test_a_search_lets_others_go_on_and_ends_when_its_client_leaves(address, service):
    """Without both, one long search would hold up everyone."""
    found = []
    body = {"prompt": "the", "max_tokens": 1500, "num_beams": 4, "use_beam_search": True}
    host, port = address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    before = service.metrics.cancelled
    with socket.create_connection((host, int(port))) as link:
        link.sendall(head.encode() + data)
        until(lambda: service.background._searching)
        short = {"prompt": "the", "max_tokens": 4, "temperature": 0}
        found.append(call(address, "/v1/completions", short))
        second = {**short, "num_beams": 2}
        waiting = threading.Thread(
            target=lambda: found.append(call(address, "/v1/completions", second))
        )
        waiting.start()
        assert service.background._searching, "the long search is still under way"
    waiting.join()
    assert [status for status, _ in found] == [200, 200]
    until(lambda: service.metrics.cancelled > before)
    until(lambda: not service.background._searching)
    assert not service.background._gone
