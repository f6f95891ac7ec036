"""SPHINX's checkpoints (LLaMA2-Accessory) in our terms: variants, config, parameters.

Reference: Alpha-VLLM/LLaMA2-Accessory (model arguments, parameter names, picture sizes);
SPHINX (arXiv 2311.07575), SPHINX-X (arXiv 2402.05935).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retinue.convert.groups import Group, modules
from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.sphinx_lm import (
    Experts,
    experts_layout,
    lm_groups,
    prefix_groups,
    text_config,
)
from retinue.convert.sphinx_vision import (
    CLIP,
    CONVNEXT,
    DINO,
    EVA,
    LEFTOVER,
    Given,
    encoder_configs,
    encoder_groups,
    present,
    qformer_groups,
    qformer_spec,
)
from retinue.convert.translation import FOREIGN, Translation
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.model.encoders.clip import MEAN, STD
from retinue.model.spec import ModelSpec, RetinueConfig

FORMAT = "sphinx"
IMAGE_ID = -200
"""Placeholder id; the original has none, and no tokenizer produces it."""

VIT_SIDE, FINAL = 224, 1000
GRID = 16
"""Rows and columns of a view's tokens: 224 pixels in patches of 14."""

Precision = Literal["original", "clean"]
"""original: normalised pixels resampled in fp16 without antialiasing, 224 to 256 by nearest.
clean: every view from the picture itself by Pillow's filters, normalised in fp32 at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """side: of the square that a picture becomes; across: tiles per row; wide: ConvNeXt's view.

    halved: tiles are shown at half the resolution.
    """

    side: int = VIT_SIDE
    across: int = 1
    wide: int | None = None
    sees: bool = True
    halved: bool = False


TEXT = Variant(sees=False)
VARIANTS: dict[str, Variant] = {
    **dict.fromkeys(("llama", "llama_peft", "llama_adapter"), TEXT),
    **dict.fromkeys(("mixtral", "mixtral_sparse", "mixtral_peft"), TEXT),
    **dict.fromkeys(("llama_ens", "llama_ens_peft"), Variant()),
    **dict.fromkeys(("llama_qformerv2", "llama_qformerv2_peft"), Variant()),
    "llama_ens5": Variant(side=448, across=2),
    "llama_ens5p2": Variant(side=448, across=2, halved=True),
    "llama_ens10": Variant(side=672, across=3),
    "llama_ens_light": Variant(side=512, wide=512),
    "llama_ens5_light": Variant(side=1024, across=2, wide=512),
    "mixtral_sparse_ens": Variant(side=512, wide=512),
    "mixtral_sparse_ens5": Variant(side=1024, across=2, wide=512),
}
"""What `meta.json` calls them; sizes are the original's constants."""


def variant(llama_type: str | None, weights: Weights, *, where: str) -> tuple[str, Variant]:
    """Name and sizes of a checkpoint's variant; Meta's folders name none and have no encoder.

    Raises CheckpointError for an unknown name, or where only a name could tell.
    """
    if llama_type is None:
        if present(weights):
            raise CheckpointError(
                "no meta.json says which model this is",
                where=where,
                rule="the size of its pictures is not in the weights",
                fix='name it: llama_type=NAME, or meta.json with {"llama_type": NAME}; one of '
                + ", ".join(name for name, v in VARIANTS.items() if v.sees),
            )
        layout = experts_layout(weights)
        if "prefix" in weights:
            return "llama_adapter", TEXT
        plain = {None: "llama", "sparse": "mixtral_sparse", "base": "mixtral"}
        return plain[layout], TEXT
    if llama_type not in VARIANTS:
        raise CheckpointError(
            f"llama_type {llama_type!r}", where=where, rule=f"known: {', '.join(VARIANTS)}"
        )
    return llama_type, VARIANTS[llama_type]


