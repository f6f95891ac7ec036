"""Requests with pictures through HTTP: `retinue serve` against `transformers serve`, and more.

Dims S, bf16, one thread: 16 requests at once, each with a picture of its own (576 visual tokens),
32 tokens of text and 64 forced answer tokens; caches are cold in every round. Both servers have one
folder and stand on loopback; in fp32 their answers must be equal before any time is taken.

Printed besides: the engine alone against `generate` request by request; the engine on transformers'
layers, which is what models without an inference twin get (not with --quick); a burst of texts
against a warm manager of `generate_batch`; seconds to the first token of turn 4 of a chat about a
picture, against reading everything again, in the engine and through HTTP; percentiles of both
servers' latencies, as a table and results/bench_serve_latency.png; hit rates of both caches.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import peer
import serve_http
import serve_text
import torch

from retinue.decode.sampling import SamplingParams
from retinue.model.lm.fused import Twin
from retinue.ops.malloc import tune_malloc
from retinue.serve.engine import Engine, EngineSpec
from retinue.serve.request import Picture, Request
from retinue.types import Example, Media

DIMS = peer.DIMS["s"]
TARGET = 4.0
SERVER = "transformers-serve"
PEER = "sequential-generate"
TEXT = 32


class NoText:
    """A processor for which ids stay ids; every prompt comes ready."""

    tokenizer = SimpleNamespace(eos_ids=[], special_ids=set(), vocab_size=0, id_of=lambda _: None)
    template = SimpleNamespace(stop=())

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return ""


def prompts(count: int, dims: peer.Dims, *, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [peer.sample(f"r{n}", TEXT, dims, generator, with_image=True) for n in range(count)]


def request(example: Example, *, new: int) -> Request:
    """An example as the engine takes it; a picture's key is a hash of its pixels."""
    pictures = [
        Picture(
            key=str(hash(item.pixels["rgb"].numpy().tobytes())).encode(),
            media=Media(source=b""),
            where=example.id,
        )
        for item in example.items
    ]
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    return Request(id=example.id, example=example, pictures=pictures, params=params)


def engine_of(model: Any, *, twin: bool = True, **fields: Any) -> Engine:
    engine = Engine(model, NoText(), spec=EngineSpec(**fields))  # type: ignore[arg-type]
    if twin:
        common.require(isinstance(engine.runner.runner, Twin), "our model has no inference twin")
    else:
        engine.runner.runner = model
    return engine


def forget(engine: Engine) -> None:
    """Cold caches again, without building the engine anew."""
    blocks = engine.blocks
    for block in list(blocks.asleep):
        del blocks.known[blocks.names.pop(block)]
        del blocks.asleep[block]
        blocks.idle.append(block)
    engine.features.held.clear()
    engine.features.bytes = 0
    engine.check_integrity()


