"""result.html: figures, breakdowns and every kind of answer beside its picture, failures first.

One file without scripts or links to elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image, ImageOps

from retinue.core.errors import MediaError
from retinue.eval.benchmark import in_unit, reference_table
from retinue.eval.page_curve import curve
from retinue.eval.questions import Question
from retinue.media.image import load_image
from retinue.types import Media

THUMBNAIL = 224
WRONG, RIGHT = 40, 12
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:64em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}
td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}
td.t,th.t{text-align:left}
pre{background:#f6f6f6;padding:1em;overflow:auto;white-space:pre-wrap}
.big{font-size:2.4em;font-weight:600;margin:.2em 0}
.list{display:grid;grid-template-columns:repeat(auto-fill,minmax(25em,1fr));gap:1em}
.answer{display:flex;gap:1em;min-width:0;padding-left:.8em;align-items:flex-start;
border-left:4px solid #d55e00}
.answer.ok{border-color:#009e73}.answer.part{border-color:#e69f00}
.answer>div{min-width:0;overflow-wrap:anywhere}
.answer img{max-width:11em;border:1px solid #ddd}
.q{font-weight:600;white-space:pre-wrap;margin:.2em 0}.r{color:#666;margin:.2em 0}
.bar{display:inline-block;height:.8em;background:#0072b2;vertical-align:baseline}
.bar.own{background:#d55e00}tr.own td{font-weight:600}
.track{display:inline-block;width:12em;background:#eee;text-align:left}
@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#222}
td,th{border-color:#444}.track{background:#333}.r{color:#aaa}}
"""


