"""M3's nested scales in foreign formats: the config key, and where the projector stands below them.

Reference: mu-cai/matryoshka-mm (`matryoshka_vis_token_scale` in config.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.core.errors import CheckpointError, ConfigError
from retinue.model.spec import Plan, RetinueConfig

SCALES = "matryoshka_vis_token_scale"
"""Field of M3's config.json: tokens per view that it was trained with, or null."""

BARE, NESTED = "connector.net", "connector.of.net"
"""Where the projector's weights stand, alone and below an elastic node."""


def scales_of(config: Mapping[str, Any], *, where: str) -> list[int]:
    """The scales of a config.json, a list or its comma-separated text; empty for a plain LLaVA."""
    said = config.get(SCALES)
    if not said:
        return []
    try:
        parts = said.strip("[]").split(",") if isinstance(said, str) else said
        scales = [int(part) for part in parts]
    except (TypeError, ValueError):
        scales = [0]
    if min(scales) < 1:
        raise CheckpointError(
            f"{SCALES} {said!r:.60}", where=where, rule="a list of positive numbers of tokens"
        )
    return scales


def projector_place(config: Mapping[str, Any], *, where: str) -> str:
    """Our name of what the original calls `mm_projector`."""
    return NESTED if scales_of(config, where=where) else BARE


def nested(connector: dict[str, Any], scales: list[int]) -> dict[str, Any]:
    """The connector pooled to the scales after its projection, as M3 pools."""
    return {"kind": "elastic", "scales": scales, "of": connector} if scales else connector


def settle_rounding(config: RetinueConfig, *, where: str) -> None:
    """Scales that the grid only meets by the original's rounding choose that rounding.

    Raises CheckpointError for scales that no rounding meets, which the original could not run.
    """
    node = config.spec["connector"]
    if node["kind"] != "elastic":
        return
    for rounding in ("exact", "original"):
        config.spec["connector"] = {**node, "rounding": rounding}
        plan = Plan(config)
        try:
            plan.spec.connector.num_tokens(plan.shapes, None)
            return
        except ConfigError as error:
            refused = error
    raise CheckpointError(
        f"{SCALES} {node['scales']}: {refused.what}", where=where, rule=refused.rule
    ) from refused


def unwrapped(node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the connector inside, the elastic node around it or None) of a dumped connector tree."""
    if node.get("kind") == "elastic":
        return dict(node["of"]), dict(node)
    return dict(node), None


def scale_fields(config: RetinueConfig, old: Mapping[str, Any]) -> dict[str, Any]:
    """The config field to write; `old`: the imported config.json, whose spelling is kept."""
    plan = Plan(config)
    if plan.spec.connector.kind != "elastic":
        return {SCALES: None} if SCALES in old else {}
    scales = list(getattr(plan.spec.connector, "scales", [])) or plan.budgets
    if scales == scales_of(old, where="config.json"):
        return {SCALES: old[SCALES]}
    return {SCALES: scales}


def budget_note(config: RetinueConfig, *, to: str) -> list[str]:
    """One line on what an export to `llava` or `hf` makes of an elastic connector."""
    plan = Plan(config)
    if plan.spec.connector.kind != "elastic":
        return []
    full = plan.spec.connector.num_tokens(plan.shapes, None).length
    if to == "hf":
        return [f"transformers cannot pool: the export always uses all {full} tokens of a view"]
    if plan.spec.budget is None:
        return []
    return [
        f"the default budget of {plan.spec.budget} is not kept, the format names it at each call: "
        f"generate(..., matryoshka_vis_token_scale={plan.spec.budget})"
    ]
