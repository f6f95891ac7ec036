"""Finding bitsandbytes, quietly, and what to say where it is not."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from retinue.core.errors import EnvError


def hush() -> None:
    """Let it not complain, at each import on a CPU, about an optional kernel of the hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def bitsandbytes() -> Any:
    """The package. Raises EnvError where it is not installed or cannot be imported."""
    hush()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
            import bitsandbytes.functional
    except ImportError as error:
        missing = getattr(error, "name", None) == "bitsandbytes"
        raise EnvError(
            "bitsandbytes is not installed" if missing else "bitsandbytes cannot be imported",
            rule="bnb4 and bnb8 are its formats" if missing else str(error),
            fix="pip install 'retinue[quant]', or take int4 or int8, which need no package",
        ) from None
    return bitsandbytes
