"""A new model from parts: a language model, encoders, and a fresh connector between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retinue.convert.llava import TEMPLATES
from retinue.core.errors import ConfigError
from retinue.core.log import once
from retinue.hub.elastic import make_elastic
from retinue.hub.grow import grown
from retinue.hub.held import AS_IS, Copied, Held
from retinue.hub.load import load
from retinue.hub.parts import Parts, fit_vocabulary, read_encoder, read_language, tokenizer_of
from retinue.hub.save import save
from retinue.hub.section import ModelSection
from retinue.hub.stream import Source, fill, skeleton
from retinue.model.adapters import adapter_names
from retinue.model.build import build_model
from retinue.model.connectors.base import build as build_connector
from retinue.model.encoders import ENCODERS
from retinue.model.layouts import LAYOUTS
from retinue.model.quant.swap import quantized_shapes
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One part of a model: where it came from and how many parameters were loaded or are new."""

    source: str
    loaded: int = 0
    new: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """A model, its processor, and the origin of each part."""

    model: Retinue
    processor: Processor
    groups: dict[str, Group]
    folder: Path | None = None

    def __str__(self) -> str:
        lines = [
            f"{name:<20} {group.loaded:>14,} loaded {group.new:>14,} new  {group.source}"
            for name, group in self.groups.items()
        ]
        return "\n".join(lines)


def build(
    model: Mapping[str, Any],
    out: str | Path | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device = "cpu",
    where: str = "model",
    quant: str | None = None,
) -> BuildReport:
    """Assemble the model that a recipe's `model:` section describes, and save it if `out` is given.

    New parts are initialised from the section's seed, loaded ones keep their weights; tokenizer:
    one made in this process, instead of the section's; quant: as in `load`, for `from` only.
    Raises ConfigError for a section or parts that do not fit, CheckpointError for bad folders.
    """
    section = ModelSection.parse(model, where=where)
    if section.source is not None:
        report = _existing(section, device=device, quant=quant)
    elif quant is not None:
        raise ConfigError(
            f"{quant} weights of a model that is yet to be assembled",
            where=where,
            rule="adapters are saved beside the full weights, which need a folder",
            fix="`retinue build RECIPE FOLDER`, then train with model.from=FOLDER",
        )
    else:
        report = _assembled(section, tokenizer=tokenizer, device=device, where=where)
    if out is None:
        return report
    folder = save(report.model, report.processor, out, provenance={"model": dict(model)})
    return BuildReport(
        model=report.model, processor=report.processor, groups=report.groups, folder=folder
    )


def _existing(
    section: ModelSection, *, device: str | torch.device, quant: str | None = None
) -> BuildReport:
    assert section.source is not None
    fixed = [n for n in ("connector", "layout", "fusion", "tokenizer") if getattr(section, n)]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} beside `from`",
            where="model",
            rule="a loaded model keeps its parts; only what its processor does can change",
            fix="give `lm` and `encoders` to assemble a new model",
        )
    named = {name: part.source for name, part in section.encoders.items() if part.source}
    made, processor = load(
        section.source,
        base=section.base,
        adapters=section.adapters,
        encoders=named or None,
        template=section.template,
        dtype=section.torch_dtype,
        device=device,
        quant=quant,
        rope=section.rope,
    )
    if quant is not None and adapter_names(made):
        raise ConfigError(
            f"adapters on {quant} weights cannot train on",
            where="model",
            rule="what trains are new adapters on the full model's weights",
            fix="fold them in first (`retinue convert FOLDER NEW --to retinue`)",
        )
    changes = {
        name: getattr(section, name)
        for name in ("views", "video", "streams", "labels", "max_tokens")
        if getattr(section, name) is not None
    }
    if section.scales is not None or section.budget is not None:
        make_elastic(made, processor, scales=section.scales, budget=section.budget)
    if changes:
        spec = {**processor.spec.model_dump(mode="json"), **changes}
        parsed = ProcessorSpec.parse(spec, where="model")
        processor = Processor(made.plan, tokenizer=processor.tokenizer, spec=parsed)
    groups = {
        name: Group(source=section.source, loaded=count(module))
        for name, module in parts_of(made).items()
    }
    return BuildReport(model=made, processor=processor, groups=groups)


