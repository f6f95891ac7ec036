"""Every scorer of the table against literal cases of the evaluation that it follows.

Expected values come from the official rules: worked out by hand from their texts, or what their
scripts give. A scorer without cases fails the first test, so that none is added untested.
"""

import re

import pytest

from retinue.eval.measures import MEASURES
from retinue.eval.scorers import SCORERS, headline
from retinue.eval.submissions import SUBMISSIONS

TEN = ["red"] * 7 + ["dark red"] * 2 + ["crimson"]
POSE = "nose [10,10] left_knee [30,50]"
BOX = "[0.1,0.1,0.5,0.5]"
CASES = {
    # vqaEval: numbers, articles and marks are normalised; min(1, others / 3), mean over annotators
    "vqa": [
        ("red", TEN, 1.0),
        ("Dark red.", TEN, 0.6),
        ("crimson", TEN, 0.3),
        ("the red", TEN, 1.0),
        ("two", ["2"] * 10, 1.0),
        ("dont", ["don't"] * 10, 1.0),
        ("blue", TEN, 0.0),
    ],
    # MMF's TextVQA evaluator, leaving one annotator out
    "textvqa": [("red", TEN, 1.0), ("dark red", TEN, 0.6), ("crimson", TEN, 0.3)],
    "gqa": [("Yes.", ["yes"], 1.0), ("yes it is", ["yes"], 0.0)],
    "letter": [("A", ["A"], 1.0), ("A.", ["A"], 0.0), ("a", ["A"], 0.0)],
    "scienceqa": [
        ("B", ["B"], 1.0),
        ("B. a dog", ["B"], 1.0),
        ("The answer is B.", ["B"], 1.0),
        ("The answer is A. The answer is B.", ["B"], 0.0),
        ("(B)", ["B"], 0.0),
    ],
    "pope": [
        ("No, there is none", ["no"], 1.0),
        ("There is not a dog", ["no"], 1.0),
        ("None", ["yes"], 1.0),
        ("Yes. No", ["yes"], 1.0),
    ],
    "mme": [("Yes, it is", ["Yes"], 1.0), ("No.", ["No"], 1.0), ("It is a yes", ["Yes"], 0.0)],
    "exact-nodot": [("A.B. ", ["ab"], 1.0), ("yes!", ["yes"], 0.0)],
    # ChartQA: 5 % of the target, percent signs divide by 100, zero is compared as text
    "relaxed": [
        ("10.5", ["10"], 1.0),
        ("10.6", ["10"], 0.0),
        ("50%", ["0.5"], 1.0),
        ("0.0", ["0"], 0.0),
        ("0", ["0"], 1.0),
        ("spain", ["Spain"], 1.0),
        ("1,000", ["1000"], 0.0),
    ],
    # DocVQA: 1 - distance / longest, 0 below 0.5
    "anls": [
        ("hello", ["hello"], 1.0),
        ("hallo", ["Hello"], 0.8),
        ("abcd", ["wxyz", "abcz"], 0.75),
        ("ab", ["abcde"], 0.0),
    ],
    # MMMU: (A), then `A `, then `A.`, then texts of options; open answers by text or number
    "mmmu": [
        ("(B)", ["B", "(A) red", "(B) blue"], 1.0),
        ("B is right", ["B", "(A) red", "(B) blue"], 1.0),
        ("The colour of it must be blue", ["B", "(A) red", "(B) blue"], 1.0),
        ("So the result is 1,200.", ["1200"], 1.0),
        ("x = 3.14159", ["3.14"], 1.0),
        ("thirteen", ["13"], 0.0),
    ],
    # IG-VLM: `A:` or `A)` anywhere, else the first character
    "igvlm": [("B) runs", ["B"], 1.0), ("C", ["C"], 1.0), ("best answer is D: x", ["D"], 1.0)],
    "choice": [
        ("B", ["B"], 1.0),
        ("(b) a dog", ["B"], 1.0),
        ("The answer is C", ["C"], 1.0),
        ("the second", ["B"], 0.0),
    ],
    # GAOKAO-MM: the last letter; several letters after the mark, half for a part of the key
    "gaokao": [("A is wrong, B", ["B"], 1.0), ("B, not A", ["B"], 0.0), ("none", ["A"], 0.0)],
    "gaokao-several": [
        ("分析【答案】AC", ["AC"], 1.0),
        ("分析【答案】A", ["AC"], 0.5),
        ("分析【答案】AD", ["AC"], 0.0),
    ],
    "exact": [("Red.", ["red"], 1.0), ("a red", ["red"], 0.0)],
    "contains": [("It is a cat.", ["cat"], 1.0), ("category", ["cat"], 0.0)],
    # 1 - 1/6: one letter of six
    "text": [("street", ["Street"], 1.0), ("streat", ["street"], 5 / 6)],
    # SQuAD: 2 common words of 3 and 2: F1 = 2 * 2 / 5
    "caption": [("a red dog", ["red dog"], 0.8), ("cat", ["red dog"], 0.0)],
    # ROUGE-L: common subsequence of 2 words of 3 and 2
    "rouge-l": [("the dogs run", ["dog runs"], 0.8), ("cat", ["dog"], 0.0)],
    "number": [("There are three.", ["3"], 1.0), ("1,000", ["1000"], 1.0), ("four", ["3"], 0.0)],
    # two boxes of 4 x 4 tenths, one moved by 2: 8 / 24
    "iou": [(BOX, [BOX], 1.0), ("[0.3,0.1,0.7,0.5]", [BOX], 1 / 3), ("nowhere", [BOX], 0.0)],
    "iou50": [("[0.1,0.1,0.5,0.4]", [BOX], 1.0), ("[0.3,0.1,0.7,0.5]", [BOX], 0.0)],
    "det": [(BOX, [BOX], 1.0), ("[0.6,0.6,0.9,0.9]", [BOX], 0.0)],
    "grounded": [(f"<p>a dog</p>{BOX}", [f"<p>a dog</p>{BOX}"], 1.0)],
    "oks": [(POSE, [POSE], 1.0), ("left_knee [30,50]", [POSE], 0.5)],
    "relations": [
        ("dog, on, mat", ["dog, on, mat; cat, near, dog"], 2 / 3),
        ("cat, near, dog; dog, on, mat", ["dog, on, mat; cat, near, dog"], 1.0),
    ],
}


def test_every_scorer_has_literal_cases():
    assert set(CASES) == set(SCORERS)


@pytest.mark.parametrize(
    ("name", "said", "references", "wanted"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_scores_of_the_official_rules(name, said, references, wanted):
    scores = SCORERS.get(name)(said, references)
    assert headline(scores) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_scorer_names_where_its_rule_comes_from(name):
    said = " ".join((SCORERS.get(name).__doc__ or "").split())
    assert re.search(r"arXiv \d{4}\.\d{4,5}|https?://|[Oo]ur own", said), said


@pytest.mark.parametrize("table", [MEASURES, SUBMISSIONS], ids=["measures", "submissions"])
def test_measures_and_submissions_say_what_they_are(table):
    for name in table:
        assert len((table.get(name).__doc__ or "").split()) > 3, name
