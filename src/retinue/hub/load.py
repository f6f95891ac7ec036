"""Any known folder or hub id -> a model and its processor."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from retinue.convert.keymap import Coverage
from retinue.core.errors import CheckpointError, ConfigError, DataError
from retinue.core.log import get_logger, once
from retinue.hub.adapters import attach
from retinue.hub.resolve import resolve
from retinue.hub.sources import Encoders, Opened, open_folder
from retinue.hub.stream import fill, skeleton, widths
from retinue.model.quant.swap import Quantizer
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan
from retinue.processor import Processor, ProcessorSpec
from retinue.text.template import Template
from retinue.text.templates.hf import HfTemplate
from retinue.text.tokenizer import Tokenizer
from retinue.types import Message, Text

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

TemplateChoice = str | dict[str, Any] | Template | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model, its processor, where they came from and what became of every key."""

    model: Retinue
    processor: Processor
    opened: Opened
    coverage: Coverage


def load(
    path: str | Path,
    *,
    adapters: Sequence[str | Path] = (),
    base: str | Path | None = None,
    encoders: Encoders = None,
    template: TemplateChoice = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    keep_adapter: bool = False,
    quant: str | None = None,
    quant_encoders: bool = False,
    quant_head: bool = False,
    rope: str | None = None,
    mesh: DeviceMesh | None = None,
    follows: bool = False,
    room: Sequence[tuple[torch.device, int]] = (),
) -> tuple[Retinue, Processor]:
    """A model in eval mode and its processor, from a folder or hub id in any known format.

    adapters: LoRA folders in PEFT's layout to put on top; base: what a projector, LoRA or adapter
    stands on; encoders: {name: PATH} of towers; template: overrides the folder's or its
    architecture's; dtype: of all weights, default that of the files; keep_adapter: a LLaVA LoRA
    stays an adapter instead of being folded into the weights; quant: a format of fewer bits for the
    language model's linear layers (`retinue ls quants`), quant_encoders and quant_head: for these
    too. Weights change format one by one as they are read; adapters stay on top, unmerged.
    rope: how a language model with dynamic NTK scaling measures length (`retinue ls ropes`).
    mesh: one line of processes that share the language model's layers, each of which reads its part
    alone; all of them call this together (`retinue.parallel.tensor`); follows: this one only runs
    the layers for the first, and reads nothing else (`retinue.parallel.tensor_lead`).
    room: devices with their free bytes, `device` first, over which the layers are spread where that
    one is too small.
    Raises ConfigError for an unknown format; CheckpointError for folders that are no checkpoint,
    incomplete or truncated, or parts that do not fit each other; EnvError when the hub cannot be
    reached or the package of a format is missing.
    """
    found = load_with_report(
        path,
        adapters=adapters,
        base=base,
        encoders=encoders,
        template=template,
        device=device,
        dtype=dtype,
        keep_adapter=keep_adapter,
        quant=quant,
        quant_encoders=quant_encoders,
        quant_head=quant_head,
        rope=rope,
        mesh=mesh,
        follows=follows,
        room=room,
    )
    return found.model, found.processor


def load_with_report(
    path: str | Path | Opened,
    *,
    adapters: Sequence[str | Path] = (),
    base: str | Path | None = None,
    encoders: Encoders = None,
    template: TemplateChoice = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    keep_adapter: bool = False,
    quant: str | None = None,
    quant_encoders: bool = False,
    quant_head: bool = False,
    rope: str | None = None,
    mesh: DeviceMesh | None = None,
    follows: bool = False,
    room: Sequence[tuple[torch.device, int]] = (),
) -> Loaded:
    """As `load`, with the coverage of every key; also of what `open_sphinx` has opened."""
    quantizer = None
    if quant is not None and mesh is not None:
        raise ConfigError(
            f"weights as {quant} in {mesh.size()} processes",
            where="quant",
            rule="weights of few bits are not divided",
            fix="leave one of both out",
        )
    if quant is not None:  # a wrong name or a missing package fails before anything is read
        quantizer = Quantizer.of(quant, encoders=quant_encoders, head=quant_head)
    if isinstance(path, Opened):
        opened = path
    else:
        opened = open_folder(path, base=base, encoders=encoders, keep_adapter=keep_adapter)
    if rope is not None:
        opened.config.spec["rope"] = rope
    processor = make_processor(opened, template=template)
    model = skeleton(opened.config)
    divider = None
    if mesh is not None:
        from retinue.parallel.tensor import Divider
        from retinue.parallel.tensor_lead import slim

        if follows and not (adapters or opened.adapters):
            slim(model)
        divider = Divider(model, mesh)
    whole = {} if divider is None else divider.shapes()
    spread = None
    if mesh is None and len(room) > 1:
        from retinue.parallel.spread import Spread

        wide = widths(model, opened.sources, dtype=dtype, quantizer=quantizer)
        spread = Spread(model, room, widths=wide)
        spread = spread if spread.needed else None
    coverage = fill(
        model,
        opened.sources,
        dtype=dtype,
        device=device,
        where=str(opened.folder),
        quantizer=quantizer,
        divider=divider,
        spread=spread,
    )
    if coverage.unused and not follows:
        get_logger().warning(f"{opened.folder}: {coverage}")
    file = opened.folder / "generation_config.json"
    if file.exists():
        model.generation_config = GenerationConfig.from_pretrained(opened.folder)
    names = iter(["default", *(f"adapter{number}" for number in range(2, 100))])
    for folder in [*opened.adapters, *map(resolve, adapters)]:
        attach(
            model,
            folder,
            opened=opened,
            name=next(names),
            device=None if spread else device,
            whole=whole,
        )
    if divider is not None:
        divider.finish()
    model.config._name_or_path = str(opened.folder if isinstance(path, Opened) else path)
    return Loaded(model=model.eval(), processor=processor, opened=opened, coverage=coverage)


