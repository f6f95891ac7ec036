"""`retinue serve PATH`: a model behind the OpenAI API; LLaVA's controller and worker."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retinue.cli import answering as opt
from retinue.cli.common import Device, Quant, QuantEncoders, QuantHead, examples, note, verb
from retinue.cli.listening import address_of, api_keys, bound, run
from retinue.cli.sharing import TensorParallel, sharing
from retinue.cli.ui import credentials, offered, paged
from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    from retinue.model.retinue import Retinue
    from retinue.processor import Processor

app = verb()


@app.command(
    epilog=examples(
        "retinue serve runs/quickstart/model",
        "retinue serve mucai/llava-v1.5-7b-m3 --port 9000 --name m3 --kv-tokens 32768",
        "retinue serve runs/sft/model --host 0.0.0.0 --api-key-file keys.txt",
        "retinue serve runs/sft/model --adapter art=runs/art/adapter --image-host example.org",
        "retinue serve small=runs/tiny/model large=runs/sft/model --admin-key-file admin.txt",
        "retinue serve runs/sphinx-13b/model --tp 2",
        "retinue serve runs/sft/model --ui --password me:secret --host 0.0.0.0",
        "retinue serve --backend http://gpu1:8000 --backend http://gpu2:8000 --port 80",
        "retinue serve --as controller --port 21001",
        "retinue serve runs/m3/model --as worker --controller http://localhost:21001 --port 21002",
    )
)
def serve(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Models: local folders or owner/name on the hub; the first answers by default.",
            show_default=False,
        ),
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
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Instead of PATH: another server of the OpenAI API that answers; may repeat.",
        ),
    ] = None,
    backend_key_file: Annotated[
        Path | None, typer.Option(help="Of --backend: a file with the key that those servers want.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of API keys, one a line; default: the variable RETINUE_API_KEYS."),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File of keys that may load and unload models and adapters; default: the variable "
            "RETINUE_ADMIN_KEYS; without any, nobody may."
        ),
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
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Host that pictures are fetched from: example.org, *.example.org, or * for every "
            "public one; may repeat. Without any, nothing is fetched.",
        ),
    ] = None,
    media_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose pictures `file:` URLs may name; may repeat. Instruct-Flamingo's "
            "route reads `imgpaths` below the first."
        ),
    ] = None,
    shrink: Annotated[
        Literal["nobody", "asked", "everyone"],
        typer.Option(
            help="Who gets fewer visual tokens while many wait: requests that say "
            "visual_tokens_min, or also those that say nothing of visual tokens."
        ),
    ] = "asked",
    shrink_from: Annotated[
        int, typer.Option(min=0, help="Requests waiting at which budgets begin to shrink.")
    ] = 4,
    shrink_full: Annotated[
        int, typer.Option(min=1, help="Requests waiting at which they are smallest.")
    ] = 32,
    shrink_floor: Annotated[
        int, typer.Option(min=1, help="Visual tokens per view that nobody goes below.")
    ] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer of a chat request that names no limit.")
    ] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds that a reply may take.")] = 600.0,
    grace: Annotated[
        int, typer.Option(min=0, help="Seconds that replies under way get when told to stop.")
    ] = 30,
    ui: Annotated[
        bool, typer.Option("--ui", help="The web chat at /ui of the same server, for its models.")
    ] = False,
    password: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", help="Of --ui: what the page asks visitors for."),
    ] = None,
    template: opt.Template = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[[MODEL:]NAME=]FOLDER",
            help="A LoRA folder: with a name, requests pick it; without, it is always on.",
        ),
    ] = None,
    base: opt.Base = None,
    device: Device = "auto",
    tp: TensorParallel = None,
    dtype: opt.Dtype = "auto",
    quant: Quant = None,
    quant_encoders: QuantEncoders = False,
    quant_head: QuantHead = False,
) -> None:
    """Answer over HTTP as the OpenAI API does: many requests at once, with pictures."""
    from retinue.core.lazy import need

    for module in ("fastapi", "uvicorn"):
        need(module, extra="serve", purpose="retinue serve")
    if ui:
        need("gradio", extra="ui", purpose="retinue serve --ui")
        need("httpx", extra="serve", purpose="retinue serve --ui")
    keys = api_keys(api_key_file)
    admin = api_keys(admin_key_file, variable="RETINUE_ADMIN_KEYS")
    if ui and (backend or role == "controller"):
        raise ConfigError(
            "--ui without a model of one's own", where="retinue serve", fix="`retinue ui URL`"
        )
    if ui and keys and password is None:
        raise ConfigError(
            "the page would let everyone past the keys",
            where="--ui",
            fix="--password USER:PASSWORD for its visitors",
        )
    if password is not None and not ui:
        raise ConfigError("no page to ask for it", where="--password", fix="add --ui")
    visitor = credentials(password)
    inner = secrets.token_hex(16) if ui and keys else ""  # the page's own key
    if tp and (backend or role == "controller"):
        raise ConfigError("--tp without a model of one's own", where="retinue serve")
    # a follower leaves before it would listen, and must not take the port
    with sharing(tp) as shared, bound(host, 0 if shared.follows else port) as link:
        own = address_of(link)
        locked = "" if keys else ", open to everyone who can reach it"
        if role == "controller":
            from retinue.serve.llava.controller import Controller, create_controller

            front = create_controller(Controller(dispatch=dispatch))
            note(f"LLaVA's controller at {own}")
            run(front, link, grace=grace)
            return
        if bool(paths) == bool(backend):
            raise ConfigError(
                "a model and servers behind this one" if paths else "no model is named",
                where="retinue serve",
                fix="name either folders or hub ids, or --backend URL",
            )
        if backend:
            need("httpx", extra="serve", purpose="retinue serve --backend")
            from retinue.serve.front.app import create_front
            from retinue.serve.front.backends import Backends, FrontSpec
            from retinue.serve.service import ServeSpec

            key = api_keys(backend_key_file, variable="RETINUE_BACKEND_KEY")
            behind = {"urls": backend, "key": key[0] if key else "", "timeout_s": timeout}
            backends = Backends(FrontSpec.parse(behind, where="--backend"))
            size = max_body_mb * 2**20
            front = create_front(
                backends, spec=ServeSpec(keys=keys, requests=max_requests, body_bytes=size)
            )
            if role == "worker":
                from retinue.serve.front.relay import Relay, add_relay
                from retinue.text.template import resolve

                dialect = resolve(template or "vicuna_v1")
                place = worker_address or own
                add_relay(
                    front,
                    Relay(
                        backends=backends, template=dialect, address=place, controller=controller
                    ),
                )
            note(f"in front of {', '.join(backend)} at {own}/v1{locked}")
            run(front, link, grace=grace)
            return
        assert paths is not None
        from retinue.serve.app import create_app
        from retinue.serve.engine import EngineSpec
        from retinue.serve.flamingo import CleverFlamingo, add_flamingo
        from retinue.serve.models import Models, load_adapter
        from retinue.serve.opening import Opening, adapter_places, named_paths
        from retinue.serve.service import ServeSpec

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
                "pictures": {
                    "count": max_images,
                    "hosts": image_host or [],
                    "roots": [str(root) for root in media_root or []],
                },
                "pressure": {
                    "who": shrink,
                    "start": shrink_from,
                    "full": shrink_full,
                    "floor": shrink_floor,
                },
                "keys": (*keys, inner) if inner else keys,
                "admin": admin,
            },
            where="serve",
        )
        named = named_paths(paths, name)
        if role == "worker" and len(named) > 1:
            raise ConfigError("a worker has one model", fix="start one worker for each")
        always, picked = adapter_places(adapter or [], list(named))
        if shared.size > 1 and (len(named) > 1 or picked):
            raise ConfigError(
                f"{len(named)} models and {len(picked)} adapters to pick from, in processes that "
                "share one",
                where="--tp",
                rule="they share one model, with adapters that are always on",
                fix="start one server for each",
            )

        def load(path: str) -> tuple[Retinue, Processor]:
            found = opt.load_model(
                path,
                device=device,
                dtype=dtype,
                template=template,
                adapters=always if path in named.values() else None,
                base=base,
                quant=quant,
                quant_encoders=quant_encoders,
                quant_head=quant_head,
                shared=shared,
            )
            if role == "worker":
                from retinue.serve.llava.worker import pools

                pools(*found)
            return found

        opening = Opening(load=load, engine=engine, spec=spec, base=base)
        services = {key: opening.service(path, key) for key, path in named.items()}
        for one in picked:
            service = services[one.model]
            load_adapter(service, one.name, one.folder, opening.attach(service, one.folder))
        alone = shared.size == 1  # what is loaded later would not be divided
        models = Models(
            list(services.values()),
            open=opening.service if alone else None,
            attach=opening.attach if alone else None,
        )
        served = create_app(models)
        root = media_root[0] if media_root else None
        add_flamingo(served, CleverFlamingo(service=models.first, media_root=root))
        if role == "worker":
            from retinue.serve.llava.worker import Worker, add_worker

            worker = Worker(
                service=models.first, address=worker_address or own, controller=controller
            )
            add_worker(served, worker)
        if ui:
            from retinue.demo.ui.page import Extras

            served = paged(
                served,
                offered(services.values()),
                own,
                key=inner,
                password=visitor,
                extras=Extras(),
                upload_bytes=max_body_mb * 2**20,
            )
        page = f", the web chat at {own}/ui" if ui else ""
        note(f"{', '.join(services)} at {own}/v1{locked}{page}")
        with shared.watched():
            run(served, link, grace=grace)
