"""MMBench's submission: a spreadsheet with a column of predictions."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

Row = Mapping[str, Any]
LEFT_OUT = ("hint", "category", "source", "image", "comment", "l2-category")
NUMBERS = ("index",)
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1" '
    f'Type="{_RELATIONS}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_RELATIONS}"><sheets>'
    '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_RELATIONS}/worksheet" Target="worksheets/sheet1.xml"/>'
    "</Relationships>",
}


def mmbench(rows: Sequence[Row]) -> bytes:
    """MMBench's server: an .xlsx with the benchmark's rows and `prediction` before `split`.

    Pictures, hints, categories and sources are left out, as LLaVA's conversion does.
    """
    columns, lines = mmbench_rows(rows)
    return xlsx(columns, lines)


def mmbench_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """(columns, lines) of the sheet: fields as published, None where a cell is empty."""
    first = [row for row in rows if str(row["id"]) == str(row["fields"]["index"])]
    names = [name for name in (first[0]["fields"] if first else ()) if name not in LEFT_OUT]
    at = len(names) - ("split" in names)
    lines = []
    for row in first:
        cells: list[Any] = [
            int(row["fields"][name]) if name in NUMBERS else row["fields"][name] or None
            for name in names
        ]
        lines.append([*cells[:at], row["text"] or None, *cells[at:]])
    return [*names[:at], "prediction", *names[at:]], lines


def xlsx(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> bytes:
    """A workbook of one sheet; the same input gives the same bytes."""
    body = "".join(
        f'<row r="{number}">' + "".join(_cell(*one, number) for one in enumerate(line)) + "</row>"
        for number, line in enumerate([columns, *lines], start=1)
    )
    sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{body}</sheetData></worksheet>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**_PARTS, "xl/worksheets/sheet1.xml": sheet}.items():
            entry = zipfile.ZipInfo(name)  # dated 1980, so that equal sheets are equal files
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return buffer.getvalue()


def _cell(column: int, value: Any, row: int) -> str:
    if value is None:
        return ""
    place = f"{_letters(column)}{row}"
    if isinstance(value, int | float):
        return f'<c r="{place}"><v>{value}</v></c>'
    clean = "".join(char for char in str(value) if char >= " " or char in "\n\t")
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(clean)}</t></is></c>'


def _letters(column: int) -> str:
    name = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        name = chr(65 + rest) + name
    return name
