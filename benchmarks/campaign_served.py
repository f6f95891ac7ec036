"""A server of a small elastic model as a process, for campaigns; `Served` starts and ends one.

Run as a script it serves on a free port. Its first line names the address; when it is told to stop
it ends what is under way, checks the engine, and its last line is a verdict in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

LINES = [
    "USER: what colour is the circle? ASSISTANT: the circle is red, green or blue",
    "USER: how many shapes are there? ASSISTANT: one two three",
]


class Served:
    """The process. verdict: what it said of itself at its end."""

    def __init__(self, **fields: Any) -> None:
        words = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.verdict: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdout is not None
        watch = threading.Timer(60, self.process.kill)
        watch.start()
        self.process.send_signal(signal.SIGTERM)
        rest = self.process.stdout.read()
        self.process.wait()
        watch.cancel()
        self.process.stdout.close()
        lines = [line for line in rest.splitlines() if line.startswith("{")]
        self.verdict = json.loads(lines[-1]) if lines else {"sound": False, "why": "it died"}

    @property
    def memory(self) -> float:
        """Resident megabytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def model_and_processor() -> Any:
    """A Llama of two layers behind a patch encoder of 16 tokens, elastic, random."""
    from transformers import LlamaConfig

    from retinue.hub.elastic import make_elastic
    from retinue.model.build import build_model
    from retinue.model.encoders.patches import PatchesConfig
    from retinue.model.spec import Plan, RetinueConfig
    from retinue.processor import Processor, ProcessorSpec
    from retinue.text.train import train_bpe

    tokenizer = train_bpe(LINES, vocab_size=320)
    text = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        initializer_range=0.2,
    )
    config = RetinueConfig(
        text,
        {"eye": PatchesConfig(hidden_size=32, image_size=32)},
        {
            "encoders": {"eye": {"kind": "patches"}},
            "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
            "image_token_id": tokenizer.image_id,
        },
    )
    spec = ProcessorSpec.parse(
        {
            "views": {"kind": "squash"},
            "streams": {"rgb": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}},
            "template": {"name": "vicuna_v1", "system": ""},
        }
    )
    processor = Processor(Plan(config), tokenizer=tokenizer, spec=spec)
    model = build_model(config, seed=5).eval()
    make_elastic(model, processor, scales=[1, 4, 16])
    return model, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--kv-tokens", type=int, default=2048)
    parser.add_argument("--feature-kb", type=int, default=256)
    parser.add_argument("--body-bytes", type=int, default=100_000)
    parser.add_argument("--max-tokens", type=int, default=16)
    options = parser.parse_args()
    import socket

    import torch
    import uvicorn

    from retinue.ops.malloc import tune_malloc
    from retinue.serve.app import create_app
    from retinue.serve.engine import EngineSpec
    from retinue.serve.flamingo import CleverFlamingo, add_flamingo
    from retinue.serve.service import ServeSpec, Service

    tune_malloc()
    torch.set_num_threads(1)
    engine = EngineSpec(
        block=4,
        rows=options.rows,
        kv_tokens=options.kv_tokens,
        feature_bytes=options.feature_kb * 1024,
    )
    spec = ServeSpec(
        requests=options.requests,
        choices=4,
        body_bytes=options.body_bytes,
        max_tokens=options.max_tokens,
        admin=("sk-admin",),
    )
    service = Service(*model_and_processor(), name="tiny", engine=engine, spec=spec)
    app = create_app(service)
    add_flamingo(app, CleverFlamingo(service=service))
    link = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{link.getsockname()[1]}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=20)
    with link:
        uvicorn.Server(config).run(sockets=[link])
    print(json.dumps(verdict(service)), flush=True)


def verdict(service: Any) -> dict[str, Any]:
    """Whether the engine is as if nothing had happened."""
    found: dict[str, Any] = {"under_way": service.under_way, "busy": service.engine.busy}
    try:
        service.engine.check_integrity()
        found["integrity"] = True
    except AssertionError as error:
        found |= {"integrity": False, "why": str(error)}
    found["broken"] = repr(service.background.broken) if service.background.broken else None
    found["sound"] = (
        found["integrity"] and not found["broken"] and not found["under_way"] and not found["busy"]
    )
    return found


if __name__ == "__main__":
    main()
