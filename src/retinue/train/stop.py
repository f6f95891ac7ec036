"""SIGTERM and SIGINT ask a run to save and end after the update at hand; a second one ends it now.

Exit code 128 + number of the signal: 143 after SIGTERM, 130 after SIGINT.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, `signal` becomes the number of the signal that came, else None.

    Handlers can only be set in the main thread; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {int(one): signal.signal(one, self._take) for one in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
