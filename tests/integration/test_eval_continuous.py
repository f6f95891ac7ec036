"""`retinue eval --continuous`: the serving engine answers as decoding in windows does."""

import json

import pytest

from miniatures import miniature
from retinue.cli.continuous import answers
from retinue.cli.main import run
from retinue.core.errors import ConfigError, DataError
from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.hub.elastic import make_elastic
from retinue.hub.save import save
from tiny import ask, picture, tiny_model


def samples():
    """Questions of several lengths, some about one picture, two with one id."""
    shown = [picture(n) for n in range(3)]
    found = [ask(f"q{n}", "what colour is it?" + "?" * (n % 5), shown[n % 3]) for n in range(14)]
    return [*found, ask("q0", "how many shapes are there?")]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_in_order_as_in_windows(temperature):
    model, processor = tiny_model()
    params = SamplingParams(max_new_tokens=7, temperature=temperature, seed=2)
    wanted = list(generate(model, processor, samples(), params=params, batch_size=4))
    found = list(answers(model, processor, samples(), params=params, rows=4))
    for one, other in zip(found, wanted, strict=True):
        assert (one.number, one.id, one.tokens, one.text, one.finish) == (
            other.number,
            other.id,
            other.tokens,
            other.text,
            other.finish,
        )
        assert one.visual_tokens == other.visual_tokens


def test_a_sample_that_cannot_be_used(tmp_path):
    model, processor = tiny_model()
    given = samples()
    given[3] = ask("broken", "what?", str(tmp_path / "nowhere.png"))
    torn = tmp_path / "torn.png"
    picture(1).save(torn)
    torn.write_bytes(torn.read_bytes()[:60])
    given[5] = ask("torn", "what?", str(torn))
    params, told = SamplingParams(max_new_tokens=3), []
    found = list(
        answers(model, processor, given, params=params, skipped=lambda *one: told.append(one[0]))
    )
    assert sorted(told) == [3, 5]
    assert [one.number for one in found] == [n for n in range(15) if n not in (3, 5)]
    with pytest.raises(DataError, match="nowhere"):
        list(answers(model, processor, given, params=params))
    with pytest.raises(ConfigError, match="beams"):
        list(answers(model, processor, given, params=SamplingParams(num_beams=3)))


def test_the_verb_writes_the_same_rows_and_goes_on(tmp_path):
    model, processor = tiny_model(seed=3)
    make_elastic(model, processor, scales=[1, 4, 16])
    folder = save(model, processor, tmp_path / "model")
    miniature("pope", tmp_path)
    command = ["eval", str(folder), "pope", "--tasks-root", str(tmp_path), "--max-new-tokens", "5"]
    command += ["--no-page", "--visual-tokens", "4"]
    made = {}
    for name, more in (("windows", []), ("engine", ["--continuous", "--batch-size", "3"])):
        out = tmp_path / name / "r.json"
        assert run([*command, *more, "--json", str(out)]) == 0
        rows = out.with_suffix(".rows.jsonl").read_text("utf-8").splitlines()
        made[name] = [json.loads(line) for line in rows]
    for one, other in zip(made["windows"], made["engine"], strict=True):
        assert one.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-3)
        assert one == other
    document = json.loads((tmp_path / "engine" / "r.json").read_text("utf-8"))
    assert document["settings"]["continuous"] is True
