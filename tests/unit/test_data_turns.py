"""Further turns, and Instruct-Flamingo's JSON as samples."""

import json

import pytest

from retinue.cli.main import run
from retinue.core.errors import DataError
from retinue.data.formats import detect_format, open_format
from retinue.data.turns import Turns, TurnsSpec
from retinue.types import Media, Text

ROWS = [
    {"input": "a<img_path>x/1.png<img_path>b", "output": "one"},
    {"input": "plain", "output": "two"},
    {"instruction": "Answer: ", "input": "<img_path>2.png<img_path>?", "output": "three"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS), "utf-8")
    assert detect_format(path) == "instruct"
    return open_format(path, media_root=tmp_path / "images")


def test_pictures_stand_where_their_paths_stood(source, tmp_path):
    asked, told = source[0].messages
    assert [type(part) for part in asked.parts] == [Text, Media, Text]
    assert asked.media[0].source == str(tmp_path / "images" / "x/1.png")
    assert (asked.text, told.text) == ("ab", "one")
    assert source[2].messages[0].parts[0] == Text(text="Answer: ")


def test_a_field_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"input": 3, "output": "x"}]), "utf-8")
    with pytest.raises(DataError, match="input"):
        open_format(path)[0]


def test_turns_are_added_and_stay_the_same(source):
    turns = Turns(source, TurnsSpec(add=4))
    assert len(turns) == len(source)
    for index in range(len(ROWS)):
        sample = turns[index]
        assert len(sample.messages) == 10
        assert sample.messages[:2] == source[index].messages
        assert [message.role for message in sample.messages] == ["user", "assistant"] * 5
        assert turns[index] == sample
    assert turns[0].messages != Turns(source, TurnsSpec(add=4, seed=1))[0].messages


def test_no_more_media_than_allowed(source):
    for index in range(len(ROWS)):
        sample = Turns(source, TurnsSpec(add=9, max_media=2))[index]
        assert len(sample.media) <= 2


def test_a_published_data_set_becomes_rows(tmp_path):
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    path = tmp_path / "w.json"
    path.write_text(json.dumps([{"conversations": turns}]), "utf-8")
    out = tmp_path / "out.json"
    assert run(["data", "convert", str(path), str(out), "--from", "wizardlm"]) == 0
    assert json.loads(out.read_text("utf-8")) == [{"input": "x", "output": "y"}]
    assert run(["data", "convert", str(path), str(out), "--from", "wizard"]) == 2


LLAVA = {"conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]}
CHAT = [
    {
        "role": "user",
        "content": [{"type": "image", "image": "c.png"}, {"type": "text", "text": "q"}],
    },
    {"role": "assistant", "content": "a"},
]


@pytest.mark.parametrize(
    ("row", "template", "labels", "marks"),
    [
        ({**LLAVA, "image": "c.png"}, "v1", "assistant", ("USER: ", " ASSISTANT: ")),
        ({"messages": CHAT}, "chatml", "assistant", ("<|im_start|>user\n", "<|im_end|>")),
        ({"messages": CHAT}, "llama_2", "assistant", ("[INST]", "[/INST]")),
        (ROWS[0], "guanaco", "flamingo", ("### Human: ", "### Assistant: ")),
    ],
)
def test_added_turns_are_turns_of_the_family_s_dialogue(tmp_path, row, template, labels, marks):
    """Every added question and answer is rendered and masked as the dialect's own later turns."""
    from retinue.text.labels import tokenize
    from retinue.text.template import resolve
    from retinue.text.train import train_bpe
    from retinue.types import IGNORE

    path = tmp_path / "rows.json"
    told = ROWS[0]["output"] if row is ROWS[0] else "a"
    rows = [json.dumps(row).replace(f'"{told}"', f'"answer {k}"') for k in range(5)]
    path.write_text(f"[{','.join(rows)}]", "utf-8")
    sample = Turns(open_format(path, media_root=tmp_path), TurnsSpec(add=3))[0]
    assert len(sample.messages) == 8
    dialect = resolve(template)
    text = dialect.text(sample.messages)
    assert all(text.count(mark) >= 4 for mark in marks)
    lines = [text, *marks, "<|endofchunk|>"]
    specials = ["<image>", "</s>", "<|endofchunk|>"]
    tokenizer = train_bpe(lines * 3, vocab_size=400, specials=specials)
    done = tokenize(dialect.render(sample.messages), tokenizer, policy=labels)
    assert len(done.places) == len(sample.media)
    answers = [message.text for message in sample.messages[1::2]]
    learnt = tokenizer.decode([label for label in done.labels if label != IGNORE])
    assert [learnt.count(answer) for answer in answers] == [answers.count(a) for a in answers]


def test_blind_keeps_the_words_alone(tmp_path):
    """Marks and the line breaks beside them go; the rest of the conversation stays."""
    from retinue.data.blind import Blind
    from retinue.data.formats import open_format

    turns = [
        {"from": "human", "value": "<image>\nwhat colour?"},
        {"from": "gpt", "value": "red\nor blue"},
        {"from": "human", "value": "and which of <image> and this?"},
        {"from": "gpt", "value": "the first"},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"id": "1", "image": ["a.png", "b.png"], "conversations": turns}]))
    sample = Blind(open_format(path))[0]
    assert not sample.media
    said = [part.text for message in sample.messages for part in message.parts]
    assert said == ["what colour?", "red\nor blue", "and which of  and this?", "the first"]


def test_lengths_of_conversations(tmp_path):
    """Exact where packs depend on them, else estimated from the records' own lengths."""
    from fake_processor import FakeProcessor
    from retinue.data.dataset import open_dataset
    from retinue.data.spec import DataSpec

    class Counting(FakeProcessor):
        calls = 0

        def length(self, sample):
            type(self).calls += len(sample.messages)
            return super().length(sample)

    rows = [{"input": "one two", "output": "three"}, {"input": "one", "output": "2 3 4 5"}] * 4
    (tmp_path / "x.json").write_text(json.dumps(rows), "utf-8")
    source = {"path": "x.json", "turns": {"add": 5}}

    def opened(**changes):
        Counting.calls = 0
        spec = DataSpec.parse({"sources": [source], "max_tokens": 40, **changes})
        return open_dataset(spec, Counting(), root=tmp_path), Counting.calls

    exact, calls = opened(packing="window")
    assert calls == len(rows) * 2 * 6
    for index, tokens in enumerate(exact.train.sizes.tokens):
        assert FakeProcessor().length(exact.train[index])[0] == tokens
    data, calls = opened()
    assert calls == len(rows) * 2
    assert set(data.train.sizes.tokens) == {23, 25}
    assert len(data.train[0].messages) == 12
    assert set(opened(max_tokens=24)[0].train.sizes.tokens) == {23, 24}


def test_a_follower_that_cannot_be_read_is_passed_over(tmp_path):
    rows = [{"input": "a", "output": "b"}, {"input": "a", "output": ""}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows), "utf-8")
    turns = Turns(open_format(path), TurnsSpec(add=20))
    assert {message.text for message in turns[0].messages} == {"a", "b"}
    assert len(turns[0].messages) < 42
    with pytest.raises(DataError, match="empty"):
        turns[1]
