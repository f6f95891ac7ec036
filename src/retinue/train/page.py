"""report.html: loss curve, trainable table, sample answers beside their pictures, the recipe.

One file without scripts or links to elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image, ImageOps

from retinue.core.errors import MediaError
from retinue.media.image import load_image
from retinue.model.freeze import HEADER, TrainableTable
from retinue.train.evaluator import Answer

WIDE, HIGH, EDGE = 760, 280, 46
THUMBNAIL = 224
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}
table{border-collapse:collapse}
td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
pre{background:#f6f6f6;padding:1em;overflow:auto}
.answer{display:flex;gap:1em;margin:1em 0;align-items:flex-start}
.answer img{max-width:14em;image-rendering:auto;border:1px solid #ddd}
.q{font-weight:600}.r{color:#666}svg{width:100%;height:auto}
@media (prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#222}
td,th{border-color:#444}}
"""


def render_page(
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    tables: Mapping[str, TrainableTable],
    metrics: Mapping[str, Any],
    answers: Iterable[Answer],
    skipped: Sequence[str],
    recipe: str,
) -> str:
    """The page as text. rows: those that the sinks were given."""
    parts = [f"<h1>{escape(title)}</h1>", _pairs(metrics), "<h2>Loss</h2>", curve(rows)]
    scores = [row for row in rows if row["kind"] == "evaluation"]
    if scores:
        parts += ["<h2>Scores on the way</h2>", evaluations(scores)]
    shown = [_answer(answer) for answer in answers]
    if shown:
        parts += ["<h2>Sample answers</h2>", *shown]
    for name, table in tables.items():
        parts += [f"<h2>What trained in {escape(name)}</h2>", _table(table)]
    if skipped:
        items = "".join(f"<li>{escape(line)}</li>" for line in skipped)
        parts.append(f"<h2>{len(skipped)} samples were skipped</h2><ul>{items}</ul>")
    parts.append(f"<h2>Recipe</h2><pre>{escape(recipe)}</pre>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def evaluations(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line of a table for every round of questions, the highest of each column in bold."""
    left_out = ("kind", "stage")
    names = [name for name in rows[-1] if name not in left_out]
    most = {name: max(float(row.get(name, 0)) for row in rows) for name in names[1:]}
    head = "".join(f"<th>{escape(name)}</th>" for name in ("update", *names[1:]))
    body = ""
    for row in rows:
        cells = [f"<td>{row['step']}</td>"]
        for name in names[1:]:
            text = f"{row[name]:.4f}" if name in row else ""
            best = name in row and row[name] == most[name]
            cells.append(f"<td>{f'<b>{text}</b>' if best else text}</td>")
        body += f"<tr>{''.join(cells)}</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Training loss as a line and validation losses as dots, in SVG."""
    train = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
    held = [(row["step"], row["loss"]) for row in rows if row["kind"] == "validation"]
    points = train + held
    if not points:
        return "<p>No update was logged.</p>"
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)

    def place(step: float, loss: float) -> tuple[float, float]:
        x = EDGE + (WIDE - EDGE - 10) * (step - first) / max(last - first, 1)
        y = 10 + (HIGH - EDGE) * (high - loss) / max(high - low, 1e-9)
        return round(x, 1), round(y, 1)

    line = " ".join("{},{}".format(*place(*point)) for point in train)
    dots = "".join(
        '<circle cx="{}" cy="{}" r="3" fill="#d55e00"/>'.format(*place(*point)) for point in held
    )
    marks = "".join(
        f'<text x="4" y="{place(first, loss)[1] + 4}">{loss:.3g}</text>'
        for loss in sorted({low, (low + high) / 2, high})
    )
    marks += "".join(
        f'<text x="{place(step, low)[0]}" y="{HIGH - 10}" text-anchor="{anchor}">{step}</text>'
        for step, anchor in ((first, "start"), (last, "end"))
    )
    legend = "training loss by update" + (", dots: validation" if held else "")
    return (
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{legend}" font-size="12" '
        f'fill="currentColor"><polyline points="{line}" fill="none" stroke="#0072b2" '
        f'stroke-width="1.5"/>{dots}{marks}</svg><p class="r">{legend}</p>'
    )


def picture(source: Image.Image | str) -> str:
    """A thumbnail as an img element."""
    try:
        image = source if isinstance(source, Image.Image) else load_image(source, where="report")
    except MediaError as error:
        return f'<p class="r">{escape(str(error))}</p>'
    small = ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def _answer(answer: Answer) -> str:
    expected = f'<p class="r">expected: {escape(answer.reference)}</p>' if answer.reference else ""
    return (
        f'<div class="answer">{"".join(picture(one) for one in answer.pictures)}<div>'
        f'<p class="q">{escape(answer.question)}</p><p>{escape(answer.answer)}</p>'
        f"{expected}</div></div>"
    )


def _pairs(values: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{_number(value)}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{cells}</table>"


def _table(table: TrainableTable) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{_number(cell)}</td>" for cell in row) + "</tr>"
        for row in table.cells()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