def render_page(
    document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], questions: Sequence[Question]
) -> str:
    """The page of one benchmark as text. rows: in the order of the questions they answer."""
    own = document["benchmark"]
    asked = {question.sample.id: question for question in questions}
    scored = [row for row in rows if row["score"] is not None]
    wrong = sorted((row for row in scored if row["score"] < 1), key=lambda row: row["score"])
    right = [row for row in scored if row["score"] >= 1]
    silent = [row for row in rows if row["score"] is None]
    parts = [
        f"<h1>{escape(own['name'])}</h1><p>{escape(own['about'])}</p>",
        headline(own, document["counts"]),
        curve(document["comparison"]) if "comparison" in document else "",
        *(bars(name, groups) for name, groups in own["groups"].items()),
    ]
    lists = (
        ("Wrong answers", wrong, WRONG),
        ("Right answers", right, RIGHT),
        ("Answers without a public key", silent, RIGHT),
    )
    for title, some, most in lists:
        if some:
            said = f", {most} shown" if len(some) > most else ""
            parts.append(f"<h2>{title} ({len(some)}{said})</h2>")
            listed = "".join(answer(row, asked.get(row["id"])) for row in some[:most])
            parts.append(f'<div class="list">{listed}</div>')
    parts += [published(document), figures(own["metrics"]), f"<h2>Pinned</h2>{pinned(own)}"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(own['name'])}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def headline(own: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    """The score with its interval, and how many questions it stands on."""
    if own["score"] is None:
        score = "<p class='r'>No score: the answers are not public, or a judge was not named.</p>"
    else:
        low, high = (in_unit(own[key], own["unit"]) for key in ("low", "high"))
        score = (
            f'<p class="big">{in_unit(own["score"], own["unit"])}</p>'
            f'<p class="r">{escape(next(iter(own["metrics"])))} × {own["unit"]:g},'
            f" 95 % interval {low} to {high}</p>"
        )
    left = f", {counts['skipped']} without an answer" if counts["skipped"] else ""
    return f"{score}<p>{counts['answered']} of {counts['questions']} questions{left}</p>"


def published(document: Mapping[str, Any]) -> str:
    """Published figures and this one as bars, highest first."""
    header, lines = reference_table([document])
    if not lines:
        return ""
    own = document["benchmark"]
    rows = [(float(line[2]), line[1], line[3], line[4]) for line in lines]
    if own["score"] is not None:
        rows.append((own["score"] * own["unit"], "this result", "", ""))
    top = max(max(score for score, *_ in rows), own["unit"] if own["unit"] == 100 else 0.0, 1e-9)
    body = ""
    for score, model, gap, source in sorted(rows, key=lambda row: -row[0]):
        mine = " own" if model == "this result" else ""
        bar = f"<span class='bar{mine}' style='width:{12 * max(score, 0) / top:.2f}em'></span>"
        body += (
            f"<tr class='{mine.strip()}'><td>{escape(model)}</td><td>{score:.1f}</td>"
            f"<td class='t'><span class='track'>{bar}</span></td><td>{escape(gap)}</td>"
            f"<td class='t'>{escape(source)}</td></tr>"
        )
    names = (header[1], "score", "", header[3], header[4])
    head = "".join(f"<th{' class=t' if n == 4 else ''}>{name}</th>" for n, name in enumerate(names))
    return f"<h2>Published figures</h2><table><tr>{head}</tr>{body}</table>"


def bars(name: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """The mean score of each value of a fact."""
    top = max((group["score"] for group in groups.values()), default=1) or 1
    lines = "".join(
        f"<tr><td>{escape(value)}</td><td>{group['count']}</td>"
        f"<td>{group['score'] * 100:.1f} %</td><td class='t'><span class='track'>"
        f"<span class='bar' style='width:{12 * group['score'] / max(top, 1):.2f}em'></span></span>"
        "</td></tr>"
        for value, group in groups.items()
    )
    return (
        f"<h2>By {escape(name)}</h2><table><tr><th>{escape(name)}</th><th>questions</th>"
        f"<th>mean score</th><th></th></tr>{lines}</table>"
    )


def figures(metrics: Mapping[str, float]) -> str:
    if len(metrics) < 2:
        return ""
    lines = [[name, f"{value:.4g}"] for name, value in metrics.items()]
    body = table(["figure", "value"], lines)
    return f"<h2>All figures</h2><details><summary>{len(lines)} figures</summary>{body}</details>"


def table(header: Sequence[str], lines: Sequence[Sequence[Any]], *, text: Any = ()) -> str:
    """A table; the columns numbered in `text` are words."""

    def cells(line: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=t' if n in text else ''}>{escape(str(cell))}</{tag}>"
            for n, cell in enumerate(line)
        )

    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in lines)
    return f"<table><tr>{cells(header, 'th')}</tr>{body}</table>"


def answer(row: Mapping[str, Any], question: Question | None) -> str:
    """One question with its pictures, the answer, what was expected, and the score."""
    kind = "" if not row["score"] else " ok" if row["score"] >= 1 else " part"
    last = question.sample.messages[-1].media if question else []  # not those of examples
    shown = "".join(thumbnail(one) for one in last)
    wanted = " | ".join(dict.fromkeys(row["references"]))
    expected = f'<p class="r">expected: {escape(wanted)}</p>' if wanted else ""
    score = "" if row["score"] is None else f", {row['score']:.2f}"
    ranked = ", ".join(
        f"{name} {value:.2f}" for name, value in [*row.get("ranking", {}).items()][:3]
    )
    expected += f'<p class="r">likeliest: {escape(ranked)}</p>' if ranked else ""
    if row.get("review"):
        expected += f"<details><summary>the judge</summary>{escape(row['review'])}</details>"
    return (
        f'<div class="answer{kind}">{shown}<div><p class="q">{escape(row["question"])}</p>'
        f"<p>{escape(row['text']) or '<i>nothing</i>'}</p>{expected}"
        f'<p class="r">{escape(str(row["id"]))}{score}</p></div></div>'
    )


def thumbnail(media: Media) -> str:
    """A picture as an img element; a video by its name."""
    if media.kind == "video" or isinstance(media.source, tuple):
        return f'<p class="r">{escape(str(media.source)[:120])}</p>'
    try:
        source = media.source
        image = source if isinstance(source, Image.Image) else load_image(source, where="page")
    except MediaError as error:
        return f'<p class="r">{escape(str(error))}</p>'
    small = ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def pinned(own: Mapping[str, Any]) -> str:
    """What the score means: prompt, decoding, scorer and its version, and the source."""
    fixed = own["pinned"]
    decoding = ", ".join(f"{key} {value}" for key, value in fixed["decoding"].items() if value)
    lines = [
        ["task version", fixed["version"]],
        ["scorer", fixed["scorer"]],
        ["measure", fixed["measure"]],
        ["decoding", decoding],
        ["source", own["source"]],
    ]
    return f"{table(['what', 'value'], lines, text=(0, 1))}<pre>{escape(fixed['prompt'])}</pre>"
