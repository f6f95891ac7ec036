"""METEOR's own program is driven by its protocol; without it a line says so and CIDEr stays.

The program's replies below are those of meteor-1.5.jar for these captions, and the figure is what
pycocoevalcap 1.2 gives.
"""

import sys

import pytest

from retinue.core import log
from retinue.core.errors import EnvError
from retinue.eval.measures.captions import cider
from retinue.eval.measures.meteor import clean, meteor

ROWS = [
    {
        "text": "A red bird sits on the table.",
        "references": ["a red bird on a table", "the bird sits on a green table near a cat"],
    },
    {"text": "two dogs run", "references": ["two dogs run on the green grass", "Dogs run!"]},
    {
        "text": "a cat near a blue cat",
        "references": ["a blue cat sits near two birds", "the cat is blue"],
    },
]
ZEROS = " 0.0" * 12
STATS = {
    "a red bird sits on the table": f"7.0 6.0 3.0 3.0 3.0 3.0 2.0 2.0{ZEROS} 3.0 5.0 5.0",
    "two dogs run": f"3.0 2.0 1.0 0.0 2.0 2.0 0.0 0.0{ZEROS} 1.0 2.0 2.0",
    "a cat near a blue cat": f"6.0 7.0 2.0 2.0 3.0 3.0 1.0 1.0{ZEROS} 2.0 4.0 4.0",
}
SCORES = [0.4048987165017618, 0.4660191824608054, 0.2886221522793508, 0.3598722643645785]
JAVA = """#!{python}
import sys
stats, scores = {stats!r}, {scores!r}
assert sys.argv[1] == "-jar" and sys.argv[3].endswith("meteor-1.5.jar"), sys.argv
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(stats[parts[-1]], flush=True)
    else:
        assert parts == list(stats.values()), parts
        print(*scores, sep="\\n", flush=True)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a `java` on the path that answers as METEOR's program did."""
    jar = tmp_path / "meteor-1.5.jar"
    jar.write_bytes(b"")

    def put(scores):
        java = tmp_path / "java"
        java.write_text(JAVA.format(python=sys.executable, stats=STATS, scores=scores), "utf-8")
        java.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("METEOR_JAR", str(jar))

    return put


def test_captions_get_meteor_beside_cider(program):
    program(SCORES)
    found = cider(ROWS)
    assert found["meteor"] == pytest.approx(0.3598722643645785)
    assert list(found) == ["cider", "bleu1", "bleu2", "bleu3", "bleu4", "meteor"]


def test_a_program_that_breaks_off_is_an_error(program):
    program(SCORES[:2])
    with pytest.raises(EnvError, match="METEOR's program failed"):
        cider(ROWS)


@pytest.mark.parametrize(
    ("path", "jar", "says"),
    [("", "x.jar", "Java is not installed"), (None, "nowhere.jar", "meteor-1.5.jar is not there")],
)
def test_without_it_a_line_says_so(path, jar, says, program, tmp_path, monkeypatch):
    program(SCORES)
    if path is not None:
        monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("METEOR_JAR", str(tmp_path / jar))
    monkeypatch.setattr(log, "_said", set())
    assert meteor(["a"], [["a"]]) is None
    assert "meteor" not in cider(ROWS)
    (line,) = log._said
    assert says in line


def test_marks_of_the_protocol_are_taken_out():
    assert clean("a ||| b\n c") == "a b c"
