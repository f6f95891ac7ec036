"""Routes by which models and adapters come and go. They need an admin key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import Field, StrictStr

from retinue.serve.models import Models
from retinue.serve.schema import Body

NAME = r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,199}$"


class LoadModel(Body):
    """POST /admin/models/load. path: a folder or hub id, as on the command line."""

    path: StrictStr = Field(min_length=1)
    name: StrictStr = Field(pattern=NAME)


class Named(Body):
    """POST /admin/models/unload."""

    name: StrictStr


class LoadAdapter(Body):
    """POST /admin/adapters/load. model: default the first; path: a LoRA folder."""

    path: StrictStr = Field(min_length=1)
    name: StrictStr = Field(pattern=NAME)
    model: StrictStr | None = None


class NamedAdapter(Body):
    """POST /admin/adapters/unload."""

    name: StrictStr
    model: StrictStr | None = None


def add_admin(app: FastAPI, models: Models) -> None:
    """The routes below /admin/."""

    def state() -> dict[str, Any]:
        return {name: list(one.engine.adapters.held) for name, one in models.held.items()}

    @app.post("/admin/models/load")
    async def load_model(body: LoadModel) -> dict[str, Any]:
        await models.load(body.path, body.name)
        return {"models": state()}

    @app.post("/admin/models/unload")
    async def unload_model(body: Named) -> dict[str, Any]:
        await models.unload(body.name)
        return {"models": state()}

    @app.post("/admin/adapters/load")
    async def load_adapter(body: LoadAdapter) -> dict[str, Any]:
        await models.add_adapter(body.model, body.name, body.path)
        return {"models": state()}

    @app.post("/admin/adapters/unload")
    async def unload_adapter(body: NamedAdapter) -> dict[str, Any]:
        await models.drop_adapter(body.model, body.name)
        return {"models": state()}
