"""ModelZoo's checkpoint with its YAML, and the pair of HF folders."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from retinue.hub.files import whole_folder
from retinue.hub.modelzoo_out import write_mm_simple, write_pair
from retinue.hub.targets.base import Files, Job, Streamed, keep_origin


class _ModelZoo(Streamed):
    wordless = True

    def write(self, job: Job) -> tuple[list[str], list[str]]:
        with whole_folder(job.asked.dst) as partial:
            written = self.fill(job, partial)
            keep_origin(job, partial)
        missing = "no tokenizer was found beside the source, so none was written"
        return written, [] if job.words is not None else [missing]

    @abstractmethod
    def fill(self, job: Job, folder: Path) -> list[str]:
        """Write everything but provenance.json; names of the tensors."""


class ToMmSimple(_ModelZoo):
    """ModelZoo's mm_simple: a .mdl checkpoint and the YAML of its model."""

    name = "mm_simple"

    def fill(self, job: Job, folder: Path) -> list[str]:
        asked = job.asked
        written = write_mm_simple(
            job.opened, job.tensors, folder, release=asked.release, exact=asked.exact
        )
        if job.words is not None:
            job.words.tokenizer.save(folder)
        return written


class ToPair(_ModelZoo):
    """ModelZoo's pair of HF folders: image_model/ and text_model/."""

    name = "hf-pair"
    files: ClassVar[tuple[Files, ...]] = ("safetensors", "bin")

    def fill(self, job: Job, folder: Path) -> list[str]:
        return write_pair(
            job.opened,
            job.tensors,
            folder,
            final=job.asked.dst,
            shard_bytes=job.asked.shard_bytes,
            processor=job.words,
        )
