"""Read hooks: one raw record -> turns of regions, under the names that ModelZoo's configs use.

A turn is {"type": role, "content": [{"text": ...} or {"image": path}], and lists beside content:
"semantic_loss_weight", "semantic_drop_mask", "semantic_attention_mask"}; documents have no type.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retinue.core.errors import ConfigError, DataError
from retinue.core.registry import nearest

Turn = dict[str, Any]
Hook = Callable[..., list[Turn]]
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def _turns(example: Mapping[str, Any], kwargs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a conversation. Raises DataError for a role nobody knows."""
    role_key = kwargs.get("multi_turn_role_key") or "from"
    content_key = kwargs.get("multi_turn_content_key") or "value"
    found = []
    for turn in example.get(kwargs["multi_turn_key"]) or []:
        role = ROLES.get(str(turn.get(role_key)))
        if role is None:
            raise DataError(
                f"unknown role {turn.get(role_key)!r}", rule=f"roles are {', '.join(ROLES)}"
            )
        found.append((role, turn.get(content_key) or ""))
    return found


def _picture_first(
    text: str, mark: str, path: Any, role: str, *, strip: bool
) -> list[dict[str, Any]]:
    count = text.count(mark)
    if role == "assistant" and count:
        raise DataError("image tokens are not allowed in the assistant's role")
    if count > 1:
        raise DataError(
            f"Multiple image tokens found in {role}'s role. Only one image token is allowed."
        )
    if not count:
        return [{"text": text.strip() if strip else text}]
    before, _, after = text.partition(mark)
    rest = before.strip() + after.strip()
    return [{"image": path}, *([{"text": rest}] if rest else [])]


def finetuning_llava_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """A LLaVA conversation: its picture in front of the turn that names it.

    phase 1 drops the words beside the picture, phase 2 keeps them.
    """
    mark, phase = kwargs["image_token"], int(kwargs["phase"])
    path = example.get(kwargs["image_key"])
    found = []
    for role, text in _turns(example, kwargs):
        content = _picture_first(text, mark, path, role, strip=True)
        turn: Turn = {"type": role, "content": content}
        if "image" in content[0]:
            turn["semantic_drop_mask"] = [False] + [phase == 1] * (len(content) - 1)
        found.append(turn)
    return found


def finetuning_llava_hook_prompt_completion(
    example: Mapping[str, Any], *, exact: bool = False, **kwargs: Any
) -> list[Turn]:
    """The same as prompt and completion. exact: a later question without picture fails."""
    mark, phase = kwargs["image_token"], int(kwargs["phase"])
    path = example.get(kwargs["image_key"])
    if not path:
        raise DataError("Image data does not have a path")
    names = {"user": "prompt", "assistant": "completion", "system": "system"}
    found = []
    for role, text in _turns(example, kwargs):
        content = _picture_first(text, mark, path, role, strip=False)
        turn: Turn = {"type": names[role], "content": content}
        if role == "user":
            picture = "image" in content[0]
            mask = [False] + [phase == 1] * (len(content) - 1) if picture else [False]
            turn["semantic_drop_mask"] = [] if exact and not picture else mask
        found.append(turn)
    return found


def _path_of(image: Any) -> Any:
    return image.get("path") if isinstance(image, Mapping) else image


def pretraining_image_captions_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """A picture, then its caption, as one document."""
    image = _path_of(example.get(kwargs["image_key"]))
    return [{"content": [{"image": image}, {"text": example.get(kwargs["caption_key"]) or ""}]}]


def finetuning_image_captions_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """The picture as prompt, its caption as completion."""
    image = _path_of(example.get(kwargs["image_key"]))
    return [
        {"type": "prompt", "content": [{"image": image}]},
        {"type": "completion", "content": [{"text": example.get(kwargs["caption_key"]) or ""}]},
    ]


def text_read_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """Plain text as one document."""
    return [{"content": [{"text": example.get(kwargs["text_key"]) or ""}]}]


def chat_read_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """A conversation without pictures."""
    named = {"multi_turn_content_key": "content", "multi_turn_role_key": "role", **kwargs}
    return [{"type": role, "content": [{"text": text}]} for role, text in _turns(example, named)]


def prompt_completion_text_read_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """A prompt and its completion."""
    return [
        {"type": "prompt", "content": [{"text": example.get(kwargs["prompt_key"]) or ""}]},
        {"type": "completion", "content": [{"text": example.get(kwargs["completion_key"]) or ""}]},
    ]


def interleaved_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """Any number of pictures in place: `image_key` lists their paths, the text their marks."""
    paths = example.get(kwargs["image_key"])
    left = list(paths if isinstance(paths, list) else [paths] if paths else [])
    mark, found = kwargs.get("image_token", "<image>"), []
    for role, text in _turns(example, kwargs):
        content: list[dict[str, Any]] = []
        for number, piece in enumerate(text.split(mark)):
            if number:
                if not left:
                    raise DataError(
                        f"more {mark} than the {len(paths or [])} pictures",
                        rule="every mark in the text takes the next picture",
                    )
                content.append({"image": left.pop(0)})
            if piece.strip():
                content.append({"text": piece})
        found.append({"type": role, "content": content or [{"text": ""}]})
    if left:
        raise DataError(
            f"{len(left)} pictures without {mark}",
            rule="every mark in the text takes the next picture",
        )
    return found


def obelics_hook(example: Mapping[str, Any], **kwargs: Any) -> list[Turn]:
    """A web document: lists of pictures and texts of one length, one of both null at each place.

    A picture that is an address stands in image_dir under the name that the original's example
    saves it as, the start of its file name's SHA-256; nothing is fetched here.
    """
    pictures = example.get(kwargs["image_key"]) or []
    texts = example.get(kwargs["caption_key"]) or []
    if len(pictures) != len(texts):
        raise DataError(
            f"{len(pictures)} pictures beside {len(texts)} texts",
            rule="each place of a document is a picture or a text, and null in the other list",
        )
    content: list[dict[str, Any]] = []
    for picture, text in zip(map(_path_of, pictures), texts, strict=True):
        if picture:
            content.append({"image": saved_as(str(picture))})
        if text:
            content.append({"text": text})
    return [{"content": content}]


def saved_as(place: str) -> str:
    """The file that an address was saved as; a path is itself."""
    if "://" not in place:
        return place
    name = place.rpartition("/")[2]
    return hashlib.sha256(name.encode()).hexdigest()[:10] + ".png"


HOOKS: dict[str, Hook] = {
    hook.__name__: hook
    for hook in (
        finetuning_llava_hook,
        finetuning_llava_hook_prompt_completion,
        pretraining_image_captions_hook,
        finetuning_image_captions_hook,
        text_read_hook,
        chat_read_hook,
        prompt_completion_text_read_hook,
        interleaved_hook,
        obelics_hook,
    )
}


def find_hook(name: str, *, file: Path | None) -> Hook:
    """A hook by its name, with or without `module:`; one of the user's own comes from `file`.

    Raises ConfigError for an unknown one. No module that a config names is imported.
    """
    own = name.rpartition(":")[2]
    if file is not None:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        hook: Hook | None = getattr(module, own, None)
        if hook is not None:
            return hook
    if own in HOOKS:
        return HOOKS[own]
    hint = nearest(own, list(HOOKS))
    raise ConfigError(
        f"unknown read_hook {own!r}" + (f"; did you mean {hint!r}?" if hint else ""),
        where="processing.read_hook",
        rule=f"known: {', '.join(HOOKS)}",
        fix="for a hook of your own, name its file: --hooks FILE.py",
    )