def _assembled(
    section: ModelSection,
    *,
    tokenizer: Tokenizer | None,
    device: str | torch.device,
    where: str,
) -> BuildReport:
    parts = Parts()
    assert section.lm is not None
    read_language(section.lm, parts, where=f"{where}.lm")
    for name, part in section.encoders.items():
        read_encoder(name, part, parts, where=f"{where}.encoders.{name}")
    words = tokenizer or tokenizer_of(section, parts, where=where)
    rows = fit_vocabulary(parts, words, loaded=section.lm.source is not None, where=where)
    known = words.id_of("<image>")
    image_id = known if known is not None else max(rows, words.vocab_size)
    spec: dict[str, Any] = {
        "encoders": parts.specs,
        "connector": section.connector,
        "layout": section.layout or {"kind": "plain"},
        "fusion": section.fusion or {"kind": "splice"},
        "image_token_id": image_id if section.image_token_id is None else section.image_token_id,
        "budget": section.budget,
    }
    if section.rope is not None:
        spec["rope"] = section.rope
    config = RetinueConfig(
        text_config=parts.text,
        encoders=parts.configs,
        spec=spec,
        tie_word_embeddings=bool(parts.text.get("tie_word_embeddings", False)),
    )
    made = _weights(config, parts, section, rows=rows, device=device, where=where)
    processor = Processor(
        made.plan, tokenizer=words, spec=_processor_spec(section, made.plan, parts)
    )
    groups = {}
    for name, module in parts_of(made).items():
        loaded = name in parts.origin
        number = count(module)
        groups[name] = Group(
            source=parts.origin.get(name, "new"),
            loaded=number if loaded else 0,
            new=0 if loaded else number,
        )
    return BuildReport(model=made.eval(), processor=processor, groups=groups)


def _weights(
    config: RetinueConfig,
    parts: Parts,
    section: ModelSection,
    *,
    rows: int,
    device: str | torch.device,
    where: str,
) -> Retinue:
    """The model: new parts from the seed, the others from their files."""
    dtype = section.torch_dtype
    if "lm" not in parts.origin:
        made = build_model(config, seed=section.seed, dtype=dtype or torch.float32)
    else:
        made = skeleton(config)
        with torch.random.fork_rng():
            torch.manual_seed(section.seed)
            _renew(made, parts)
        tables = {f"lm.{made.lm.embed_name}.weight", f"lm.{made.lm.head_name}.weight"}
        pad = grown(tables, rows=rows)
        changes = {name: lambda t, name=name: pad(name, t) for name in tables}
        first = parts.sources[0]
        parts.sources[0] = replace(first, changes=changes)
        copies = {new: old for new in made.state_dict() if (old := made.fusion.copied(new))}
        copied = Copied(first.weights, first.keys, copies)
        parts.sources.append(Source(weights=copied, keys=AS_IS, label="copies"))
    new = (*(f"{name}." for name in parts_of(made) if name not in parts.origin), "lm.")
    own = {k: v for k, v in made.state_dict().items() if k.startswith(new) and not v.is_meta}
    sources = [*parts.sources, Source(weights=Held(own), keys=AS_IS, label="new")]
    fill(made, sources, dtype=dtype, device=device, where=where)
    return made


def _renew(made: Retinue, parts: Parts) -> None:
    """Replace the parts that no file holds by initialised ones."""
    plan = made.plan
    made.connector = build_connector(plan.spec.connector, plan.shapes, plan.lm_width)
    made.layout = LAYOUTS.get(plan.spec.layout.kind)(plan.spec.layout, plan.lm_width)
    for name, spec in plan.spec.encoders.items():
        if f"encoders.{name}" not in parts.origin:
            made.encoders[name] = ENCODERS.get(spec.kind)(spec, plan.config.encoders[name])
    made.fusion.renew(made.lm)


def parts_of(model: Retinue) -> dict[str, nn.Module]:
    """The groups that a report speaks of: lm, each encoder, connector, layout, fusion."""
    found: dict[str, nn.Module] = {"lm": model.lm}
    found |= {f"encoders.{name}": module for name, module in model.encoders.items()}
    found |= {"connector": model.connector, "layout": model.layout, "fusion": model.fusion}
    return {name: module for name, module in found.items() if count(module)}


def count(module: nn.Module) -> int:
    """Number of parameters, shared ones once, quantized ones by what they stand for."""
    frozen = sum(weight.numel() for weight in quantized_shapes(module).values())
    return frozen + sum(parameter.numel() for parameter in module.parameters())


def _processor_spec(section: ModelSection, plan: Plan, parts: Parts) -> ProcessorSpec:
    streams: dict[str, Any] = {}
    for name, shape in plan.shapes.items():
        stream = {"size": shape.size, "mean": shape.mean, "std": shape.std}
        if streams.setdefault(shape.stream, stream) != stream:
            raise ConfigError(
                f"encoder {name} wants its pictures otherwise than the others of stream "
                f"{shape.stream!r}",
                where="model.encoders",
                fix="give it a stream of its own: stream: NAME",
            )
    template = section.template
    if template is None:
        kind = parts.kind or plan.config.get_text_config().model_type
        template = TEMPLATES.get(kind)
        if template is None:
            raise ConfigError(
                f"no template, and none is documented for {kind}",
                where="model.template",
                fix="name one (`retinue ls templates`)",
            )
        once(f"no template given, using {template}, the default for {kind}")
    spec = {
        "views": section.views or {"kind": "pad"},
        "video": section.video or {"kind": "frames"},
        "streams": section.streams or streams,
        "template": template,
        "labels": section.labels or "assistant",
        "max_tokens": section.max_tokens,
    }
    return ProcessorSpec.parse(spec, where="model")
