"""For bench_serve: both servers over the same folder on loopback, bursts, latencies, hit rates.

The folder is transformers' LLaVA of the benchmark's dims with a vocabulary in which every id is
some printable text, so that replies can be compared and no answer ends early.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import peer
import torch
from PIL import Image

SPECIALS = ["<pad>", "<s>", "</s>"]
TEMPLATE = (
    "{%- for message in messages -%}{{ message['role'] }}:"
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ ';' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'assistant:' }}{%- endif -%}"
)
PRINTABLE = [chr(code) for code in range(33, 127)]


def tokenizer(size: int) -> Any:
    """`size` ids: bytes, then pairs and triples of letters, `<image>` last."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: id for id, name in enumerate([*SPECIALS, *letters])}
    merges: list[tuple[str, str]] = []
    room = size - 1 - len(vocab)
    pairs = [(a, b) for a in PRINTABLE for b in PRINTABLE]
    triples = [(a + b, c) for a, b in pairs for c in PRINTABLE]
    for left, right in [*pairs, *triples][:room]:
        vocab[left + right] = len(vocab)
        merges.append((left, right))
    assert len(vocab) == size - 1, "too few combinations of letters"
    made = Tokenizer(BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in [*SPECIALS, "<image>"]])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def write_folder(folder: Path, theirs: Any, dims: peer.Dims) -> None:
    """transformers' folder of the peer, with processor and chat template."""
    from transformers import CLIPImageProcessorPil, GenerationConfig, LlavaProcessor

    words = tokenizer(dims.vocab)
    assert words.convert_tokens_to_ids("<image>") == dims.image_id
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": dims.side}, crop_size={"height": dims.side, "width": dims.side}
    )
    theirs.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1)
    theirs.save_pretrained(folder)
    LlavaProcessor(
        image_processor=pixels,
        tokenizer=words,
        patch_size=dims.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


class Server:
    """A server's process. words: its command; kind: for messages."""

    def __init__(self, kind: str, words: Sequence[str], port: int, log: Path) -> None:
        self.kind, self.port, self.log = kind, port, log
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        env |= {"OMP_WAIT_POLICY": "PASSIVE", "RETINUE_API_KEYS": "", "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], stdout=file, stderr=file, env=env
            )

    def wait(self, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/health")[0] == 200:
                    return
            alive = self.process.poll() is None and time.monotonic() < end
            common.require(alive, f"{self.kind} does not start: {self.log.read_text()[-500:]}")
            time.sleep(0.2)

    def get(self, path: str) -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request("GET", path)
            reply = link.getresponse()
            return reply.status, reply.read()
        finally:
            link.close()

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole reply."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1800)
        try:
            data = json.dumps(body).encode()
            link.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
            reply = link.getresponse()
            text = reply.read()
            common.require(reply.status == 200, f"{self.kind} {reply.status}: {text[:300]!r}")
            found: dict[str, Any] = json.loads(text)
            return found
        finally:
            link.close()

    def stream(self, body: dict[str, Any]) -> tuple[list[float], str]:
        """Seconds from the request to each piece of text, and the text."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1800)
        try:
            start, times, text = time.perf_counter(), [], ""
            data = json.dumps({**body, "stream": True}).encode()
            link.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
            reply = link.getresponse()
            common.require(reply.status == 200, f"{self.kind} {reply.status}")
            while line := reply.readline():
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    piece = choices[0]["delta"].get("content") if choices else None
                    if piece:
                        times.append(time.perf_counter() - start)
                        text += piece
            return times, text
        finally:
            link.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def servers(folder: Path, *, dtype: str, ours_only: bool = False) -> Iterator[list[Server]]:
    """Ours and, unless left out, transformers', in this dtype; one thread each."""
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    logs = Path(tempfile.mkdtemp(prefix="bench-serve-"))
    ports = [free_port() for _ in range(2)]
    mine = ["retinue", "serve", str(folder), "--dtype", short, "--device", "cpu", "--name", "m"]
    theirs = ["transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    theirs += ["--dtype", dtype, "--attn-implementation", "sdpa", "--port", str(ports[1])]
    found = [Server("ours", [*mine, "--port", str(ports[0])], ports[0], logs / "ours.log")]
    try:
        if not ours_only:
            found.append(Server("transformers", theirs, ports[1], logs / "theirs.log"))
        for server in found:
            server.wait()
        yield found
    finally:
        for server in found:
            server.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- requests


class Asker:
    """Makes bodies for both servers. Every picture and text it makes is new.

    text: tokens of a question, answer: forced tokens of a reply.
    """

    def __init__(self, folder: Path, dims: peer.Dims, *, text: int, answer: int) -> None:
        from transformers import AutoTokenizer

        self.words = AutoTokenizer.from_pretrained(folder)
        self.folder, self.dims, self.text, self.answer = folder, dims, text, answer
        self.chance = random.Random(0)

    def question(self) -> str:
        """Letters that become `text` tokens."""
        while True:
            found = ""
            while len(self.words(found, add_special_tokens=False).input_ids) < self.text:
                found += self.chance.choice(PRINTABLE)
            if len(self.words(found, add_special_tokens=False).input_ids) == self.text:
                return found

    def picture(self) -> str:
        """A picture of its own as a data URI."""
        size = self.dims.side
        colours = torch.randint(
            256, (6, 6, 3), generator=torch.Generator().manual_seed(self.chance.randrange(2**31))
        )
        image = Image.fromarray(colours.to(torch.uint8).numpy()).resize((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def opening(self) -> list[dict[str, Any]]:
        """A conversation that begins with a picture and a question."""
        shown = {"type": "image_url", "image_url": {"url": self.picture()}}
        return [{"role": "user", "content": [shown, {"type": "text", "text": self.question()}]}]

    def body(
        self, server: Server, messages: list[dict[str, Any]], *, answer: int | None = None
    ) -> dict[str, Any]:
        """A greedy request whose answer has exactly so many tokens."""
        found = {"messages": messages, "max_tokens": answer or self.answer, "temperature": 0}
        if server.kind == "ours":
            return {**found, "model": "m", "ignore_eos": True}
        return {**found, "model": str(self.folder)}


def burst(server: Server, asker: Asker, count: int) -> Callable[[], list[Any]]:
    """`count` new requests at once; every answer must be as long as was forced."""

    def run() -> list[Any]:
        bodies = [asker.body(server, asker.opening()) for _ in range(count)]
        with ThreadPoolExecutor(count) as pool:
            replies = list(pool.map(server.ask, bodies))
        lengths = {reply["usage"]["completion_tokens"] for reply in replies}
        common.require(lengths == {asker.answer}, f"{server.kind} answers {lengths} tokens")
        return replies

    return run


def check_texts(both: Sequence[Server], asker: Asker, *, count: int, new: int) -> None:
    """fp32: both servers say the same, to the same number of prompt tokens."""
    for _ in range(count):
        messages = asker.opening()
        mine, other = (s.ask(asker.body(s, messages, answer=new)) for s in both)
        counts = [reply["usage"]["prompt_tokens"] for reply in (mine, other)]
        common.require(counts[0] == counts[1], f"prompt tokens through HTTP: {counts}")
        texts = [reply["choices"][0]["message"]["content"] for reply in (mine, other)]
        common.require(texts[0].strip() == texts[1].strip(), f"fp32 texts: {texts}")
    print(f"fp32 through HTTP: {count} answers are equal, of prompts of {counts[0]} tokens")


def latencies(server: Server, asker: Asker, count: int) -> dict[str, list[float]]:
    """Of one burst of streams: seconds to the first piece, and between pieces."""
    bodies = [asker.body(server, asker.opening()) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        found = [times for times, _ in pool.map(server.stream, bodies)]
    gaps = [b - a for times in found for a, b in itertools.pairwise(times)]
    return {"first": [times[0] for times in found], "next": gaps}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99."""
    ordered = sorted(values)
    places = {name: int(share * (len(ordered) - 1)) for name, share in SHARES.items()}
    return {name: round(ordered[place], 4) for name, place in places.items()}


SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def chat_turns(server: Server, asker: Asker, *, turns: int, new: int) -> tuple[float, float]:
    """Seconds to the first text of the last turn: with what is known, and with nothing known.

    The second is a conversation as long, about a picture that the server has never seen.
    """

    def talk(*, only_last: bool) -> float:
        messages = asker.opening()
        first = 0.0
        for turn in range(turns):
            if not only_last or turn == turns - 1:
                times, text = server.stream(asker.body(server, messages, answer=new))
                first = times[0]
            else:
                text = asker.question()[:new]
            messages = [*messages, {"role": "assistant", "content": text}]
            messages.append({"role": "user", "content": asker.question()})
        return first

    return talk(only_last=False), talk(only_last=True)


def hit_rates(server: Server, asker: Asker, *, users: int, turns: int) -> dict[str, float]:
    """Pictures found encoded, prompt tokens found in blocks.

    Of chats about a picture each, after which it is asked about anew under another system prompt:
    words in front of a picture make all blocks others, and its features stay.
    """
    before = counts(server)
    for _ in range(users):
        opening = asker.opening()
        messages = opening
        for _ in range(turns):
            reply = server.ask(asker.body(server, messages, answer=8))
            said = {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}
            messages = [*messages, said, {"role": "user", "content": asker.question()}]
        other = [{"role": "system", "content": asker.question()}, *opening]
        server.ask(asker.body(server, other, answer=8))
    after = counts(server)
    grown = {name: after[name] - before[name] for name in after}
    looked = grown["feature_hits_total"] + grown["feature_misses_total"]
    return {
        "encoder_cache": round(grown["feature_hits_total"] / max(looked, 1), 3),
        "prefix_cache": round(grown["cached_tokens_total"] / grown["prompt_tokens_total"], 3),
    }


def counts(server: Server) -> dict[str, float]:
    names = ("feature_hits", "feature_misses", "cached_tokens", "prompt_tokens")
    found = {}
    for line in server.get("/metrics")[1].decode().splitlines():
        name = line.partition("{")[0].removeprefix("retinue_")
        if not line.startswith("#") and name.removesuffix("_total") in names:
            found[name] = float(line.rsplit(" ", 1)[1])
    return found


def plot(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Latencies of both servers as cumulative shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    titles = {"first": "to the first token", "next": "from one token to the next"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, values in found.items():
            ordered = sorted(values[key])
            shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
            axis.step(ordered, shares, where="post", label=name)
        axis.set(xscale="log", xlabel=f"seconds {title}", ylabel="share of requests or tokens")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path)
    pyplot.close(figure)
