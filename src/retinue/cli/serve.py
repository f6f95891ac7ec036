"""`retinue serve PATH`: a model behind the OpenAI API; LLaVA's controller and worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retinue.cli import answering as opt
from retinue.cli.common import Device, Quant, QuantEncoders, QuantHead, examples, note, verb
from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

app = verb()


@app.command(
    epilog=examples(
        "retinue serve runs/quickstart/model",
        "retinue serve mucai/llava-v1.5-7b-m3 --port 9000 --name m3 --kv-tokens 32768",
        "retinue serve runs/sft/model --host 0.0.0.0 --api-key-file keys.txt",
        "retinue serve --as controller --port 21001",
        "retinue serve runs/m3/model --as worker --controller http://localhost:21001 --port 21002",
    )
)
def serve(
    path: Annotated[
        str | None,
        typer.Argument(metavar="PATH", help="A model: local folder or owner/name on the hub."),
    ] = None,
    role: Annotated[
        Literal["api", "worker", "controller"],
        typer.Option(
            "--as",
            help="api: OpenAI's routes; worker: LLaVA's model worker besides; controller: LLaVA's "
            "controller, which needs no PATH.",
        ),
    ] = "api",
    controller: Annotated[
        str | None, typer.Option(help="Of --as worker: the controller to register with.")
    ] = None,
    worker_address: Annotated[
        str | None, typer.Option(help="Of --as worker: where others reach it; default: host:port.")
    ] = None,
    dispatch: Annotated[
        Literal["shortest_queue", "lottery"],
        typer.Option(help="Of --as controller: how a worker is chosen."),
    ] = "shortest_queue",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0: every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the API; default: PATH's last part.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of API keys, one a line; default: the variable RETINUE_API_KEYS."),
    ] = None,
    kv_tokens: Annotated[
        int, typer.Option(min=16, help="Tokens, of all requests, whose keys and values have room.")
    ] = 16384,
    step_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt tokens read in one step; fewer: smoother streams.")
    ] = 1024,
    step_views: Annotated[
        int, typer.Option(min=1, help="Views that the encoders are shown in one step.")
    ] = 16,
    rows: Annotated[int, typer.Option(min=1, help="Requests computed side by side.")] = 64,
    feature_mb: Annotated[
        int, typer.Option(min=0, help="Megabytes of encoded pictures that are kept.")
    ] = 256,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests running and waiting; further ones get 429.")
    ] = 256,
    max_body_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes of a request; larger ones get 413.")
    ] = 64,
    max_images: Annotated[int, typer.Option(min=0, help="Pictures in a request.")] = 16,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer of a chat request that names no limit.")
    ] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds that a reply may take.")] = 600.0,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that replies under way get when told to stop.")
    ] = 30,
    template: opt.Template = None,
    adapter: opt.Adapters = None,
    base: opt.Base = None,
    device: Device = "auto",
    dtype: opt.Dtype = "auto",
    quant: Quant = None,
    quant_encoders: QuantEncoders = False,
    quant_head: QuantHead = False,
) -> None:
    """Answer over HTTP as the OpenAI API does: many requests at once, with pictures."""
    from retinue.core.lazy import need

    for module in ("fastapi", "uvicorn"):
        need(module, extra="serve", purpose="retinue serve")
    keys = api_keys(api_key_file)
    link = bound(host, port)
    if role == "controller":
        from retinue.serve.llava.controller import Controller, create_controller

        front = create_controller(Controller(dispatch=dispatch))
        note(f"LLaVA's controller at {address_of(link)}")
        run(front, link, grace=grace)
        return
    if path is None:
        raise ConfigError("no model is named", where="retinue serve", fix="name a folder or hub id")
    from retinue.serve.app import create_app
    from retinue.serve.engine import EngineSpec
    from retinue.serve.messages import PictureLimits
    from retinue.serve.service import ServeSpec, Service

    engine = EngineSpec.parse(
        {
            "kv_tokens": kv_tokens,
            "step_tokens": step_tokens,
            "step_views": step_views,
            "rows": rows,
            "feature_bytes": feature_mb * 2**20,
        },
        where="serve",
    )
    spec = ServeSpec.parse(
        {
            "requests": max_requests,
            "timeout_s": timeout,
            "body_bytes": max_body_mb * 2**20,
            "max_tokens": max_new_tokens,
            "pictures": PictureLimits(count=max_images),
            "keys": keys,
        },
        where="serve",
    )
    model, processor = opt.load_model(
        path,
        device=device,
        dtype=dtype,
        template=template,
        adapters=adapter,
        base=base,
        quant=quant,
        quant_encoders=quant_encoders,
        quant_head=quant_head,
    )
    if role == "worker":
        from retinue.serve.llava.worker import pools

        pools(model, processor)
    service = Service(
        model,
        processor,
        name=name or Path(path).expanduser().resolve().name,
        engine=engine,
        spec=spec,
    )
    served, own = create_app(service), address_of(link)
    if role == "worker":
        from retinue.serve.llava.worker import Worker, add_worker

        worker = Worker(service=service, address=worker_address or own, controller=controller)
        add_worker(served, worker)
    locked = "" if keys else ", open to everyone who can reach it"
    note(f"{service.name} at {own}/v1{locked}")
    run(served, link, grace=grace)


def api_keys(file: Path | None) -> tuple[str, ...]:
    """Keys of a file or of the environment. Raises ConfigError for a file without any."""
    import os

    if file is None:
        return tuple(os.environ.get("RETINUE_API_KEYS", "").replace(",", " ").split())
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
