"""Pictures from the web for requests of strangers: named hosts only, never a private address.

A name is resolved once, every address it has must be public, and the connection goes to one of just
these addresses, so that a name which resolves otherwise a moment later gains nothing. Redirects
begin anew. Reference: OWASP, Server-Side Request Forgery Prevention Cheat Sheet.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence

from retinue.core.errors import MediaError

PORTS = {"http": 80, "https": 443}
REDIRECTS = 3
MOVED = (301, 302, 303, 307, 308)
PIECE = 1 << 16

Resolve = Callable[[str, int], Sequence[str]]
"""(host, port) -> its addresses. Raises OSError."""
Dial = Callable[[str, int, float], socket.socket]
"""(address, port, seconds) -> a connected socket. Raises OSError."""


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system knows them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def dial(address: str, port: int, seconds: float) -> socket.socket:
    """A connection to an address, no name."""
    return socket.create_connection((address, port), timeout=seconds)


def public(address: str) -> bool:
    """Whether an address is one of the open internet, also when it hides in another."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if int(found) >> 32 in (0, 0x64FF9B << 64):  # IPv4 behind ::, or behind NAT64's prefix
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and not public(str(inner)):
            return False
    return found.is_global and not found.is_multicast


class Fetcher:
    """Fetches files of the web below limits.

    hosts: `example.org`, `*.example.org` (all names below it), `example.org:8080`, or `*` for every
    public host; seconds: of a whole download; resolve, dial: how names become addresses and
    addresses connections, both replaceable where there is no network.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        max_bytes: int,
        seconds: float = 10.0,
        resolve: Resolve = resolve,
        dial: Dial = dial,
    ) -> None:
        self.hosts = [host.lower() for host in hosts]
        self.max_bytes, self.seconds = max_bytes, seconds
        self.resolve, self.dial = resolve, dial
        self.tls = ssl.create_default_context()

    def get(self, url: str) -> bytes:
        """The contents of a file. Raises MediaError; what it says of private hosts is nothing."""
        end = time.monotonic() + self.seconds
        secure = False
        try:
            for _ in range(REDIRECTS + 1):
                parts = urllib.parse.urlsplit(url)
                if secure and parts.scheme != "https":
                    raise refused("a redirect from https to http")
                secure = parts.scheme == "https"
                found = self._once(parts, end=end)
                if isinstance(found, bytes):
                    return found
                url = urllib.parse.urljoin(url, found)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise refused(
                "it takes too long" if isinstance(error, TimeoutError) else "no answer"
            ) from None
        raise refused(f"more than {REDIRECTS} redirects")

    def allows(self, host: str, port: int, scheme: str) -> bool:
        """Whether the list of hosts names this one."""
        host = host.lower().rstrip(".")
        for entry in self.hosts:
            name, _, wanted = entry.partition(":")
            if port != (int(wanted) if wanted else PORTS[scheme]):
                continue
            if name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:])):
                return True
        return False

    def _once(self, parts: urllib.parse.SplitResult, *, end: float) -> bytes | str:
        """One request: the contents, or where to ask instead."""
        host, scheme = parts.hostname or "", parts.scheme
        if scheme not in PORTS or not host:
            raise refused("only http and https are fetched")
        if parts.username is not None or parts.password is not None:
            raise refused("an address with a password")
        port = parts.port or PORTS[scheme]
        if not self.allows(host, port, scheme):
            raise refused(f"the host {host!r:.80} is not on this server's list")
        addresses = self.resolve(host, port)
        if not addresses or not all(public(address) for address in addresses):
            raise refused(f"the host {host!r:.80} has no public address")
        link = self.dial(addresses[0], port, left(end))
        # a host that sends a letter now and then keeps every single wait short
        over = threading.Timer(left(end), hang_up, (link,))
        over.start()
        try:
            if scheme == "https":
                link = self.tls.wrap_socket(link, server_hostname=host)
            return self._read(link, parts, end=end)
        finally:
            over.cancel()
            link.close()

    def _read(
        self, link: socket.socket, parts: urllib.parse.SplitResult, *, end: float
    ) -> bytes | str:
        call = http.client.HTTPConnection(parts.hostname or "", parts.port or PORTS[parts.scheme])
        call.default_port = PORTS[parts.scheme]
        call.sock = link
        path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}"
        link.settimeout(left(end))
        headers = {"User-Agent": "retinue", "Accept": "image/*", "Accept-Encoding": "identity"}
        call.request("GET", path + query * bool(parts.query), headers=headers)
        reply = call.getresponse()
        place = reply.getheader("location")
        if reply.status in MOVED and place:
            return place
        if reply.status != 200:
            raise refused(f"the host answers {reply.status}")
        if reply.getheader("content-encoding", "identity").lower() != "identity":
            raise refused("compressed answers are not read")
        found = bytearray()
        while True:
            link.settimeout(left(end))
            piece = reply.read1(PIECE)
            if not piece:
                left(end)  # what was hung up on looks like an end
                if reply.length:
                    raise refused(f"the host hung up {reply.length} bytes early")
                return bytes(found)
            found += piece
            if len(found) > self.max_bytes:
                raise MediaError(
                    f"a picture of more than {self.max_bytes} bytes",
                    rule=f"at most {self.max_bytes} bytes",
                )


def hang_up(link: socket.socket) -> None:
    """End whatever waits for this connection."""
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


def left(end: float) -> float:
    """Seconds until `end`. Raises TimeoutError where it has passed."""
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def refused(reason: str) -> MediaError:
    return MediaError("the picture is not fetched", rule=reason, fix="send a data URI")