def answers(engine: Engine, asked: Sequence[Request]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {one.id: [] for one in asked}
    for one in asked:
        engine.add(one)
    while engine.busy:
        for event in engine.step():
            if event.error is not None:
                raise event.error
            assert event.token is not None
            found[event.id].append(event.token)
    return found


def our_side(engine: Engine, examples: Sequence[Example], *, new: int) -> Callable[[], Any]:
    asked = [request(example, new=new) for example in examples]

    def run() -> Any:
        forget(engine)
        return answers(engine, asked)

    return run


def peer_side(
    theirs: Any, ours: Any, examples: Sequence[Example], *, new: int
) -> Callable[[], Any]:
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    dtype = next(theirs.parameters()).dtype

    def run() -> Any:
        found = {}
        for example in examples:
            batch = peer.packed([example])
            inputs = {
                "input_ids": torch.tensor([example.tokens]),
                "attention_mask": torch.ones(1, len(example.tokens), dtype=torch.long),
                "pixel_values": peer.pixels(batch, ours, dtype=dtype),
            }
            ids = theirs.generate(**inputs, max_new_tokens=new, do_sample=False)
            found[example.id] = ids[0, len(example.tokens) :].tolist()
        return found

    return run


def check_ids(theirs: Any, ours: Any, dims: peer.Dims, *, count: int, new: int) -> None:
    """Greedy ids in fp32: engine, engine on transformers' layers, generate."""
    examples = prompts(count, dims, seed=1)
    wanted = peer_side(theirs, ours, examples, new=new)()
    for twin in (True, False):
        engine = engine_of(ours, twin=twin, step_tokens=256)
        found = our_side(engine, examples, new=new)()
        common.require(found == wanted, f"fp32 ids, twin {twin}")
    print(f"fp32: {new} ids of {count} requests are equal")


def chat_turn(engine: Engine, dims: peer.Dims, *, turns: int, new: int) -> tuple[float, float]:
    """CPU seconds to the first token of the last turn: with what is known, and from nothing."""
    (example,) = prompts(1, dims, seed=2)
    generator = torch.Generator().manual_seed(3)
    forget(engine)
    found = []
    for turn in range(turns):
        own = Example(
            id=f"turn{turn}",
            tokens=example.tokens,
            labels=example.tokens,
            spans=example.spans,
            items=example.items,
        )
        for cold in (False, True) if turn == turns - 1 else (False,):
            if cold:
                forget(engine)
            start, said = time.process_time(), []
            engine.add(request(own, new=new))
            while engine.busy:
                for event in engine.step():
                    if not said:
                        found.append(time.process_time() - start)
                    said.append(event.token)
        fresh = torch.randint(3, dims.vocab - 1, (TEXT,), generator=generator).tolist()
        example = Example(
            id="",
            tokens=[*example.tokens, *said, *fresh],
            labels=[],
            spans=example.spans,
            items=example.items,
        )
    return found[-2], found[-1]


def through_http(dims: peer.Dims, theirs: Any, *, quick: bool) -> dict[str, Any]:
    """Both servers: seconds of bursts, latencies; ours: a chat's turn 4, hit rates."""
    count, new = (4, 12) if quick else (16, 64)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        serve_http.write_folder(folder, theirs, dims)
        asker = serve_http.Asker(folder, dims, text=TEXT, answer=new)
        if not quick:
            with serve_http.servers(folder, dtype="float32") as both:
                serve_http.check_texts(both, asker, count=3, new=16)
        dtype = "float32" if quick else "bfloat16"  # --quick starts one pair of servers
        with serve_http.servers(folder, dtype=dtype) as (ours, other):
            if quick:
                serve_http.check_texts([ours, other], asker, count=1, new=6)
            timings = common.alternate(
                {
                    SERVER: serve_http.burst(other, asker, count),
                    "retinue-serve": serve_http.burst(ours, asker, count),
                },
                clock=time.perf_counter,
            )
            late = {
                SERVER: serve_http.latencies(other, asker, count),
                "retinue-serve": serve_http.latencies(ours, asker, count),
            }
            turns = [
                serve_http.chat_turns(ours, asker, turns=4, new=16)
                for _ in range(1 if quick else 3)
            ]
            rates = serve_http.hit_rates(ours, asker, users=1 if quick else 4, turns=4)
    return {
        "count": count,
        "timings": timings,
        "late": late,
        "known": min(warm for warm, _ in turns),
        "from_nothing": min(cold for _, cold in turns),
        "hit_rates": rates,
    }


def texts(theirs: Any, ours: Any, dims: peer.Dims, *, quick: bool) -> float:
    """How much sooner a burst of texts is answered than by a warm manager, in CPU time."""
    count = 8 if quick else 16
    engine = engine_of(ours)

    def run(asked: serve_text.Asked) -> list[list[int]]:
        forget(engine)
        found = answers(engine, serve_text.our_requests(asked))
        return [found[str(number)] for number in range(len(asked))]

    manager = serve_text.Manager(serve_text.language_model(theirs, dims), tokens=8192)
    try:
        timings = common.alternate(
            {
                "generate_batch": serve_text.fresh(dims, count, manager.run),
                "retinue-engine": serve_text.fresh(dims, count, run),
            }
        )
    finally:
        manager.end()
    print(f"bf16, {count} texts of 60 to 300 tokens, 4 to 48 new ones, warm manager:")
    common.table(timings, peer="generate_batch")
    return timings["generate_batch"].min_s / timings["retinue-engine"].min_s


def main() -> None:
    parser = common.parser(__doc__)
    options = parser.parse_args()
    tune_malloc()
    quick = options.quick
    dims = peer.DIMS["xs"] if quick else DIMS
    count, new, rounds = (4, 12, 3) if quick else (16, 64, 3)
    theirs = peer.make_peer(dims).eval()
    ours = peer.twin_of(theirs, dims).eval()
    check_ids(theirs, ours, dims, count=2 if quick else 4, new=6 if quick else 16)
    fp32 = engine_of(ours)

    def ids(asked: serve_text.Asked) -> list[list[int]]:
        found = answers(fp32, serve_text.our_requests(asked))
        return [found[str(number)] for number in range(len(asked))]

    serve_text.check(theirs, dims, ids)
    served = through_http(dims, theirs, quick=quick)
    theirs, ours = theirs.bfloat16(), ours.bfloat16()
    examples = prompts(count, dims)
    engine = engine_of(ours)
    sides = {
        PEER: peer_side(theirs, ours, examples, new=new),
        "retinue-engine": our_side(engine, examples, new=new),
    }
    if not quick:
        plain = engine_of(ours, twin=False)
        sides["retinue-engine-layers"] = our_side(plain, examples, new=new)
    alone = common.alternate(sides, rounds=rounds)
    print(f"bf16, {count} requests of {dims.image_tokens} + {TEXT} tokens, {new} new tokens each,")
    print("without HTTP, CPU time:")
    common.table(alone, peer=PEER)
    warm, cold = min(chat_turn(engine, dims, turns=4, new=16) for _ in range(1 if quick else 3))
    print(f"turn 4 of a chat: first token after {warm:.3f} s, {cold:.3f} s from nothing")
    print(f"x{cold / warm:.1f} sooner in the engine")
    text_ratio = texts(theirs, ours, dims, quick=quick)
    timings = served["timings"]
    print("through HTTP, wall time:")
    common.table(timings, peer=SERVER)
    rates = {name: round(served["count"] / t.min_s, 3) for name, t in timings.items()}
    table = {
        name: {key: serve_http.percentiles(values) for key, values in found.items()}
        for name, found in served["late"].items()
    }
    for name, rate in rates.items():
        print(f"{name}: {rate} requests/s; seconds to the first token {table[name]['first']},")
        print(f"{'':{len(name)}}  from one to the next {table[name]['next']}")
    known, nothing = served["known"], served["from_nothing"]
    print(f"turn 4 through HTTP: {known:.3f} s, {nothing:.3f} s from nothing,", end=" ")
    print(f"x{nothing / known:.1f} sooner; hit rates {served['hit_rates']}")
    if not quick:
        serve_http.plot(served["late"], common.RESULTS / "bench_serve_latency.png")
    common.finish(
        "bench_serve",
        ratio=timings[SERVER].min_s / timings["retinue-serve"].min_s,
        target=TARGET,
        against=SERVER,
        quick=quick,
        timings={**timings, **alone},
        details={
            "requests": count,
            "new_tokens": new,
            "requests_per_s": rates,
            "engine_ratio": round(alone[PEER].min_s / alone["retinue-engine"].min_s, 2),
            "text_burst_ratio": round(text_ratio, 2),
            "latency_s": table,
            "turn_4_first_token_s": {"known": round(warm, 4), "from_nothing": round(cold, 4)},
            "turn_4_ratio": round(cold / warm, 2),
            "turn_4_http_first_token_s": {
                key: round(served[key], 4) for key in ("known", "from_nothing")
            },
            "turn_4_http_ratio": round(nothing / known, 2),
            "hit_rates": served["hit_rates"],
        },
    )


if __name__ == "__main__":
    main()