def import_sphinx(
    args: Mapping[str, Any],
    weights: Weights,
    *,
    llama_type: str | None = None,
    given: Given | None = None,
    precision: Precision = "original",
    where: str,
) -> Translation:
    """Config and processor settings of a checkpoint; weights: whole, without `llma.`.

    args: its config.json; given: {encoder or "qformer": fields} that the weights cannot tell;
    precision: how pictures are resampled, see `Precision`.
    Raises CheckpointError for what does not fit together.
    """
    name, sizes = variant(llama_type, weights, where=where)
    given = given or {}
    text = text_config(args, weights, where=where)
    encoders = encoder_configs(weights, given)
    joined = fusion(weights, where=where)
    if sizes.sees != bool(encoders):
        raise CheckpointError(
            f"{name} {'without' if sizes.sees else 'with'} encoders in its weights",
            where=where,
            rule="released checkpoints hold their encoders, frozen or not",
        )
    spec: dict[str, Any] = {
        "encoders": encoder_specs(encoders, sizes, precision=precision),
        "connector": connector(weights, encoders, sizes, given) if encoders else {"kind": "blind"},
        "layout": layout(weights, sizes) if encoders else {"kind": "plain"},
        "fusion": joined,
        "image_token_id": IMAGE_ID,
    }
    config = RetinueConfig(
        text_config=text,
        encoders=encoders,
        spec=spec,
        **{FOREIGN: {"format": FORMAT, "llama_type": name, "config": dict(args)}},
    )
    return Translation(
        config=config,
        processor={
            "template": {"name": "accessory"},
            "labels": "accessory",
            **pictures(sizes, precision=precision),
        },
        keys=KeyMap([Rule("{rest}", "{rest}")], ignorable=("rope.freqs", *LEFTOVER)),
    )


def encoder_specs(
    encoders: Mapping[str, Any], sizes: Variant, *, precision: Precision = "original"
) -> dict[str, Any]:
    """The encoders of a model: all of them read one stream, but where ConvNeXt has its own."""
    clean = precision == "clean"
    specs: dict[str, Any] = {}
    for name in encoders:
        if name == EVA:
            specs[name] = {"kind": "blip2"}
        elif name == CLIP:
            specs[name] = {"kind": "clip"}
        elif name == DINO:
            specs[name] = {"kind": "dinov2", "size": VIT_SIDE, "offset": 0.1}
            if not clean:
                specs[name]["adapt"] = {"mean": MEAN, "std": STD}
        elif clean:
            specs[name] = {"kind": "convnext", "size": sizes.wide or 256, "stream": "wide"}
        elif sizes.wide is None:
            specs[name] = {"kind": "convnext", "size": 256}
            specs[name]["adapt"] = {"size": 256, "filter": "nearest", "half": True}
        else:
            specs[name] = {"kind": "convnext", "size": sizes.wide, "stream": "wide"}
            if sizes.across == 1:
                specs[name]["adapt"] = {"half": True}
    return specs


def connector(
    weights: Weights, encoders: Mapping[str, Any], sizes: Variant, given: Given
) -> dict[str, Any]:
    """Q-Former tokens, then the mixture's, each projected and normalised."""

    def take(name: str, *, prefix: bool = True) -> dict[str, Any]:
        return {"kind": "take", "encoder": name, "layer": FINAL, "prefix": prefix}

    branches = []
    if "qformer_proj.0.weight" in weights:
        query = {**qformer_spec(weights, given), "of": take(EVA)}
        branches.append({"kind": "linear", "norm": True, "of": query})
    if "visual_proj.0.weight" in weights:
        repeat = 1 if sizes.wide else 2
        parts = []
        for name in (CLIP, CONVNEXT, DINO):
            if name == CONVNEXT and name in encoders:
                cells = take(name, prefix=False)
                parts.append({"kind": "regrid", "repeat": repeat, "mean": True, "of": cells})
            elif name in encoders:
                parts.append(take(name))
        mixed: dict[str, Any] = {"kind": "channel", "parts": parts}
        if sizes.halved:
            mixed = {"kind": "pyramid", "of": mixed}
        branches.append({"kind": "linear", "norm": True, "of": mixed})
    return branches[0] if len(branches) == 1 else {"kind": "sequence", "parts": branches}


