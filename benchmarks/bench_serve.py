"""Requests with pictures: our engine against `generate` one request at a time.

Dims S, bf16: 16 requests at once, each with a picture of its own (576 visual tokens), 32 tokens of
text and 64 forced answer tokens; caches are cold in every round. The peer is what `transformers
serve` does with requests that have pictures, without its HTTP. Greedy ids of both sides must be
equal in fp32 before any time is taken. Printed besides: our engine on transformers' layers, which
is what models without an inference twin get (not with --quick); seconds to the first token of turn
4 of a chat about a picture, against reading everything again; hit rates of both caches. Not yet
measured: the way through HTTP on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import common
import peer
import torch

from retinue.decode.sampling import SamplingParams
from retinue.model.lm.fused import Twin
from retinue.ops.malloc import tune_malloc
from retinue.serve.engine import Engine, EngineSpec
from retinue.serve.request import Picture, Request
from retinue.types import Example, Media

DIMS = peer.DIMS["s"]
TARGET = 4.0
PEER = "sequential-generate"
TEXT = 32


class NoText:
    """A processor for which ids stay ids; every prompt comes ready."""

    tokenizer = SimpleNamespace(eos_ids=[], special_ids=set(), vocab_size=0, id_of=lambda _: None)
    template = SimpleNamespace(stop=())

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return ""


def prompts(count: int, *, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [peer.sample(f"r{n}", TEXT, DIMS, generator, with_image=True) for n in range(count)]


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


def check_ids(theirs: Any, ours: Any, *, count: int, new: int) -> None:
    """Greedy ids in fp32: engine, engine on transformers' layers, generate."""
    examples = prompts(count, seed=1)
    wanted = peer_side(theirs, ours, examples, new=new)()
    for twin in (True, False):
        engine = engine_of(ours, twin=twin, step_tokens=256)
        found = our_side(engine, examples, new=new)()
        common.require(found == wanted, f"fp32 ids, twin {twin}")
    print(f"fp32: {new} ids of {count} requests are equal")


def chat_turn(engine: Engine, *, turns: int, new: int) -> tuple[float, float]:
    """CPU seconds to the first token of the last turn: with what is known, and from nothing."""
    (example,) = prompts(1, seed=2)
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
        fresh = torch.randint(3, DIMS.vocab - 1, (TEXT,), generator=generator).tolist()
        example = Example(
            id="",
            tokens=[*example.tokens, *said, *fresh],
            labels=[],
            spans=example.spans,
            items=example.items,
        )
    return found[-2], found[-1]


def main() -> None:
    parser = common.parser(__doc__)
    options = parser.parse_args()
    tune_malloc()
    quick = options.quick
    count, new, rounds = (6, 24, 3) if quick else (16, 64, 3)
    theirs = peer.make_peer(DIMS).eval()
    ours = peer.twin_of(theirs, DIMS).eval()
    check_ids(theirs, ours, count=2 if quick else 4, new=6 if quick else 16)
    theirs, ours = theirs.bfloat16(), ours.bfloat16()
    examples = prompts(count)
    engine = engine_of(ours)
    sides = {
        PEER: peer_side(theirs, ours, examples, new=new),
        "retinue-engine": our_side(engine, examples, new=new),
    }
    if not quick:
        plain = engine_of(ours, twin=False)
        sides["retinue-engine-layers"] = our_side(plain, examples, new=new)
    timings = common.alternate(sides, rounds=rounds)
    print(f"bf16, {count} requests of {DIMS.image_tokens} + {TEXT} tokens, {new} new tokens each:")
    common.table(timings, peer=PEER)
    rates = {name: round(count / timing.min_s, 3) for name, timing in timings.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate} requests/s, {rate * new:.1f} tokens/s")
    warm, cold = min(chat_turn(engine, turns=4, new=16) for _ in range(1 if quick else 3))
    print(f"turn 4 of a chat: first token after {warm:.3f} s, {cold:.3f} s from nothing")
    print(f"x{cold / warm:.1f} sooner")
    hits = engine.features.hits / max(engine.features.hits + engine.features.misses, 1)
    common.finish(
        "bench_serve",
        ratio=timings[PEER].min_s / timings["retinue-engine"].min_s,
        target=TARGET,
        against=PEER,
        quick=quick,
        timings=timings,
        details={
            "requests": count,
            "new_tokens": new,
            "requests_per_s": rates,
            "turn_4_first_token_s": {"known": round(warm, 4), "from_nothing": round(cold, 4)},
            "turn_4_ratio": round(cold / warm, 2),
            "feature_hit_rate": round(hits, 3),
            "cached_token_rate": round(engine.cached_tokens / engine.prompt_tokens, 3),
        },
    )


if __name__ == "__main__":
    main()
