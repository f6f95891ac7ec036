"""`retinue data check|show` on files of a few records."""

import json

import pytest

from retinue.cli.main import run


@pytest.fixture
def chat(tmp_path, draw):
    """A JSONL file with one good record and, on request, broken ones."""
    draw(32, 24).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def write(*names):
        rows = [
            {
                "id": f"r{n}",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "image": name},
                            {"type": "text", "text": "what is it?"},
                        ],
                    },
                    {"role": "assistant", "content": "a box"},
                ],
            }
            for n, name in enumerate(names)
        ]
        path = tmp_path / "chat.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write


def test_a_good_file_passes(chat, capsys):
    assert run(["data", "check", str(chat("a.png")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["records"] == 1
    assert run(["data", "check", str(chat("a.png"))]) == 0
    assert "1 of 1 samples are fit for training" in capsys.readouterr().out


def test_missing_and_broken_pictures_end_with_3(chat, tmp_path, capsys):
    path = chat("a.png", "gone.png", "broken.png")
    assert run(["data", "check", str(path), "--report", str(tmp_path / "r.json")]) == 3
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert found["sources"][0]["kinds"] == {"picture": 2}
    out = capsys.readouterr().out
    assert "gone.png" in out.replace("\n", "")


def test_a_recipe_s_data_section_is_checked(chat, tmp_path, capsys):
    path = chat("gone.png")
    recipe = tmp_path / "my.yaml"
    recipe.write_text(f"data: {{sources: [{{path: {path}}}]}}\n", "utf-8")
    assert run(["data", "check", str(recipe)]) == 3
    capsys.readouterr()
    chat("a.png")
    assert run(["data", "check", str(recipe), "data.sources.0.ratio=2"]) == 0
    capsys.readouterr()
    assert run(["data", "check", str(recipe), "data.sources.0.rati=2"]) == 2
    assert "did you mean 'ratio'" in capsys.readouterr().err


def test_show_prints_records_as_read(chat, capsys):
    assert run(["data", "show", str(chat("a.png", "a.png")), "--json", "--start", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["r1"]
    assert rows[0]["messages"][0]["content"][1]["text"].strip() == "what is it?"


def test_the_page_needs_a_model(chat, capsys):
    assert run(["data", "show", str(chat("a.png"))]) == 2
    assert "--model" in capsys.readouterr().err