def fusion(weights: Weights, *, where: str) -> dict[str, Any]:
    """Splice, or the prefixes of LLaMA-Adapter. Raises CheckpointError for its visual form."""
    if "visual_query" in weights:
        raise CheckpointError(
            "llama_adapter with pictures",
            where=where,
            rule="its prefixes without pictures are read; visual prompts inside them are not",
        )
    if "prefix" not in weights:
        return {"kind": "splice"}
    layers, _, length, _ = weights.shape("prefix")
    return {"kind": "prefix", "length": length, "layers": layers}


def layout(weights: Weights, sizes: Variant) -> dict[str, Any]:
    """Every view in brackets; halved tiles show queries, class token and the coarse grid."""
    if "start_img" not in weights:
        return {"kind": "plain"}
    if not sizes.halved:
        return {"kind": "bracket"}
    queries = weights.shape("qformer.query_tokens")[1] if "qformer.query_tokens" in weights else 0
    fine = queries + 1 + GRID * GRID
    tile = [(0, queries + 1), (fine, fine + GRID * GRID // 4)]
    return {"kind": "bracket", "whole": [(0, fine)], "tile": tile}


def pictures(sizes: Variant, *, precision: Precision = "original") -> dict[str, Any]:
    """View policy and pixel streams."""
    if precision == "clean":
        wide = {"rgb": {"size": VIT_SIDE}, "wide": {"size": sizes.wide or 256}}
        kinds = {1: "pad", 2: "quad", 3: "nine"}
        return {"views": {"kind": kinds[sizes.across]}, "streams": wide}
    streams: dict[str, Any] = {"rgb": {"size": VIT_SIDE}}
    if sizes.wide is not None:
        streams["wide"] = {"size": sizes.wide}
    if sizes.side == VIT_SIDE:
        return {"views": {"kind": "pad"}, "streams": streams}
    views = {"kind": "accessory", "side": sizes.side, "across": sizes.across}
    return {"views": views, "streams": streams}


def sphinx_groups(
    config: RetinueConfig, *, experts: Experts, names: Weights | None = None
) -> list[Group]:
    """All parameters of a model; names: those of a checkpoint, where it has LoRA to fold in."""
    found = lm_groups(config.text_config, experts=experts, names=names)
    for name, encoder in config.encoders.items():
        found += encoder_groups(name, encoder)
    spec = ModelSpec.parse(config.spec, where="model").model_dump()
    for place, node in branches_of(spec["connector"]):
        query = node["of"]["kind"] == "qformer"
        their = "qformer_proj" if query else "visual_proj"
        found += modules({f"{their}.0": f"{place}net", f"{their}.1": f"{place}norm"})
        if query:
            found += qformer_groups(node["of"], f"{place}of.")
    if spec["fusion"]["kind"] == "prefix":
        found += prefix_groups(config.text_config, layers=spec["fusion"]["layers"])
    if spec["layout"]["kind"] == "bracket":
        for their, our in (("start_img", "layout.start"), ("end_img", "layout.end")):
            found.append(
                Group(
                    (their,),
                    (our,),
                    read=lambda t: [t[0].flatten()],
                    write=lambda t: [t[0][None, None]],
                )
            )
    return found


def branches_of(node: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(place, node) of each projected branch of a connector that this format can hold."""
    if node["kind"] == "blind":
        return []
    if node["kind"] == "sequence":
        return [(f"connector.parts.{i}.", part) for i, part in enumerate(node["parts"])]
    return [("connector.", node)]


def trained(name: str) -> bool:
    """Whether the original's tuning changes a parameter of ours: all but encoders and Q-Former."""
    own = (".net.weight", ".net.bias", ".norm.weight", ".norm.bias")
    if name.startswith("connector."):
        return ".of." not in name and name.endswith(own)
    return name.startswith(("lm.", "layout."))