def make_processor(opened: Opened, *, template: TemplateChoice = None) -> Processor:
    """The processor of an opened folder; a default template is said once.

    Raises CheckpointError where neither folder nor architecture names a template.
    """
    for note in opened.notes:
        once(note)
    config = opened.config
    vocab = int(getattr(config.get_text_config(), "vocab_size", 0) or 0)
    slow = opened.format.startswith("llava") and config.get_text_config().model_type == "llama"
    slow = slow or opened.format == "sphinx"
    tokenizer = Tokenizer.load(opened.tokenizer, model_vocab=vocab, slow=slow)
    if opened.added:
        tokenizer = tokenizer.with_tokens(opened.added, pad=opened.pad)
    settings = dict(opened.processor)
    if template is not None:
        asked = chosen(template)
        if opened.format == "retinue":
            _warn_other(settings.get("template"), asked, where=str(opened.folder))
        settings["template"] = asked
    elif opened.format != "retinue":
        settings["template"] = default_template(opened, tokenizer)
    spec = ProcessorSpec.parse(settings, where=f"{opened.folder}/processor.json")
    return Processor(Plan(config), tokenizer=tokenizer, spec=spec)


def _warn_other(kept: Any, asked: Any, *, where: str) -> None:
    """One line where a model is asked in another dialect than it was saved with."""
    old, new = (t.get("name") if isinstance(t, dict) else t for t in (kept, asked))
    if old and old != new:
        once(
            f"{where}: the model was saved with the template {old}; using {new} as asked, which it "
            "may not understand",
            level=logging.WARNING,
        )


def chosen(template: str | dict[str, Any] | Template) -> str | dict[str, Any]:
    """A template as processor.json keeps it. Raises ConfigError for an unknown name."""
    from retinue.text.template import dump, resolve

    return dump(resolve(template))


def default_template(opened: Opened, tokenizer: Tokenizer) -> str | dict[str, Any]:
    """The folder's own chat template if it can be used, else its architecture's documented one."""
    if opened.format.startswith("hf"):
        own = _chat_template(tokenizer, opened)
        if own is not None:
            return own
    if opened.default is None:
        raise CheckpointError(
            "no template in the folder, and none is documented for a language model of type "
            f"{opened.config.get_text_config().model_type!r}",
            where=str(opened.folder),
            fix="choose one with template= or --template (`retinue ls templates`)",
        )
    once(
        f"{opened.folder}: no template in the folder, using {opened.default}, the default of its "
        f"architecture (--template overrides)"
    )
    fields = {k: v for k, v in opened.processor["template"].items() if v is not None}
    return str(fields["name"]) if set(fields) == {"name"} else fields


def _chat_template(tokenizer: Tokenizer, opened: Opened) -> dict[str, Any] | None:
    """The folder's Jinja template, if a question comes through it; else None."""
    if tokenizer.chat_template is None:
        return None
    image = tokenizer.token_of(int(opened.config.spec["image_token_id"]))
    try:
        made = HfTemplate.of(tokenizer)
        made = made.model_copy(update={"mark": image or made.mark})
        text = made.text([Message(role="user", parts=(Text(text="ping"),))], reply=True)
    except (DataError, ConfigError):
        return None
    return made.model_dump(mode="json") if "ping" in text else None
