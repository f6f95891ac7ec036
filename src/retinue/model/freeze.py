"""Which parameters a stage trains: rules over dotted names, the table they give, and its print.

trainable:
  "lm.**": {lora: {r: 128, alpha: 256}}
  "connector.**": {full: {lr: x0.1}}
  "lm.model.embed_tokens.weight": {rows: {of: [<image>]}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest
from retinue.model.adapters import LoraTarget, add_lora, linears
from retinue.model.freeze_rules import FullRule as FullRule
from retinue.model.freeze_rules import FullSpec as FullSpec
from retinue.model.freeze_rules import IdOf, RowsRule, rows_of
from retinue.model.freeze_rules import LoraRule as LoraRule
from retinue.model.freeze_rules import LoraSpec as LoraSpec
from retinue.model.freeze_rules import Rule as Rule
from retinue.model.freeze_rules import own_lr as own_lr
from retinue.model.quant.swap import quantized_shapes

NO_RULE = "(no rule)"
ADAPTER_KEYS = (".lora_A.", ".lora_B.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One rule: how many parameters it reached and how many numbers of them train."""

    group: str
    mode: str
    parameters: int
    trainable: int
    total: int
    lr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableTable:
    """The rules' outcome. `rule_of`: trainable parameter (adapters included) -> its row.

    rows_of: parameters of which only some rows train -> these.
    """

    rows: list[TableRow]
    rule_of: dict[str, int]
    lr: float
    rows_of: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Trainable parameters in the model's order."""
        return list(self.rule_of)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    def cells(self) -> list[tuple[str, str, int, int, int, str]]:
        """Printable rows under `HEADER`, the sum last."""
        body = [
            (
                r.group,
                r.mode,
                r.parameters,
                r.trainable,
                r.total,
                f"{r.lr:g}" if r.trainable else "",
            )
            for r in self.rows
        ]
        count = sum(row.parameters for row in self.rows)
        return [*body, ("all", "", count, self.trainable, self.total, "")]

    def to_json(self) -> dict[str, Any]:
        """What `trainable.json` holds."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "trainable": self.trainable,
            "total": self.total,
            "names": self.names,
        }


HEADER = ("group", "mode", "parameters", "trainable", "total", "lr")


def matches(pattern: str, name: str) -> bool:
    """Dotted glob: `*` within one part of the name, `**` over any number of parts.

    After `re:` a regular expression, found anywhere in the name.
    """
    if pattern.startswith("re:"):
        try:
            return re.search(pattern.removeprefix("re:"), name) is not None
        except re.error as error:
            raise ConfigError(
                f"{pattern!r} is no regular expression: {error}", where="train.stages.*.trainable"
            ) from None
    return re.fullmatch(_regex(pattern), name) is not None


def _regex(pattern: str) -> str:
    parts = []
    for piece in re.split(r"(\*\*|\*|\?)", pattern):
        parts.append({"**": r".*", "*": r"[^.]*", "?": r"[^.]"}.get(piece, re.escape(piece)))
    return "".join(parts)


def apply_rules(
    model: nn.Module, rules: Mapping[str, Rule], *, lr: float, id_of: IdOf | None = None
) -> TrainableTable:
    """Freeze, free and adapt the parameters of a model in place; the last matching rule wins.

    Parameters that no rule names are frozen. lr: the stage's learning rate. id_of: the ids of the
    tokens whose rows train.
    Raises ConfigError for a pattern that reaches nothing, if nothing is left to train, for a
    rule that would train quantized weights, and for rows that are not there.
    """
    names = [plain(name) for name, _ in model.named_parameters() if not is_adapter(name)]
    sizes = {plain(name): parameter.numel() for name, parameter in model.named_parameters()}
    frozen = {name: weight.numel() for name, weight in quantized_shapes(model).items()}
    sizes |= frozen
    patterns = list(rules)
    chosen = _choose([*names, *frozen], patterns)
    _refuse_frozen(rules, {name: chosen[name] for name in frozen})
    targets = _lora_targets(model, rules, chosen)
    if targets:
        add_lora(model, targets)
    rule_of: dict[str, int] = {}
    rows: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            layer = adapted_layer(name)
            index = patterns.index(targets[layer].rule) if layer in targets else None
        else:
            index = chosen[plain(name)]
            if index is not None and not _is_full(rules[patterns[index]]):
                index = None
        parameter.requires_grad_(index is not None)
        if index is not None:
            rule_of[name] = index
            rule = rules[patterns[index]]
            if isinstance(rule, RowsRule):
                rows[name] = rows_of(
                    rule.rows, model, pattern=patterns[index], name=name, id_of=id_of
                )
    if not rule_of:
        raise ConfigError(
            "nothing is trainable",
            where="train.stages.*.trainable",
            rule=f"rules are {dict(rules)}",
            fix="give a pattern the value full or lora",
        )
    return _table(model, rules, chosen=chosen, sizes=sizes, rule_of=rule_of, rows=rows, lr=lr)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a LoRA adapter."""
    return any(key in name for key in ADAPTER_KEYS)


def plain(name: str) -> str:
    """The name that a weight has without adapters."""
    return name.replace(".base_layer.", ".")


def adapted_layer(name: str) -> str:
    """`lm.….q_proj` of `lm.….q_proj.lora_A.default.weight`."""
    return re.split(r"\.lora_[AB]\.", name)[0]


