"""`retinue ui`: the web chat, over models of its own or a server that is there already."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retinue.cli import answering as opt
from retinue.cli.common import Device, Quant, QuantEncoders, QuantHead, examples, note, verb
from retinue.cli.listening import address_of, api_keys, bound, run
from retinue.cli.sharing import TensorParallel, sharing
from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from retinue.demo.ui.client import Model
    from retinue.demo.ui.page import Extras
    from retinue.model.retinue import Retinue
    from retinue.processor import Processor

app = verb()


@app.command(
    epilog=examples(
        "retinue ui quickstart/run/model",
        "retinue ui small=runs/tiny/model large=runs/sft/model --port 8080",
        "retinue ui runs/sphinx/model --sam sam_vit_h_4b8939.pth",
        "retinue ui runs/sphinx-13b/model --tp 2",
        "retinue ui http://gpu1:8000 --password me:secret --host 0.0.0.0",
    )
)
def ui(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH... | URL",
            help="Models to load (folders or hub ids), or one server of the OpenAI API.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 7860,
    password: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", help="What the page asks its visitors for."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Keys of the API, one a line: wanted of clients beside the page, or by the URL."
        ),
    ] = None,
    sam: Annotated[
        Path | None,
        typer.Option(help="Segment Anything (a folder or .pth): masks of boxes are drawn, too."),
    ] = None,
    t2i: Annotated[
        str | None,
        typer.Option(
            metavar="URL|MODULE:FUNCTION", help="Text-to-image pipeline that paints answers."
        ),
    ] = None,
    box_style: Annotated[
        str | None,
        typer.Option(help="How answers write coordinates; default: as the numbers look."),
    ] = None,
    title: Annotated[str, typer.Option(help="What stands above the page.")] = "retinue",
    kv_tokens: Annotated[
        int, typer.Option(min=16, help="Tokens, of all requests, whose keys and values have room.")
    ] = 16384,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests running and waiting; further ones get 429.")
    ] = 64,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that replies under way get when told to stop.")
    ] = 5,
    template: opt.Template = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="A LoRA folder that is always on.")
    ] = None,
    base: opt.Base = None,
    device: Device = "auto",
    tp: TensorParallel = None,
    dtype: opt.Dtype = "auto",
    quant: Quant = None,
    quant_encoders: QuantEncoders = False,
    quant_head: QuantHead = False,
) -> None:
    """Open a web page to chat with models about pictures and videos."""
    from retinue.core.lazy import need

    need("gradio", extra="ui", purpose="retinue ui")
    for module in ("fastapi", "uvicorn", "httpx"):
        need(module, extra="serve", purpose="retinue ui")
    user = credentials(password)
    extras = extras_of(sam, t2i, box_style, title, device)
    from retinue.demo.ui.client import Client
    from retinue.demo.ui.mount import with_page
    from retinue.demo.ui.page import page

    keys = api_keys(api_key_file)
    elsewhere = len(targets) == 1 and targets[0].startswith(("http://", "https://"))
    if (tp or 1) > 1 and (elsewhere or len(targets) > 1):
        raise ConfigError("--tp shares one model of one's own", where="retinue ui")
    # a follower leaves before it would listen, and must not take the port
    with sharing(tp) as shared, bound(host, 0 if shared.follows else port) as link:
        own = address_of(link)
        if elsewhere:
            url = targets[0].rstrip("/").removesuffix("/v1")
            client = Client(url=url, key=keys[0] if keys else "")
            front = with_page(page(client, extras=extras), password=user, path="")
            note(f"the page at {own}, answers by {url}")
            run(front, link, grace=grace)
            return

        def load(path: str) -> tuple[Retinue, Processor]:
            return opt.load_model(
                path,
                device=device,
                dtype=dtype,
                template=template,
                adapters=adapter,
                base=base,
                quant=quant,
                quant_encoders=quant_encoders,
                quant_head=quant_head,
                shared=shared,
            )

        inner = secrets.token_hex(16)  # the page's own key, where others need one
        api, models = served(
            targets,
            load,
            base=base,
            kv_tokens=kv_tokens,
            requests=max_requests,
            keys=(*keys, inner) if keys else (),
        )
        address = own.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
        client = Client(url=address, key=inner if keys else "")
        front = with_page(
            page(client, models=models, extras=extras), api=api, password=user, path="/ui"
        )
        note(f"the page at {own}/ui, the OpenAI API at {own}/v1")
        with shared.watched():
            run(front, link, grace=grace)


def served(
    targets: list[str],
    load: Callable[[str], tuple[Retinue, Processor]],
    *,
    base: str | None,
    kv_tokens: int,
    requests: int,
    keys: tuple[str, ...],
) -> tuple[FastAPI, list[Model]]:
    """The API over models that are loaded here, and what the page offers of them."""
    from retinue.demo.ui.client import Model
    from retinue.serve.app import cards, create_app
    from retinue.serve.engine import EngineSpec
    from retinue.serve.models import Models
    from retinue.serve.opening import Opening, named_paths
    from retinue.serve.service import ServeSpec

    opening = Opening(
        load=load,
        engine=EngineSpec.parse({"kv_tokens": kv_tokens}, where="ui"),
        spec=ServeSpec.parse({"requests": requests, "keys": keys}, where="ui"),
        base=base,
    )
    services = [opening.service(path, name) for name, path in named_paths(targets, None).items()]
    rows = [card for service in services for card in cards(service)]
    known = [
        Model(name=row["id"], budgets=tuple(row["visual_token_budgets"] or ())) for row in rows
    ]
    return create_app(Models(services)), known


def credentials(text: str | None) -> tuple[str, str] | None:
    """User and password. Raises ConfigError where one of them is missing."""
    if text is None:
        return None
    user, mark, secret = text.partition(":")
    if not (user and mark and secret):
        raise ConfigError("no user and password", where="--password", rule="USER:PASSWORD")
    return user, secret


def extras_of(
    sam: Path | None, t2i: str | None, box_style: str | None, title: str, device: str
) -> Extras:
    """Masks, pictures and coordinates of the page."""
    from retinue.demo.ui.page import Extras
    from retinue.media.boxes import STYLES

    if box_style is not None and box_style not in STYLES:
        raise ConfigError(
            f"unknown style {box_style!r}", where="--box-style", rule=f"one of {', '.join(STYLES)}"
        )
    segment = paint = None
    if sam is not None:
        from retinue.demo.masks import Masks
        from retinue.ops.backend import pick_device

        segment = Masks.load(sam, device=pick_device(device)[0])
    if t2i is not None:
        from retinue.demo.t2i import painter

        paint = painter(t2i)
    return Extras(segment=segment, paint=paint, style=box_style, title=title)
