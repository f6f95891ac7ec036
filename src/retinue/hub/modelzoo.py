"""ModelZoo's folders opened: a checkpoint with its YAML, or the pair of HF folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retinue.convert.detect import Found
from retinue.convert.llava import ENCODER
from retinue.convert.modelzoo import import_modelzoo
from retinue.convert.modelzoo_find import model_section
from retinue.convert.modelzoo_keys import WRAPPER
from retinue.convert.towers import OPENAI
from retinue.convert.translation import FOREIGN
from retinue.hub.held import AS_IS, Held
from retinue.hub.sources import Opened, open_folder
from retinue.hub.stream import Source, skeleton
from retinue.model.connectors.base import build

PAIR = ("image_model", "text_model")


def open_modelzoo(found: Found) -> Opened:
    """A converter's or a training run's checkpoint beside its YAML. Raises CheckpointError."""
    where = str(found.folder)
    made = import_modelzoo(model_section(found.config) or {}, where=where)
    names = list(found.weights)
    keys = made.keys
    if names and all(name.startswith(WRAPPER) for name in names):
        keys = keys.under(WRAPPER)
    return Opened(
        format="mm_simple",
        folder=found.folder,
        config=made.config,
        processor=made.processor,
        tokenizer=found.folder,
        sources=[Source(weights=found.weights, keys=keys, label=where)],
        notes=made.notes,
        default=made.processor["template"]["name"],
    )


def open_pair(found: Found, *, encoders: Mapping[str, str | Path] | None = None) -> Opened:
    """The two folders as one LLaVA; without a projector it gets a new one (seed 0)."""
    image, text = (found.folder / name for name in PAIR)
    opened = open_folder(text, encoders=encoders or {ENCODER: image})
    opened.format, opened.folder = "hf-pair", found.folder
    kept = opened.config.foreign
    kept["tower_carried"] = True
    (tower,) = opened.config.encoders.values()
    published = OPENAI.get(str(kept["config"].get("mm_vision_tower")), {})
    if any(getattr(tower, name, value) != value for name, value in published.items()):
        del kept["config"]["mm_vision_tower"]  # the folder beside it is another tower
    known = (source.keys.to_retinue(name) for source in opened.sources for name in source.weights)
    if not any(name and name.startswith("connector.") for name in known):
        opened.sources.append(new_connector(opened))
        opened.notes.append("the pair holds no projector: a new one was drawn (seed 0)")
    return opened


def new_connector(opened: Opened) -> Source:
    """A connector's weights, uniform within one over the root of each layer's inputs."""
    plan = skeleton(opened.config).plan
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build(plan.spec.connector, plan.shapes, plan.lm_width)
    state: dict[str, Any] = {f"connector.{k}": v for k, v in made.state_dict().items()}
    kept = getattr(opened.config, FOREIGN, {}).get("config", {})
    dtype = getattr(torch, str(kept.get("torch_dtype") or "float32"), torch.float32)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    return Source(weights=Held(state), keys=AS_IS, label="a new projector")
