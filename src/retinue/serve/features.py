"""What the encoders said about pictures, by the pictures' contents."""

from __future__ import annotations

from collections import OrderedDict

from retinue.types import Features


class FeatureCache:
    """Features of whole pictures, all views at full length, before any budget cuts them.

    limit: bytes; the pictures unused for longest leave first. One that is larger than all is not
    kept. hits, misses: pictures asked for.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.held: OrderedDict[bytes, Features] = OrderedDict()
        self.hits = self.misses = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self.held

    def get(self, key: bytes) -> Features | None:
        """Features of a picture; counts as use."""
        found = self.held.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self.held.move_to_end(key)
        return found

    def put(self, key: bytes, features: Features) -> None:
        """Keep features, dropping others if need be."""
        size = _size(features)
        if key in self.held or size > self.limit:
            return
        self.held[key] = features
        self.bytes += size
        while self.bytes > self.limit:
            _, old = self.held.popitem(last=False)
            self.bytes -= _size(old)

    def check(self) -> None:
        """Raise AssertionError where the count of bytes is wrong."""
        assert self.bytes == sum(_size(one) for one in self.held.values())
        assert self.bytes <= self.limit


def _size(features: Features) -> int:
    return features.x_NLD.numel() * features.x_NLD.element_size()
