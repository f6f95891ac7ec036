"""The page in an application: alone, or at the root of a server of models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from retinue.demo.ui.page import CSS

FONTS = ["system-ui", "sans-serif"]
"""Of the machine that looks at the page; gradio's own would be fetched from elsewhere."""
HEAD = '<meta name="referrer" content="no-referrer">'


def with_page(
    blocks: gr.Blocks,
    *,
    api: FastAPI | None = None,
    password: tuple[str, str] | None = None,
    path: str = "/ui",
    upload_bytes: int = 64 * 2**20,
) -> FastAPI:
    """An application with the page at `path`, and what `api` has at every other address.

    password: (user, password) that the page asks for; the API has its own keys.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if api is not None:
                await stack.enter_async_context(api.router.lifespan_context(api))
            yield

    front = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    theme: Any = gr.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        front,
        blocks,
        path=path,
        auth=password,
        max_file_size=upload_bytes,
        theme=theme,
        css=CSS,
        head=HEAD,
        show_error=True,
        footer_links=[],
        ssr_mode=False,
    )
    if api is not None:
        # what is mounted at the root would have no page at an address without the slash
        front.get(path)(lambda: RedirectResponse(f"{path}/"))
        front.mount("/", api)
    return front
