"""Table of weight formats with fewer bits: what `--quant` and `load(quant=...)` name."""

from retinue.core.registry import Registry

QUANTS: Registry[type] = Registry(
    "quant",
    {
        "bnb4": "retinue.model.quant.bnb4:Bnb4Linear",
        "bnb8": "retinue.model.quant.bnb8:Bnb8Linear",
        "int4": "retinue.model.quant.int4:Int4Linear",
        "int8": "retinue.model.quant.int8:Int8Linear",
    },
)

ALIASES = {"4bit": "bnb4", "8bit": "bnb8"}
"""Names that the originals' options have -> ours."""


def canonical(name: str) -> str:
    """A kind's own name. Raises ConfigError, with the nearest, for one that no table has."""
    from retinue.core.errors import ConfigError

    found = ALIASES.get(name, name)
    if found not in QUANTS:
        raise ConfigError(f"{QUANTS.unknown(name)}; aliases: {', '.join(sorted(ALIASES))}")
    return found
