"""The few routes of the hub's API that downloads use, served from folders on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """repos: "owner/name" -> folder; revisions: names that exist; `requests`: (first byte, file).

    `cut`: files whose next download stops after so many bytes, to be resumed.
    """

    daemon_threads = True

    def __init__(self, repos: dict[str, Path], revisions: tuple[str, ...] = ("main",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.revisions = repos, revisions
        self.requests: list[tuple[int, str]] = []
        self.cut: dict[str, int] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloaded(self) -> set[str]:
        """Files whose bytes were asked for."""
        with self.lock:
            return {name for _, name in self.requests}


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of model info, trees and files."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = path[:2] == ["api", "models"]
        path = path[2:] if api else path
        root = self.server.repos.get("/".join(path[:2]))
        if root is None:
            self.missing("RepoNotFound")
            return
        verb, rest = path[2] if len(path) > 2 else "revision", path[3:] or ["main"]
        commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.server.revisions}
        if rest[0] not in {*commits, *commits.values()}:
            self.missing("RevisionNotFound")
            return
        commit = commits.get(rest[0], rest[0])
        files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        if verb == "tree":
            rows = [
                {"type": "file", "path": f, "size": (root / f).stat().st_size, "oid": "0" * 40}
                for f in files
            ]
            self.reply(json.dumps(rows).encode(), body=body)
        elif verb == "revision":
            info = {"id": "/".join(path[:2]), "sha": commit, "private": False, "gated": False}
            info |= {"siblings": [{"rfilename": f} for f in files], "tags": [], "downloads": 0}
            self.reply(json.dumps(info).encode(), body=body)
        elif verb == "resolve" and "/".join(rest[1:]) in files:
            self.file(root, "/".join(rest[1:]), commit, body=body)
        else:
            self.missing("EntryNotFound")

    def file(self, root: Path, name: str, commit: str, *, body: bool) -> None:
        data = (root / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        headers |= {"Accept-Ranges": "bytes", "X-Linked-Size": str(len(data))}
        start = 0
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if body:
            with self.server.lock:
                self.server.requests.append((start, name))
                cut = self.server.cut.pop(name, None)
            if cut is not None:
                self.reply(data[start:], headers, body=body, status=200, stop=cut)
                return
        self.reply(data[start:], headers, body=body, status=206 if wanted else 200)

    def reply(
        self,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        body: bool,
        status: int = 200,
        stop: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(repos: dict[str, Path], *revisions: str) -> Iterator[Hub]:
    """A hub that runs while the block does."""
    hub = Hub(repos, ("main", *revisions))
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
