"""lmms-eval drives a retinue model, and its samples are saved answers here."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from retinue.cli.main import run
from retinue.core.errors import ConfigError, DataError
from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.decode.score import CHOICES, rank
from retinue.hub.elastic import make_elastic
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.types import Media, Sample, Text
from tiny import ask, picture, tiny_model

QUESTIONS = ["what colour is it?", "how many?", "what is it?"]
DEFINED = """
dataset_path: json
dataset_kwargs: {{data_files: {rows}}}
task: mini
test_split: train
output_type: generate_until
doc_to_visual: !function utils.visuals
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
from PIL import Image

def visuals(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""
OURS = """
about: Mine.
source: https://example.org
reader: {kind: rows, file: rows.jsonl, id: question_id, references: answer}
prompt: "{question}"
decoding: {max_new_tokens: 4}
scorer: exact
"""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    model, processor = tiny_model(seed=3)
    make_elastic(model, processor, scales=[1, 4, 16])
    return save(model, processor, tmp_path_factory.mktemp("lmms") / "model")


def asked(folder, question, n, *, budget):
    model, processor = load(folder)
    samples = [ask("x", question, str(n))]
    params = SamplingParams(max_new_tokens=4, stop=("\n\n",))
    (one,) = generate(model, processor, samples, params=params, budget=budget)
    return one.text


@pytest.mark.slow
def test_the_command_of_lmms_eval_and_its_samples(model_folder, tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(3)]
    rows = [
        {"question_id": 100 + n, "image": str(file), "question": question, "answer": "red"}
        for n, (file, question) in enumerate(zip(files, QUESTIONS, strict=True))
    ]
    for n, file in enumerate(files):
        picture(n).save(file)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "mini.yaml").write_text(DEFINED.format(rows=tmp_path / "rows.jsonl"), "utf-8")
    (place / "utils.py").write_text(UTILS, "utf-8")
    command = [sys.executable, "-m", "lmms_eval", "--model", "retinue", "--tasks", "mini"]
    command += ["--model_args", f"pretrained={model_folder},visual_tokens=4", "--device", "cpu"]
    command += ["--include_path", str(place), "--batch_size", "2", "--log_samples"]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "out").rglob("*samples_mini.jsonl")
    said = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    wanted = [asked(model_folder, q, f, budget=4) for q, f in zip(QUESTIONS, files, strict=True)]
    assert [one["filtered_resps"] for one in said] == wanted
    # The same file in the place of a model here.
    (tmp_path / "mine.yaml").write_text(OURS, "utf-8")
    out = tmp_path / "result.json"
    told = ["--tasks-from", str(tmp_path), "--tasks-root", str(tmp_path), "--json", str(out)]
    assert run(["eval", "--predictions", str(samples), "mine", *told]) == 0
    made = out.with_suffix(".rows.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in made] == ["100", "101", "102"]
    assert [json.loads(line)["text"] for line in made] == wanted


class Docs(dict):
    """lmms-eval's documents by task, split and number."""

    def __init__(self, docs):
        super().__init__({"t": {"test": docs}})


@pytest.fixture
def adapter(model_folder):
    from retinue.compat.lmms import RetinueModel

    def made(**arguments):
        found = RetinueModel(str(model_folder), device="cpu:0", **arguments)
        found.task_dict = Docs([{"picture": picture(n)} for n in range(3)])
        return found

    return made


def request(*args):
    return SimpleNamespace(args=args)


def visuals(doc):
    return [doc["picture"]]


def test_answers_are_those_of_the_library(adapter, model_folder):
    lm = adapter(visual_tokens=4)
    short, long = {"max_new_tokens": 2, "until": ["\n\n"]}, {"max_new_tokens": 5, "temperature": 0}
    requests = [
        request("what?", short, visuals, 0, "t", "test"),
        request("look at <image> now", long, visuals, 1, "t", "test"),
        request("how many?", short, lambda doc: [], 2, "t", "test"),
    ]
    model, processor = load(model_folder)
    samples = [ask("a", "what?", picture(0)), None, ask("c", "how many?")]
    between = (Text(text="look at "), Media(source=picture(1)), Text(text=" now"))
    samples[1] = Sample(
        id="b", messages=(type(samples[0].messages[0])(role="user", parts=between),)
    )
    wanted = []
    for sample, length in zip(samples, (2, 5, 2), strict=True):
        params = SamplingParams(max_new_tokens=length, stop=("\n\n",) if length == 2 else ())
        (one,) = generate(model, processor, [sample], params=params, budget=4)
        wanted.append(one.text)
    assert lm.generate_until(requests) == wanted
    assert adapter(visual_tokens=1).generate_until(requests[:1]) != wanted[:1]


def test_losses_of_continuations(adapter, model_folder):
    lm = adapter(visual_tokens=16)
    words = [" red", " green", " the circle"]
    requests = [request("what?", word, visuals, 0, "t", "test") for word in words]
    requests += [request("what?", lambda doc: "red", visuals, 1, "t", "test")]
    found = lm.loglikelihood(requests)
    model, processor = load(model_folder)
    names = tuple(word.strip() for word in words)
    for number, own, given in ((0, found[:3], names), (1, found[3:], ("red",))):
        sample = ask("a", "what?", picture(number))
        sample = Sample(id="a", messages=sample.messages, meta={CHOICES: given})
        (one,) = rank(model, processor, [sample], budget=16)
        assert [loss for loss, _ in own] == pytest.approx([-score for score in one.scores])
        assert [said for _, said in own] == one.greedy


def test_a_continuation_that_decoding_would_write(model_folder):
    model, processor = load(model_folder)
    batch = processor.batch([ask("a", "what?", picture(0))])
    with torch.inference_mode():
        likeliest = int(model.run(batch).logits[0, -1].argmax())
    from retinue.decode.score import option_scores

    other = (likeliest + 1) % 50
    ((first, second),) = option_scores(model, batch, [[[likeliest], [other]]])
    assert (first[1], second[1]) == (True, False)


def test_what_lmms_eval_may_not_ask(adapter):
    with pytest.raises(ConfigError, match="visual_tkens"):
        adapter(visual_tkens=4)
    lm = adapter(visual_tokens="auto")
    with pytest.raises(ConfigError, match="name a number"):
        lm.loglikelihood([request("what?", " red", visuals, 0, "t", "test")])
    with pytest.raises(ConfigError, match="several rounds"):
        lm.generate_until_multi_round([])
    beams = request("what?", {"num_beams": 3}, visuals, 0, "t", "test")
    with pytest.raises(ConfigError, match="beams"):
        lm.generate_until([beams])
    with pytest.raises(DataError, match="2 places for 1 pictures"):
        lm.generate_until([request("<image> <image>", {}, visuals, 0, "t", "test")])
    with pytest.raises(DataError, match="only pictures and videos"):
        lm.generate_until([request("hear", {}, lambda doc: [{"array": 1}], 0, "t", "test")])
