"""Spec: the frozen, closed pydantic base of everything that stands in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest

S = TypeVar("S", bound="Spec")


class Spec(BaseModel):
    """Frozen, unknown keys are errors; `parse` turns pydantic's report into one ConfigError."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    @classmethod
    def parse(cls: type[S], data: Mapping[str, Any], *, where: str = "spec") -> S:
        """Validate a mapping. Raises ConfigError listing every wrong field with its place."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(explain(cls, error), where=where) from None


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """All problems of a ValidationError in one line each, nearest known key included."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = known_keys(cls, problem["loc"][:-1])
            hint = nearest(str(problem["loc"][-1]), known)
            message = "unknown key" + (f"; did you mean {hint!r}?" if hint else "")
            if known:
                message += f" (known: {', '.join(known)})"
        elif problem["type"] == "missing":
            message = "required key is missing"
        else:
            message += f" (got {problem['input']!r:.80})"
        lines.append(f"{path}: {message}" if path else message)
    return "; ".join(lines)


def known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that a location inside `cls` points at (best effort)."""
    current: Any = cls
    for part in location:
        field = getattr(current, "model_fields", {}).get(str(part))
        if field is None:
            continue
        current = field.annotation
        for inner in getattr(current, "__args__", ()):
            if hasattr(inner, "model_fields"):
                current = inner
    return sorted(getattr(current, "model_fields", {}))
