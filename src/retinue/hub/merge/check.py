"""May these checkpoints be merged? What of their configs, tokenizers and tensors disagrees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from retinue.convert.keymap import shorten
from retinue.core.compose import join_path, leaves
from retinue.core.errors import CheckpointError
from retinue.hub.merge.tensors import Checkpoint
from retinue.hub.sources import has_tokenizer
from retinue.model.freeze import matches
from retinue.text.tokenizer import Tokenizer

SILENT = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "*dtype",
    "use_cache",
    "output_*",
    "return_dict",
    "id2label",
    "label2id",
    "problem_type",
    "chunk_size_feed_forward",
)
"""Last names of config fields that change nothing about what weights mean."""

NOTED = ("*dropout*", "*drop_path*", "initializer_*", "*_token_id", "max_position_embeddings")
"""Fields of training, of the tokenizer's roles and of length: the first's are taken, and said."""

ABSENT = "absent"
HISTORY = "foreign"
"""What a config keeps of the folder it came from."""


@dataclass(slots=True)
class Disagreements:
    """refused: what forbids a merge; notes: what is only said."""

    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(
    first: Checkpoint,
    others: Sequence[Checkpoint],
    *,
    used: Callable[[Checkpoint, str], bool],
    accept: Sequence[str],
) -> Disagreements:
    """All disagreements with the first, whose settings count. used: is a tensor merged at all?"""
    found = Disagreements()
    tokens = token_ids(first)
    for other in others:
        for path, ours, theirs in differing(fields_of(first), fields_of(other)):
            last = path.rpartition(".")[2].strip('"')
            line = f"{path} is {ours!r} in {first.label}, {theirs!r} in {other.label}"
            if any(fnmatchcase(last, pattern) for pattern in NOTED) or _accepted(path, accept):
                found.notes.append(f"{line}; the former is kept")
            elif not any(fnmatchcase(last, pattern) for pattern in SILENT):
                found.refused.append(line)
        for path, ours, theirs in differing(first.opened.processor, other.opened.processor):
            if ABSENT not in (ours, theirs):  # which is a default that the other spells out
                line = f"processor: {path} is {ours!r} in {first.label}, {theirs!r} in "
                found.notes.append(f"{line}{other.label}; the former is kept")
        clash = _clash(tokens, token_ids(other))
        if clash:
            line = f"tokenizer: {clash} of {first.label} and {other.label}"
            (found.notes if _accepted("tokenizer", accept) else found.refused).append(line)
        found.refused += _misfits(first, other, used=used)
        found.notes += _only_in_one(first, other)
    return found


def require_alike(found: Disagreements) -> None:
    """Raise CheckpointError naming everything that forbids the merge."""
    if not found.refused:
        return
    shapes = any("has the shape" in line for line in found.refused)
    fixes = []
    if any("has the shape" not in line for line in found.refused):
        fixes.append("name fields that may differ: --accept FIELD (or accept: in the recipe)")
    if shapes:
        fixes.append(
            "leave a tensor of another shape out by the weight 0, such as "
            "--weight-of 'lm.lm_head.weight=1,0'"
        )
    raise CheckpointError(
        "; ".join(shorten(found.refused)),
        where="merge",
        rule="models that are merged have one architecture and one vocabulary",
        fix="; ".join(fixes),
    )


def fields_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """A config as it reads in JSON, without its history."""
    data = checkpoint.opened.config.to_dict()
    kept = {key: value for key, value in data.items() if key != HISTORY}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, our value, their value) of all leaves that differ; ABSENT for none."""
    left, right = dict(leaves(ours)), dict(leaves(theirs))
    for path in dict.fromkeys([*left, *right]):
        a, b = left.get(path, ABSENT), right.get(path, ABSENT)
        if a != b and not (a in (ABSENT, None) and b in (ABSENT, None)):
            yield join_path(path), a, b


def token_ids(checkpoint: Checkpoint) -> dict[int, str]:
    """Id -> token of a folder's vocabulary, empty where it has none."""
    folder = checkpoint.opened.tokenizer
    if not has_tokenizer(folder):
        return {}
    tokenizer = Tokenizer.load(folder)
    if checkpoint.opened.added:
        tokenizer = tokenizer.with_tokens(checkpoint.opened.added, pad=checkpoint.opened.pad)
    return {number: token for token, number in tokenizer.pieces.ids.items()}


def _clash(ours: Mapping[int, str], theirs: Mapping[int, str]) -> str:
    other = [n for n in sorted(ours.keys() & theirs.keys()) if ours[n] != theirs[n]]
    if not other:
        return ""
    first = other[0]
    return f"{len(other)} ids mean other tokens ({first}: {ours[first]!r}, {theirs[first]!r})"


def _accepted(path: str, accept: Sequence[str]) -> bool:
    return any(matches(pattern, path) for pattern in accept)


def _misfits(
    first: Checkpoint, other: Checkpoint, *, used: Callable[[Checkpoint, str], bool]
) -> list[str]:
    return [
        f"{name} has the shape {tuple(shape)} in {first.label}, "
        f"{tuple(other.shapes[name])} in {other.label}"
        for name, shape in first.shapes.items()
        if name in other and other.shapes[name] != shape and used(other, name)
    ]


def _only_in_one(first: Checkpoint, other: Checkpoint) -> list[str]:
    notes = []
    for holder, lacking, what in (
        (first, other, "merged without it"),
        (other, first, "left out"),
    ):
        names = [name for name in holder.shapes if name not in lacking]
        if names:
            listed = ", ".join(shorten(names, limit=4))
            notes.append(f"{len(names)} tensors only in {holder.label}, {what}: {listed}")
    return notes
