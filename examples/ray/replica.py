"""What a replica under Ray Serve is: a whole server of ours behind a door that Ray can hold.

Ray wants an ASGI application before replicas exist; `DOOR` is one, and each replica's process puts
its server behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from retinue.hub.load import load
from retinue.ops.backend import pick_device
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.service import ServeSpec, Service


class Door:
    """An ASGI application that is this process's server, once that is there.

    The server is kept by the class: Ray hands copies of the instance to its replicas.
    """

    inner: ClassVar[Any] = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.inner(scope, receive, send)


DOOR = Door()


def open_door(
    path: str,
    *,
    name: str = "retinue",
    engine: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> Service:
    """Load a model and put its server behind the door.

    engine, limits: fields of `EngineSpec` and `ServeSpec` (docs/serving.md).
    """
    model, processor = load(path, device=pick_device("auto")[0])
    service = Service(
        model,
        processor,
        name=name,
        engine=EngineSpec.parse(engine or {}, where="engine"),
        spec=ServeSpec.parse(limits or {}, where="limits"),
    )
    Door.inner = create_app(service)
    return service
