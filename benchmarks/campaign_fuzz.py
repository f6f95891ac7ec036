"""Bad input: 10,000 mutated requests, and schemathesis on the OpenAPI schema.

No reply may be a server's error but 503, every error has a message, the server is alive afterwards
and its engine as if nothing had happened. Writes results/campaign_fuzz.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import common
from campaign_mutate import requests
from campaign_served import Served

COUNT, EXAMPLES = 10_000, 100
CHECKS = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


def mutations(address: str, count: int) -> dict[str, Any]:
    """Statuses of mutated requests, and whatever was wrong."""
    where = urllib.parse.urlsplit(address)
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    for number, (route, data) in enumerate(requests(count)):
        headers = {"content-type": "application/json"}
        if route.startswith("/admin/") and number % 2:
            headers["authorization"] = "Bearer sk-admin"
        link = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        try:
            link.request("POST", route, data, headers)
            reply = link.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            wrong.append(f"{route}: {error!r}: {data!r:.300}")
            continue
        finally:
            link.close()
        statuses[reply.status] += 1
        if reply.status >= 500 and reply.status != 503:
            wrong.append(f"{route} {reply.status}: {data!r:.300}")
        elif reply.status >= 400 and not message_of(text):
            wrong.append(f"{route} {reply.status} without a message: {text!r:.100}")
    return {"requests": count, "statuses": dict(sorted(statuses.items())), "wrong": wrong[:20]}


def message_of(text: bytes) -> Any:
    """What an error says, in OpenAI's form or FastAPI's (the flamingo route)."""
    try:
        body = json.loads(text)
        return body["error"]["message"] if "error" in body else body["detail"]
    except (ValueError, KeyError, TypeError):
        return None


def by_schema(address: str, examples: int, *, phases: str) -> dict[str, Any]:
    """schemathesis: its exit code and the end of its report."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "schemathesis.toml").write_text(CHECKS)
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"]
        command += ["run", f"{address}/openapi.json", "--checks", "not_a_server_error"]
        command += ["--phases", phases, "--max-examples", str(examples), "--seed", "1"]
        command += ["--header", "Authorization: Bearer sk-admin", "--request-timeout", "60"]
        command += ["--continue-on-failure", "--suppress-health-check", "all", "--no-color"]
        command += ["--generation-database", "none", "--warnings", "off"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    tail = [line for line in done.stdout.splitlines() if line.strip()][-30:]
    return {"exit": done.returncode, "examples": examples, "phases": phases, "tail": tail}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the whole campaign")
    options = parser.parse_args()
    count = max(int(COUNT * options.share), 50)
    examples = max(int(EXAMPLES * options.share), 1)
    phases = "examples,coverage,fuzzing,stateful" if options.share >= 1 else "fuzzing"
    start = time.time()
    with Served(requests=64, max_tokens=4, body_bytes=20_000) as served:
        found: dict[str, Any] = {"mutations": mutations(served.address, count)}
        found["schemathesis"] = by_schema(served.address, examples, phases=phases)
        alive = json.loads(get(served.address, "/health")) == {"status": "ok"}
    found |= {"alive": alive, "verdict": served.verdict, "seconds": round(time.time() - start)}
    statuses = found["mutations"]["statuses"]
    said = sum(statuses.values())
    held = (
        alive
        and served.verdict["sound"]
        and not found["mutations"]["wrong"]
        and found["schemathesis"]["exit"] == 0
        and said == count
        and statuses.get(200, 0) > count / 30
        and statuses.get(400, 0) > count / 8
    )
    report("campaign_fuzz", found, held=held, share=options.share)


def get(address: str, path: str) -> bytes:
    where = urllib.parse.urlsplit(address)
    link = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        link.request("GET", path)
        return link.getresponse().read()
    finally:
        link.close()


def report(name: str, found: dict[str, Any], *, held: bool, share: float) -> None:
    """Print the outcome; write it where the whole campaign was run. Leaves with 1 if it failed."""
    print(json.dumps(found, indent=1))
    if share >= 1:
        common.RESULTS.mkdir(exist_ok=True)
        record = {"name": name, "held": held, **found, **common.provenance()}
        (common.RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{name} {'holds' if held else 'FAILS'}")
    sys.exit(not held)


if __name__ == "__main__":
    main()
