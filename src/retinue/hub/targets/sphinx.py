"""LLaMA2-Accessory's folders."""

from __future__ import annotations

from retinue.hub.sphinx_out import write_sphinx
from retinue.hub.targets.base import Job, Streamed


class ToSphinx(Streamed):
    """LLaMA2-Accessory's folder of SPHINX, in any number of shards."""

    name = "sphinx"
    resized = True

    def write(self, job: Job) -> tuple[list[str], list[str]]:
        asked = job.asked
        return write_sphinx(
            job.opened,
            job.tensors,
            asked.dst,
            shards=asked.shards,
            dtype=asked.dtype,
            processor=job.processor,
            source=asked.src,
        )
