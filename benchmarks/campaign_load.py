"""Load held: minutes at saturation, with clients that vanish.

More clients than the server takes ask all the time: text, pictures, streams, several answers, JSON
by schema, beams. One in six leaves before its answer is there. Afterwards nothing may be left:
every accepted request was answered or cancelled, the rest got 429; blocks, features and memory are
as they were. Writes results/campaign_load.json.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import time
from collections import Counter
from typing import Any

import httpx
from campaign_fuzz import get, report
from campaign_served import Served
from PIL import Image

MINUTES = 10.0
CLIENTS, REQUESTS = 40, 24
"""Clients, each with one call at a time, and what the server takes."""
GROWTH_MB = 24.0
"""Resident memory that may be gained between the first and the last fifth of the time."""
# a connection each: one that is kept may be closed by the server just when it is used again
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}


def picture(seed: int) -> str:
    """A small picture of its own as a data URI."""
    chance = random.Random(seed)
    image = Image.new("RGB", (40, 30), tuple(chance.randrange(256) for _ in range(3)))
    image.putpixel((seed % 40, seed % 30), (255, 255, 255))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def body_of(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """(route, body) of some call."""
    kind = chance.random()
    words = " ".join(chance.choices(["what", "red", "how", "many", "circle"], k=3))
    if kind < 0.15:
        asked = {"prompt": words, "max_tokens": chance.randint(1, 24), "n": chance.choice([1, 2])}
        return "/v1/completions", asked
    urls = [picture(chance.randrange(5000)) for _ in range(chance.choice([0, 1, 1, 2]))]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}],
        "max_tokens": chance.randint(1, 24),
        "temperature": chance.choice([0, 1]),
    }
    if kind < 0.25:
        schema = {"name": "n", "schema": SCHEMA}
        body |= {"response_format": {"type": "json_schema", "json_schema": schema}}
    elif kind < 0.3:
        body |= {"num_beams": 2, "max_tokens": 4, "temperature": 0}
    elif kind < 0.6:
        body |= {"stream": True, "visual_tokens_min": 1}
    elif kind < 0.7:
        body |= {"n": 2, "logprobs": True}
    return "/v1/chat/completions", body


async def client(
    http: httpx.AsyncClient, seed: int, until: float, outcomes: Counter[str], wrong: list[str]
) -> None:
    """One client: call after call; some of them it does not wait for."""
    chance = random.Random(seed)
    while time.monotonic() < until:
        route, body = body_of(chance)
        patience = chance.uniform(0.0, 0.2) if chance.random() < 1 / 6 else None
        try:
            async with asyncio.timeout(patience):
                async with http.stream("POST", route, json=body) as reply:
                    text = (await reply.aread()).decode()
        except TimeoutError:
            outcomes["vanished"] += 1
            continue
        except httpx.HTTPError as error:
            outcomes["broken"] += 1
            wrong.append(repr(error))
            continue
        if reply.status_code == 200 and whole(text, streamed=bool(body.get("stream"))):
            outcomes["answered"] += 1
        elif reply.status_code == 429:
            outcomes["refused"] += 1
            await asyncio.sleep(chance.uniform(0.0, 0.1))
        else:
            outcomes["wrong"] += 1
            wrong.append(f"{reply.status_code}: {text:.200}")


def whole(text: str, *, streamed: bool) -> bool:
    """Whether a reply came to its end."""
    if streamed:
        return text.rstrip().endswith("data: [DONE]") and '"error"' not in text
    return all(choice["finish_reason"] for choice in json.loads(text)["choices"])


async def watch(served: Served, until: float, rows: list[dict[str, float]]) -> None:
    """Memory and the engine's figures every few seconds."""
    start = time.monotonic()
    async with httpx.AsyncClient(base_url=served.address, timeout=60, limits=LIMITS) as http:
        while time.monotonic() < until:
            figures = metrics((await http.get("/metrics")).text)
            figures |= {"s": round(time.monotonic() - start, 1), "mb": round(served.memory, 1)}
            rows.append(figures)
            await asyncio.sleep(max((until - start) / 120, 0.2))


def metrics(page: str) -> dict[str, float]:
    """Those that must not grow."""
    names = ("requests_running", "requests_waiting", "blocks", "blocks_free", "feature_bytes")
    found = {}
    for line in page.splitlines():
        name = line.partition("{")[0].removeprefix("retinue_")
        if not line.startswith("#") and name in names:
            found[name] = float(line.rsplit(" ", 1)[1])
    return found


async def campaign(served: Served, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    rows: list[dict[str, float]] = []
    async with httpx.AsyncClient(base_url=served.address, timeout=120, limits=LIMITS) as http:
        clients = [client(http, n, until, outcomes, wrong) for n in range(CLIENTS)]
        await asyncio.gather(*clients, watch(served, until, rows))
    end = time.monotonic() + 30
    while True:  # what vanished clients left is cancelled within moments
        last = metrics(get(served.address, "/metrics").decode())
        busy = last["requests_running"] + last["requests_waiting"]
        if (not busy and last["blocks_free"] == last["blocks"]) or time.monotonic() > end:
            break
        await asyncio.sleep(0.1)
    fifth = max(len(rows) // 5, 1)
    early = rows[fifth : 2 * fifth] or rows[:1]  # the first fifth fills caches
    memory = [statistics.median(row["mb"] for row in part) for part in (early, rows[-fifth:])]
    return {
        "seconds": round(seconds),
        "outcomes": dict(outcomes),
        "wrong": wrong[:10],
        "saturated": round(statistics.mean(row["requests_running"] > 0 for row in rows), 3),
        "memory_mb": {"second_fifth": memory[0], "last_fifth": memory[1]},
        "feature_bytes_most": max(row["feature_bytes"] for row in rows),
        "left": last,
        "rows": rows[:: max(len(rows) // 40, 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the whole campaign")
    options = parser.parse_args()
    seconds = max(MINUTES * 60 * options.share, 3.0)
    features = 256
    with Served(requests=REQUESTS, rows=8, kv_tokens=1024, feature_kb=features) as served:
        found = asyncio.run(campaign(served, seconds))
    found["verdict"] = served.verdict
    outcomes, left, memory = found["outcomes"], found["left"], found["memory_mb"]
    held = (
        served.verdict["sound"]
        and not found["wrong"]
        and left["blocks_free"] == left["blocks"]
        and not left["requests_running"] + left["requests_waiting"]
        and found["feature_bytes_most"] <= features * 1024
        and memory["last_fifth"] - memory["second_fifth"] <= GROWTH_MB
        and all(outcomes.get(kind, 0) > 0 for kind in ("answered", "vanished", "refused"))
    )
    report("campaign_load", found, held=held, share=options.share)


if __name__ == "__main__":
    main()