def _choose(names: list[str], patterns: list[str]) -> dict[str, int | None]:
    chosen: dict[str, int | None] = dict.fromkeys(names)
    for index, pattern in enumerate(patterns):
        reached = [name for name in names if matches(pattern, name)]
        if not reached:
            known = _known_patterns(names)
            hint = nearest(pattern, known)
            raise ConfigError(
                f"pattern {pattern!r} matches no parameter"
                + (f"; did you mean {hint!r}?" if hint else ""),
                where="train.stages.*.trainable",
                rule=f"parameters live under {', '.join(_known_patterns(names, depth=1))}",
            )
        chosen.update(dict.fromkeys(reached, index))
    return chosen


def _known_patterns(names: list[str], depth: int = 9) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for size in range(1, min(len(parts), depth + 1)):
            found[".".join(parts[:size]) + ".**"] = None
        if depth > 1:
            found[name] = None
    return list(found)


def trained_names(model: nn.Module, rules: Mapping[str, Rule]) -> list[str]:
    """Parameters that these rules would train themselves, adapters not among them."""
    names = [plain(name) for name, _ in model.named_parameters() if not is_adapter(name)]
    patterns = list(rules)
    chosen = _choose([*names, *quantized_shapes(model)], patterns)
    full = {index for index, pattern in enumerate(patterns) if _is_full(rules[pattern])}
    return [name for name in names if chosen[name] in full]


def _refuse_frozen(rules: Mapping[str, Rule], chosen: Mapping[str, int | None]) -> None:
    """Quantized weights take adapters, no gradients of their own."""
    for name, index in chosen.items():
        pattern = None if index is None else list(rules)[index]
        if pattern is not None and _is_full(rules[pattern]):
            raise ConfigError(
                f"{pattern!r} would train {name}, which is quantized",
                where="train.stages.*.trainable",
                rule="quantized weights are frozen, adapters on them can train",
                fix="give the pattern the value lora, or leave train.quant out",
            )


def _is_full(rule: Rule) -> bool:
    return rule == "full" or isinstance(rule, FullRule | RowsRule)


def _lora_targets(
    model: nn.Module, rules: Mapping[str, Rule], chosen: Mapping[str, int | None]
) -> dict[str, LoraTarget]:
    """Layer -> its adapter, for every linear whose weight fell to a LoRA rule."""
    found: dict[str, LoraTarget] = {}
    patterns = list(rules)
    heads = {id(getattr(model, "get_output_embeddings", lambda: None)())}
    for name, module in linears(model):
        index = chosen.get(f"{name}.weight")
        rule = None if index is None else rules[patterns[index]]
        if index is None or not isinstance(rule, LoraRule):
            continue
        spec, leaf = rule.lora, name.rpartition(".")[2]
        if id(module) in heads if spec.targets is None else leaf not in spec.targets:
            continue
        alpha = 2.0 * spec.r if spec.alpha is None else spec.alpha
        found[name] = LoraTarget(rule=patterns[index], r=spec.r, alpha=alpha, dropout=spec.dropout)
    for pattern, rule in rules.items():
        if isinstance(rule, LoraRule) and all(t.rule != pattern for t in found.values()):
            raise ConfigError(
                f"lora under {pattern!r} finds no linear layer",
                where="train.stages.*.trainable",
                rule=f"targets are {rule.lora.targets or 'all linears but the head'}",
                fix="widen the pattern or name other targets",
            )
    return found


def _table(
    model: nn.Module,
    rules: Mapping[str, Rule],
    *,
    chosen: Mapping[str, int | None],
    sizes: Mapping[str, int],
    rule_of: dict[str, int],
    rows: dict[str, tuple[int, ...]],
    lr: float,
) -> TrainableTable:
    found = []
    now = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, some in rows.items():
        now[name] = len(some) * model.get_parameter(name).shape[-1]
    for index, (pattern, rule) in enumerate(rules.items()):
        own = [name for name, which in chosen.items() if which == index]
        mine = [name for name, which in rule_of.items() if which == index]
        adapters = [name for name in mine if is_adapter(name)]
        found.append(
            TableRow(
                group=pattern,
                mode=_mode(rule),
                parameters=len(own) + len(adapters),
                trainable=sum(now[name] for name in mine),
                total=sum(sizes[name] for name in own) + sum(now[name] for name in adapters),
                lr=own_lr(_factor(rule), lr),
            )
        )
    rest = [name for name, which in chosen.items() if which is None]
    if rest:
        total = sum(sizes[name] for name in rest)
        found.append(
            TableRow(
                group=NO_RULE, mode="frozen", parameters=len(rest), trainable=0, total=total, lr=lr
            )
        )
    return TrainableTable(rows=found, rule_of=rule_of, lr=lr, rows_of=rows)


def _mode(rule: Rule) -> str:
    if isinstance(rule, LoraRule):
        return f"lora r={rule.lora.r}"
    if isinstance(rule, RowsRule):
        return f"rows {len(rule.rows.of)}"
    return "full" if _is_full(rule) else "frozen"


def _factor(rule: Rule) -> float | str | None:
    """The rate that a rule sets for itself."""
    if isinstance(rule, LoraRule):
        return rule.lora.lr
    if isinstance(rule, RowsRule):
        return rule.rows.lr
    return rule.full.lr if isinstance(rule, FullRule) else None
