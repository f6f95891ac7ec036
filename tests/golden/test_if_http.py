"""Instruct-Flamingo's HTTP route: recorded calls replayed to ours, and its README's client."""

import json
import re
import urllib.error
import urllib.request

import pytest
import torch
from cases import compared
from flamingo import SYSTEM, cases
from test_if_inference import arguments

from loopback_app import listening
from retinue.compat.flamingo import Inferencer
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.flamingo import CleverFlamingo, add_flamingo, log_entry, parse
from retinue.serve.service import Service

CASES = cases(SYSTEM, "*", having="api_exchanges.json")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def served(request, tmp_path_factory):
    """(case, address, inferencer, log) of a server with the case's tuned model."""
    case = request.param
    told = json.loads((case / "inferencer_calls.json").read_text("utf-8"))["constructor"]
    inferencer = Inferencer(**arguments(case, told), dtype=torch.float32)
    service = Service(
        inferencer.model, inferencer.processor, name="clever", engine=EngineSpec(block=4)
    )
    log = tmp_path_factory.mktemp("http") / "log.txt"
    app = create_app(service)
    add_flamingo(app, CleverFlamingo(service=service, media_root=case, log=log))
    with listening(app) as address:
        yield case, address, inferencer, log


def post(url, data, content_type=None):
    """(status, parsed reply); no Content-Type at all unless one is named."""
    request = urllib.request.Request(url, data, method="POST")
    opener = urllib.request.build_opener()
    if content_type:
        request.add_header("Content-Type", content_type)
    else:  # urllib adds one of its own unless it is told otherwise
        request.add_unredirected_header("Content-Type", "")
        request.unredirected_hdrs.pop("Content-type")
        opener.process_request["http"] = []
        request.add_unredirected_header("Host", request.host)
        request.add_unredirected_header("Content-Length", str(len(data)))
    try:
        with opener.open(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text


def test_recorded_calls(served):
    case, address, _, log = served
    for call in json.loads((case / "api_exchanges.json").read_text("utf-8")):
        status, reply = post(
            address + call["path"],
            json.dumps(call["request"]).encode(),
            call["content_type_header"],
        )
        if call["status"] == 200:
            assert (status, reply) == (200, call["response"]), call["name"]
        elif call["content_type_header"] is None:
            # the README's client sends no Content-Type, which the original's framework of 2026
            # refuses and that of 2023 took: it is answered
            assert status == 200
            assert reply["result"]["response"]
        elif call["status"] == 500:
            # a missing argument: a crash there, a reply that names it here
            assert status == 422
            assert reply["detail"][0]["type"] == "missing"
            assert reply["detail"][0]["loc"][:3] == ["body", "content_lst", "args"]
            assert reply["detail"][0]["loc"][3] not in call["request"]["content_lst"]["args"]
        elif call["status"] == 422:
            assert (status, reply) == (422, call["response"]), call["name"]
        else:
            assert status == call["status"]
    ours, theirs = log.read_text("utf-8"), (case / "api_log.example.txt").read_text("utf-8")
    assert blanked(ours).startswith(theirs.split("}\n{")[0])
    compared(case)


def blanked(text):
    text = re.sub(r'"time": "[^"]*"', '"time": "YYYY-MM-DD HH:MM:SS"', text)
    return re.sub(r'"time_elapsed": [\d.e-]+', '"time_elapsed": 0.0', text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_log(case):
    """Every call of the example log, written anew from its request and response."""
    entries = []
    for call in json.loads((case / "api_exchanges.json").read_text("utf-8")):
        if call["status"] == 200:
            body, _ = parse(json.dumps(call["request"]).encode())
            answers = call["response"]["result"]["response"]
            entries.append(blanked(log_entry(body, answers, started=0.0, elapsed=0.0)))
    assert "".join(entries) == (case / "api_log.example.txt").read_text("utf-8")
    compared(case)


@pytest.mark.parametrize("beams", [1, 3])
def test_beams_answer_as_generate(served, beams):
    """The route's reply is the Inferencer's, whichever way it is decoded."""
    case, address, inferencer, _ = served
    prompt = "### Human: <image>Compare with <image>\n### Assistant: "
    names = sorted(str(path.relative_to(case)) for path in (case / "images").glob("*.png"))[:2]
    args = {
        "max_new_token": 8, "num_beams": beams, "temperature": 1.0, "top_k": 20, "top_p": 1.0,
        "do_sample": False, "length_penalty": 0.5, "no_repeat_ngram_size": 2,
    }  # fmt: skip
    body = {"content_lst": {"prompt": prompt, "imgpaths": names, "args": args}, "typ": "None"}
    # the README's client: requests.post(url, data=json.dumps(...)), which sets no Content-Type
    status, reply = post(address + "/clever_flamingo", json.dumps(body).encode())
    wanted, _ = inferencer(prompt, [str(case / name) for name in names], **args)
    assert (status, reply) == (200, {"result": {"response": wanted}})
