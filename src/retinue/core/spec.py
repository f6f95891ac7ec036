"""Spec: the frozen, closed pydantic base of everything that stands in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from retinue.core.errors import ConfigError
from retinue.core.registry import Registry, nearest

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
            raise ConfigError(explain(cls, error, data), where=where) from None


class OwnSpec(Spec):
    """A policy that is its own Spec, so that the table of its family has one class a name."""

    Spec: ClassVar[type[BaseModel]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.Spec = cls


def explain(cls: type[BaseModel], error: ValidationError, data: Any = None) -> str:
    """All problems of a ValidationError in one line, nearest known key included.

    data: what was validated; with it, the keys of nodes that are found by `kind` are known too.
    """
    lines = []
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "too_short" and any(
            _below(p["loc"], problem["loc"]) for p in problems
        ):
            continue  # a tuple is called too short where its items failed
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = known_keys(cls, problem["loc"][:-1], data)
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


def _below(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def known_keys(
    cls: type[BaseModel], location: tuple[int | str, ...], data: Any = None
) -> list[str]:
    """Field names of the model that a location inside `cls` points at (best effort)."""
    current: Any = cls
    for part in location:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
        field = _fields(current).get(str(part))
        model, registry = _inside(current if field is None else (field.annotation, field.metadata))
        kind = data.get("kind") if isinstance(data, Mapping) else None
        if registry is not None and isinstance(kind, str) and kind in registry:
            model = registry.get(kind).Spec
        if model is not None:
            current = model
        elif field is not None:
            current = None
    return sorted(_fields(current))


def _fields(model: Any) -> dict[str, Any]:
    fields = getattr(model, "model_fields", {})
    return {field.alias or name: field for name, field in fields.items()}


def _inside(annotation: Any) -> tuple[Any, Registry[Any] | None]:
    """The first model class inside an annotation, and the registry whose `spec_of` reads it."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return annotation, None  # (Annotated hands out the attributes of what it annotates)
    owner = getattr(getattr(annotation, "func", None), "__self__", None)
    if isinstance(owner, Registry):
        return None, owner
    inner = annotation if isinstance(annotation, tuple | list) else ()
    inner = [*inner, *getattr(annotation, "__args__", ()), *getattr(annotation, "__metadata__", ())]
    found = [_inside(part) for part in inner]
    models = [model for model, _ in found if model is not None]
    registries = [registry for _, registry in found if registry is not None]
    return next(iter(models), None), next(iter(registries), None)
