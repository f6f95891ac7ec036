"""Where a server of `serve` or `ui` listens, who may ask it, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI


def api_keys(file: Path | None, *, variable: str = "RETINUE_API_KEYS") -> tuple[str, ...]:
    """Keys of a file or of the environment. Raises ConfigError for a file without any."""
    import os

    if file is None:
        return tuple(os.environ.get(variable, "").replace(",", " ").split())
    try:
        found = tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot be read", where=str(file), rule=str(error)) from None
    if not found:
        raise ConfigError("has no key", where=str(file), rule="one key a line")
    return found


def bound(host: str, port: int) -> socket.socket:
    """A socket on which clients can come from now on. Raises ConfigError where none can be had."""
    import socket

    link = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        link.bind((host, port))
        link.listen(1024)
    except OSError as error:
        link.close()
        raise ConfigError(
            "cannot listen here", where=f"{host}:{port}", rule=error.strerror or str(error)
        ) from None
    return link


def address_of(link: socket.socket) -> str:
    """Where a socket listens, as the beginning of a URL."""
    host, port = link.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(served: FastAPI, link: socket.socket, *, grace: int) -> None:
    """Serve until told to stop; SIGTERM and SIGINT let replies under way end first."""
    import signal

    import uvicorn

    config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=grace)
    # uvicorn drains, then raises the signal again: this is where it ends
    signal.signal(signal.SIGTERM, lambda *_: None)
    with link:
        uvicorn.Server(config).run(sockets=[link])
