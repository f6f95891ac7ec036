"""retinue: a retinue of vision encoders in the service of one language model.

    import retinue
    model, processor = retinue.load("liuhaotian/llava-v1.5-7b")
    print(retinue.chat("liuhaotian/llava-v1.5-7b", "What is this?", images=["photo.jpg"]))

Names are imported when first used; importing the package loads neither torch nor transformers, and
makes transformers' auto classes know retinue folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from retinue import _register

if TYPE_CHECKING:
    from retinue.api import chat, generate
    from retinue.hub.load import load
    from retinue.hub.save import save
    from retinue.model.retinue import Retinue
    from retinue.processor import Processor
    from retinue.types import Media, Message, Sample, Text

_NAMES = {
    "Media": "retinue.types",
    "Message": "retinue.types",
    "Processor": "retinue.processor",
    "Retinue": "retinue.model.retinue",
    "Sample": "retinue.types",
    "Text": "retinue.types",
    "chat": "retinue.api",
    "generate": "retinue.api",
    "load": "retinue.hub.load",
    "save": "retinue.hub.save",
}
"""Public name -> the module that defines it."""

__all__ = [
    "Media",
    "Message",
    "Processor",
    "Retinue",
    "Sample",
    "Text",
    "__version__",
    "chat",
    "generate",
    "load",
    "save",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'retinue' has no attribute {name!r}")
    value = getattr(importlib.import_module(_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


_register.install()
