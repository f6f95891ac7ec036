"""Layout table: how the views of one item become its run of tokens."""

from retinue.core.registry import Registry

LAYOUTS: Registry[type] = Registry(
    "layout",
    {
        "plain": "retinue.model.layouts.plain:Plain",
        "bracket": "retinue.model.layouts.bracket:Bracket",
        "newline": "retinue.model.layouts.newline:Newline",
    },
)
