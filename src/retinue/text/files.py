"""What the small JSON files beside a vocabulary say, by the rules of transformers 4.37."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.core.errors import CheckpointError

NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
BESIDE = ("generation_config.json", "chat_template.json", "processor_config.json")
"""Read for what they say of answers, and not kept: a saved folder says it in its own files."""

CHAT_TEMPLATE = "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A token beside the trained vocabulary; id None: wherever the vocabulary has it, or next."""

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The files of a tokenizer folder (name -> bytes) and what they say."""

    files: Mapping[str, bytes]
    config: Mapping[str, Any]
    roles: Mapping[str, str | None]
    added: tuple[Added, ...] = ()
    eos_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    where: str = "tokenizer"

    @property
    def class_name(self) -> str:
        """The slow or fast class the folder was saved by; LlamaTokenizer where it says nothing."""
        return str(self.config.get("tokenizer_class") or "LlamaTokenizer")


@dataclass(slots=True)
class _Json:
    files: Mapping[str, bytes]
    where: str
    seen: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads(self.files.get(name, b"{}"))
        except ValueError as error:
            raise CheckpointError(
                f"{name} is not valid JSON", where=self.where, rule=str(error)
            ) from None
        return data if isinstance(data, dict) else {}


def read_folder(folder: str | Path) -> dict[str, bytes]:
    """The tokenizer files of a folder, whole. Raises CheckpointError if it has no vocabulary."""
    root = Path(folder)
    names = (*NAMES, *BESIDE)
    files = {name: (root / name).read_bytes() for name in names if (root / name).is_file()}
    if not files.keys() & {"tokenizer.json", "tokenizer.model"}:
        raise CheckpointError(
            "no tokenizer here",
            where=str(folder),
            rule="a tokenizer folder has tokenizer.json or tokenizer.model",
            fix="copy the tokenizer files of the language model into the folder",
        )
    file = "tokenizer_config.json"
    if b'"processor_class"' in files.get(file, b""):
        files[file] = _without_processor(files[file])
    return files


def _without_processor(data: bytes) -> bytes:
    """A tokenizer_config.json that names no processor: AutoProcessor would take it, not ours."""
    try:
        config = json.loads(data)
    except ValueError:
        return data  # read_facts names the file
    if isinstance(config, dict):
        config.pop("processor_class", None)
    return json.dumps(config, indent=2, ensure_ascii=False).encode("utf-8")


def read_facts(files: Mapping[str, bytes], *, where: str = "tokenizer") -> Facts:
    """Interpret tokenizer files. Raises CheckpointError for malformed JSON."""
    read = _Json(files, where)
    config, special_map = read("tokenizer_config.json"), read("special_tokens_map.json")
    decoder = config.get("added_tokens_decoder") or {}
    roles: dict[str, str | None] = {}
    added: list[Added] = [
        _added(value, id=int(key), special=bool(value.get("special", False)))
        for key, value in decoder.items()
    ]
    defaults = _defaults(config, files)
    for role in ROLES:
        # Old folders keep their latest choice in special_tokens_map.json: it wins there.
        newest = special_map.get(role) if not decoder else None
        value = newest or config.get(role) or special_map.get(role) or defaults.get(role)
        roles[role] = _content(value)
        if value:
            added.append(_added(value))
    extra = config.get("additional_special_tokens") or special_map.get("additional_special_tokens")
    added.extend(_added(value) for value in extra or ())
    names = {token.content for token in added}
    old = read("added_tokens.json")
    listed = [
        Added(content=text, id=int(i), special=text in names)
        for text, i in sorted(old.items(), key=lambda pair: int(pair[1]))
    ]
    unique: dict[str, Added] = {}
    for token in listed + added:
        unique.setdefault(token.content, token)
    stop = read("generation_config.json").get("eos_token_id")
    template, apart = _chat_template(read, files)
    kept = dict(files)
    if template is not None and apart:
        kept[CHAT_TEMPLATE] = template.encode("utf-8")
    return Facts(
        files={name: kept[name] for name in NAMES if name in kept},
        config=config,
        roles=roles,
        added=tuple(unique.values()),
        eos_ids=tuple(stop) if isinstance(stop, list) else (() if stop is None else (int(stop),)),
        chat_template=template,
        where=where,
    )


def _defaults(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, str]:
    if "tokenizer.json" in files:
        return {}
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {role: text for role, text in defaults.items() if role not in config}


def _content(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return str(value["content"])
    return None if value in (None, "") else str(value)


def _added(value: Any, *, id: int | None = None, special: bool = True) -> Added:
    flags = value if isinstance(value, Mapping) else {}
    return Added(
        content=_content(value) or "",
        id=id,
        special=special,
        lstrip=bool(flags.get("lstrip", False)),
        rstrip=bool(flags.get("rstrip", False)),
    )


def _chat_template(read: _Json, files: Mapping[str, bytes]) -> tuple[str | None, bool]:
    """The folder's default template, and whether it stands apart from tokenizer_config.json.

    The order is that of transformers 5's processors, then its tokenizers: processor_config.json,
    chat_template.json (both of older folders), chat_template.jinja, tokenizer_config.json.
    """
    for name in ("processor_config.json", "chat_template.json"):
        value = read(name).get("chat_template")
        if value:
            return _default(value), True
    if CHAT_TEMPLATE in files:
        return files[CHAT_TEMPLATE].decode("utf-8"), True
    return _default(read("tokenizer_config.json").get("chat_template")), False


def _default(value: Any) -> str | None:
    """Of several named templates, the one for chats."""
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}
    if isinstance(value, Mapping):
        value = value.get("default")
    return None if value is None else str(value)
