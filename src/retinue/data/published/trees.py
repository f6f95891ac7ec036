"""OpenAssistant's trees of messages (arXiv 2304.07327)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retinue.core.errors import DataError
from retinue.data.published.dialogs import rows_of
from retinue.data.published.raw import Raw, Row, records, text_of

Tree = dict[str, Any]


def oasst1(raw: Raw) -> Iterator[Row]:
    """OpenAssistant: the best-ranked answer to every question, a row each (--split: a language).

    SRC holds trees (`prompt` with `replies`) or single messages (`parent_id`), JSONL or Parquet.
    """
    rows = list(records(raw.path))
    trees = [row["prompt"] for row in rows if isinstance(row.get("prompt"), dict)]
    for tree in trees or _grown(rows, where=str(raw.path)):
        if raw.split in (None, tree.get("lang")):
            yield from _walk(tree, past=[])


def _grown(rows: list[Tree], *, where: str) -> list[Tree]:
    """Trees of single messages."""
    nodes = {row.get("message_id"): {**row, "replies": []} for row in rows}
    roots = []
    for node in nodes.values():
        parent = node.get("parent_id")
        if parent in nodes and parent is not None:
            nodes[parent]["replies"].append(node)
        elif parent is None and "text" in node:
            roots.append(node)
    if not roots:
        raise DataError(
            "no message starts a conversation", where=where, rule="text, role, parent_id"
        )
    return roots


def _walk(question: Tree, *, past: list[tuple[str, str]]) -> Iterator[Row]:
    answers = [one for one in question.get("replies") or () if not one.get("deleted")]
    if not answers or question.get("deleted"):
        return
    best = min(answers, key=lambda one: one["rank"] if one.get("rank") is not None else 0)
    turns = [*past, (text_of(question, "text"), text_of(best, "text"))]
    yield rows_of(turns)[-1]
    for more in best.get("replies") or ():
        yield from _walk(more, past=turns)
