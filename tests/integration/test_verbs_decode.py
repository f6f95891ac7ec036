"""chat, generate and eval from the command line to their files, on a tiny saved model."""

import io
import json
import sys

import pytest

import retinue
from retinue.cli.chat import Session, printable
from retinue.cli.generate import write_answers
from retinue.cli.main import run
from retinue.cli.scoring import write_result
from retinue.core.errors import DataError
from retinue.decode.chat import Chat
from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.eval.questions import read_questions
from retinue.hub.save import save
from retinue.world.make import write_split
from tiny import ask, picture, tiny_model

PARAMS = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(seed=3)


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    return str(save(*loaded, tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def rows(tmp_path):
    """in.jsonl of 11 rows over two pictures, one of them text only."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(2):
        picture(n).save(pictures / f"{n}.png")
    made = [{"id": 0, "messages": [{"role": "user", "content": "no picture"}], "answer": "x"}]
    for n in range(1, 11):
        parts = [
            {"type": "image", "image": f"pictures/{n % 2}.png"},
            {"type": "text", "text": "what " * (n % 4) + "colour?"},
        ]
        made.append(
            {
                "id": f"row {n}",
                "messages": [{"role": "user", "content": parts}],
                "answer": "red",
                "task": f"task{n % 2}",
            }
        )
    return write(tmp_path / "in.jsonl", made)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# ---------------------------------------------------------------- generate


def command(folder, rows, out, *more):
    files = ["--input", str(rows), "--output", str(out)]
    return ["generate", folder, *files, "--max-new-tokens", "6", "--device", "cpu", *more]


def test_generate_writes_rows_in_input_order(loaded, folder, rows, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert run(command(folder, rows, out, "--temperature", "0", "--seed", "1")) == 0
    found = read(out)
    assert [row["id"] for row in found] == [0, *(f"row {n}" for n in range(1, 11))]
    assert {tuple(row) for row in found} == {("id", "text", "tokens", "finish")}
    assert all(row["finish"] in ("stop", "length") for row in found)
    model, processor = loaded
    samples = [
        ask("x", "no picture"),
        ask("y", "what colour?", str(tmp_path / "pictures" / "1.png")),
    ]
    direct = [answer.tokens for answer in generate(model, processor, samples, params=PARAMS)]
    assert [found[0]["tokens"], found[1]["tokens"]] == direct
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text("utf-8"))
    assert record["status"] == "done"
    assert record["counts"] == {"rows": 11, "kept": 0, "answered": 11, "skipped": 0}
    assert record["versions"]["retinue"] == retinue.__version__


def test_generate_goes_on_where_it_was_torn(folder, rows, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert run(command(folder, rows, out)) == 0
    straight = out.read_bytes()
    for kept in (0, 1, len(straight) // 3, len(straight) - 1):
        out.write_bytes(straight[:kept])
        assert run(command(folder, rows, out, "--batch-size", "3")) == 0
        assert out.read_bytes() == straight
    assert run(command(folder, rows, out, "--max-new-tokens", "7")) == 2
    said = capsys.readouterr().err
    assert "max_new_tokens was 6, is 7" in said
    assert "--restart" in said
    assert out.read_bytes() == straight
    assert run(command(folder, rows, out, "--max-new-tokens", "7", "--restart")) == 0
    assert out.read_bytes() != straight


def test_generate_killed_three_times_ends_with_the_same_file(loaded, rows, tmp_path):
    model, processor = loaded
    settings = {"params": PARAMS, "batch_size": 2}
    write_answers(model, processor, rows, tmp_path / "straight.jsonl", **settings)
    out = tmp_path / "out.jsonl"
    for calls in (14, 3, 20):
        with pytest.raises(KeyboardInterrupt):
            write_answers(Mortal(model, calls), processor, rows, out, **settings)
    write_answers(model, processor, rows, out, **settings)
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


class Mortal:
    """Dies after a number of forward passes."""

    def __init__(self, model, calls):
        self.model, self.calls = model, calls

    def new_cache(self):
        return self.model.new_cache()

    def run(self, batch, *, cache, keep):
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        return self.model.run(batch, cache=cache, keep=keep)


def test_generate_skips_and_lists_rows_it_cannot_use(loaded, rows, tmp_path, capsys):
    model, processor = loaded
    good = read(rows)
    parts = [{"type": "image", "image": "none.png"}]
    broken = {"id": "gone", "messages": [{"role": "user", "content": parts}]}
    lacking = {"id": "lacking"}
    mixed = write(tmp_path / "mixed.jsonl", [good[0], broken, *good[1:4], lacking, *good[4:]])
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"mixed\.jsonl:6.*messages: missing"):
        write_answers(model, processor, mixed, out, params=PARAMS)
    counts = write_answers(model, processor, mixed, out, params=PARAMS, skip=True)
    assert counts == {"rows": 13, "kept": 0, "answered": 11, "skipped": 2}
    assert [row["id"] for row in read(out)] == [row["id"] for row in good]
    listed = read(tmp_path / "out.jsonl.errors.jsonl")
    assert sorted((row["row"], row["id"]) for row in listed) == [(1, "gone"), (5, "lacking")]
    assert "none.png" in next(row["error"] for row in listed if row["id"] == "gone")
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    write_answers(model, processor, mixed, out, params=PARAMS, skip=True)
    assert out.read_bytes() == whole
    assert len(read(tmp_path / "out.jsonl.errors.jsonl")) == 2
    assert "skipped 2 rows" in capsys.readouterr().err


def test_generate_reads_pictures_under_a_media_root(loaded, rows, tmp_path):
    model, processor = loaded
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / "in.jsonl"
    moved.write_bytes(rows.read_bytes())
    out, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    with pytest.raises(DataError, match=r"pictures/1\.png"):
        write_answers(model, processor, moved, out, params=PARAMS)
    write_answers(model, processor, moved, out, params=PARAMS, media_root=tmp_path)
    write_answers(model, processor, rows, other, params=PARAMS)
    assert out.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (None, 3, "No such file"),
        ("", 3, "the file is empty"),
        ('{"id": 1, "messages": [{"role": "user", "content": "x"}]}\n{"id": 2}\n', 3, ":2"),
        ("{broken\n", 3, ":1"),
    ],
)
def test_generate_names_what_is_wrong_with_its_input(folder, tmp_path, capsys, text, code, says):
    source = tmp_path / "in.jsonl"
    if text is not None:
        source.write_text(text, "utf-8")
    assert run(command(folder, source, tmp_path / "out.jsonl")) == code
    assert says in capsys.readouterr().err


# ---------------------------------------------------------------- eval


def test_eval_of_ones_own_rows(folder, rows, tmp_path, capsys):
    out = tmp_path / "results" / "mine.json"
    line = ["eval", folder, "--data", str(rows), "--json", str(out), "--max-new-tokens", "4"]
    assert run([*line, "--scorer", "exact", "--baseline", "--failures", "2"]) == 0
    page = capsys.readouterr().out
    assert "baseline" in page
    assert page.count("expected") == 2
    found = json.loads(out.read_text("utf-8"))
    assert found == json.loads((out.parent / "run.json").read_text("utf-8"))
    assert set(found["tasks"]) == {"in", "task0", "task1"}
    assert found["counts"]["questions"] == found["counts"]["answered"] == 11
    assert 0 <= found["metrics"]["score"] <= 1
    assert found["metrics"]["baseline"] == 1.0
    rows_of = read(out.parent / "mine.rows.jsonl")
    assert [row["id"] for row in rows_of] == ["0", *(f"row {n}" for n in range(1, 11))]
    # A finished evaluation is made anew, an answer of today's model instead of yesterday's.
    (out.parent / "mine.rows.jsonl").write_text('{"id": "stale"}\n', "utf-8")
    assert run([*line, "--scorer", "exact", "--baseline"]) == 0
    assert json.loads(out.read_text("utf-8")) == found


def test_eval_of_tiny_world(loaded, tmp_path):
    path = write_split(tmp_path, name="test", num_pictures=4, seed=1)
    questions = read_questions(path.with_suffix(".jsonl"))
    model, processor = loaded
    document = write_result(
        model, processor, questions, tmp_path / "r.json", params=PARAMS, with_baseline=True
    )
    assert set(document["tasks"]) == {item.task for item in questions}
    assert {own["scorer"] for own in document["tasks"].values()} >= {"exact", "iou"}
    assert all("baseline" in own for own in document["tasks"].values())


def test_eval_killed_three_times_ends_with_the_same_files(loaded, rows, tmp_path):
    model, processor = loaded
    questions = read_questions(rows, scorer="contains")
    settings = {"params": PARAMS, "batch_size": 2}
    straight, broken = tmp_path / "straight" / "r.json", tmp_path / "broken" / "r.json"
    write_result(model, processor, questions, straight, **settings)
    for calls in (9, 1, 13):
        with pytest.raises(KeyboardInterrupt):
            write_result(Mortal(model, calls), processor, questions, broken, **settings)
    write_result(model, processor, questions, broken, **settings)
    for name in ("r.json", "run.json", "r.rows.jsonl"):
        assert (broken.parent / name).read_bytes() == (straight.parent / name).read_bytes()


def test_eval_skips_and_counts_broken_pictures(loaded, rows, tmp_path):
    (tmp_path / "pictures" / "0.png").write_bytes(b"no picture")
    questions = read_questions(rows, scorer="exact")
    model, processor = loaded
    with pytest.raises(DataError, match=r"0\.png"):
        write_result(model, processor, questions, tmp_path / "r.json", params=PARAMS)
    document = write_result(
        model, processor, questions, tmp_path / "r.json", params=PARAMS, skip=True
    )
    assert document["counts"]["skipped"] == 5
    assert document["counts"]["answered"] == 6
    assert len(read(tmp_path / "r.errors.jsonl")) == 5


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--scorer", "exat"], 2, "did you mean 'exact'"),
        ([], 3, "in.jsonl:1 (sample '0'): no scorer"),
        (["--scorer", "iou"], 3, "in.jsonl:1"),
    ],
)
def test_eval_failures_leave_a_run_json(folder, rows, tmp_path, capsys, more, code, says):
    out = tmp_path / "r.json"
    assert run(["eval", folder, "--data", str(rows), "--json", str(out), *more]) == code
    said = capsys.readouterr().err
    assert says in said
    record = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert record["status"] == "failed"
    assert record["error"] in said
    assert not out.exists()


# ---------------------------------------------------------------- chat


def test_one_question_from_the_command_line(folder, tmp_path, capsys):
    picture(1).save(tmp_path / "p.png")
    shown = str(tmp_path / "p.png")
    line = ["chat", folder, "--image", shown, "--ask", "what?", "--max-new-tokens", "6"]
    assert run(line) == 0
    first = capsys.readouterr().out
    assert first.endswith("\n")
    assert retinue.chat(folder, "what?", images=[shown], max_new_tokens=6) == first.strip()
    assert run([*line, "--image", shown]) == 0
    assert capsys.readouterr().out != first
    assert run([*line, "--template", "llava_v0"]) == 0
    assert capsys.readouterr().out != first
    (answer,) = retinue.generate(folder, [ask("a", "what?", shown)], max_new_tokens=6)
    assert answer.text == first.strip()


def test_chat_reads_piped_lines(folder, tmp_path, capsys, monkeypatch):
    picture(1).save(tmp_path / "p.png")
    saved = tmp_path / "talk.jsonl"
    lines = f"/image {tmp_path / 'p.png'}\nwhat?\nand?\n/save {saved}\n\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run(["chat", folder, "--max-new-tokens", "5"]) == 0
    (talk,) = read(saved)
    assert [message["role"] for message in talk["messages"]] == ["user", "assistant"] * 2
    assert talk["messages"][0]["content"][0] == {"type": "image", "image": f"{tmp_path}/p.png"}
    assert talk["messages"][2]["content"] == "and?"
    out = capsys.readouterr().out
    assert "you>" not in out
    for message in talk["messages"][1::2]:
        assert message["content"] in out


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        ("/image none.png\n", 3, "none.png"),
        ("/imagine x\n", 2, "unknown command '/imagine'"),
        ("/save\n", 2, "/save needs something"),
    ],
)
def test_a_piped_mistake_ends_with_its_code(folder, capsys, monkeypatch, lines, code, says):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run(["chat", folder]) == code
    assert says in capsys.readouterr().err


def test_a_missing_picture_is_found_before_the_model_is_loaded(capsys):
    assert run(["chat", "no/such-model-anywhere", "--image", "none.png"]) == 3
    assert "none.png" in capsys.readouterr().err


def test_commands_of_a_person_at_the_keyboard(loaded, capsys, tmp_path):
    typed = iter(["/image none.png", "/help", "/system be brief", "what?", "/reset", "/quit", "x"])
    talk = Chat(*loaded, params=PARAMS)
    Session(talk, images=[]).talk(lambda prompt: next(typed), forgiving=True)
    said = capsys.readouterr()
    assert "none.png" in said.err
    assert "/image PATH-or-URL" in said.err
    assert said.out.strip()
    assert (talk.system, talk.messages) == ("be brief", [])
    assert next(typed) == "x"


def test_an_interrupted_answer_does_not_end_the_conversation(loaded, capsys):
    model, processor = loaded
    mortal = Mortal(model, 4)
    talk = Chat(mortal, processor, params=PARAMS)

    def typed(prompt):
        if not talk.messages:
            return "what?"
        mortal.calls = 99
        return "and?" if len(talk.messages) == 2 else ""

    Session(talk, images=[]).talk(typed, forgiving=True)
    assert "(interrupted)" in capsys.readouterr().err
    assert [message.text for message in talk.messages if message.role == "user"] == [
        "what?",
        "and?",
    ]


def test_control_characters_do_not_reach_a_terminal():
    assert printable("a\x1b[2Jb\x0e\n\té\u200d🙂\x9b") == "a[2Jb\n\té\u200d🙂"
