"""`retinue ui`: the web chat, over models of its own or servers that are there already."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
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

    from retinue.demo.ui.client import Model, Server
    from retinue.demo.ui.page import Extras
    from retinue.model.retinue import Retinue
    from retinue.processor import Processor
    from retinue.serve.service import Service

app = verb()


@app.command(
    epilog=examples(
        "retinue ui quickstart/run/model",
        "retinue ui small=runs/tiny/model large=runs/sft/model --port 8080",
        "retinue ui runs/sphinx/model --sam sam_vit_h_4b8939.pth",
        "retinue ui runs/sphinx-13b/model --tp 2",
        "retinue ui http://gpu1:8000 --password me:secret --host 0.0.0.0",
        "retinue ui --controller http://localhost:21001",
    )
)
def ui(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]PATH... | URL",
            help="Models to load (folders or hub ids), or one server of the OpenAI API.",
            show_default=False,
        ),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Instead: LLaVA's controller, whose workers answer; they may come and go. "
            "--template: how workers that are not ours are asked; default: by the model's name.",
        ),
    ] = None,
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
    keys = api_keys(api_key_file)
    targets = targets or []
    if bool(targets) == bool(controller):
        raise ConfigError(
            "models and a controller besides" if targets else "no model is named",
            where="retinue ui",
            fix="name either folders, hub ids or one URL, or --controller URL",
        )
    elsewhere = controller or (targets[0] if len(targets) == 1 and is_url(targets[0]) else None)
    if (tp or 1) > 1 and (elsewhere or len(targets) > 1):
        raise ConfigError("--tp shares one model of one's own", where="retinue ui")
    # a follower leaves before it would listen, and must not take the port
    with sharing(tp) as shared, bound(host, 0 if shared.follows else port) as link:
        own = address_of(link)
        if elsewhere is not None:
            from retinue.demo.ui.mount import with_page
            from retinue.demo.ui.page import page

            key = keys[0] if keys else ""
            server = reached(elsewhere, key=key, controller=bool(controller), template=template)
            front = with_page(page(server, extras=extras), password=user, path="")
            note(f"the page at {own}, answers by {elsewhere}")
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
        front = paged(api, models, own, key=inner if keys else "", password=user, extras=extras)
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
    from retinue.serve.app import create_app
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
    return create_app(Models(services)), offered(services)


def offered(services: Iterable[Service]) -> list[Model]:
    """What the page offers of models that are served here."""
    from retinue.demo.ui.client import Model
    from retinue.serve.app import cards

    return [
        Model(name=row["id"], budgets=tuple(row["visual_token_budgets"] or ()))
        for service in services
        for row in cards(service)
    ]


def paged(
    api: FastAPI,
    models: list[Model],
    own: str,
    *,
    key: str,
    password: tuple[str, str] | None,
    extras: Extras,
    upload_bytes: int = 64 * 2**20,
) -> FastAPI:
    """The API with the page beside it, at /ui. own: where both will listen; key: the page's."""
    from retinue.demo.ui.client import Client
    from retinue.demo.ui.mount import with_page
    from retinue.demo.ui.page import page

    address = own.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    blocks = page(Client(url=address, key=key), models=models, extras=extras)
    return with_page(blocks, api=api, password=password, upload_bytes=upload_bytes)


def reached(url: str, *, key: str, controller: bool, template: str | None) -> Server:
    """A server that is there already; without `controller`, it is found out which kind."""
    from retinue.demo.ui.controller import ControllerClient, server_at
    from retinue.text.template import resolve

    if not is_url(url):
        raise ConfigError(f"{url!r} is no URL", where="--controller", rule="http://host:port")
    dialect = None if template is None else resolve(template)
    if controller:
        return ControllerClient(url=url.rstrip("/"), key=key, template=dialect)
    return server_at(url, key=key, template=dialect)


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


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
