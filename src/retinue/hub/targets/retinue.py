"""Our own folders as a target."""

from __future__ import annotations

from pathlib import Path

from retinue.hub.save import write_settings
from retinue.hub.stream import language_dtype
from retinue.hub.targets.base import Job, generation
from retinue.hub.targets.plan import Plan, Planned


class ToRetinue(Planned):
    """Our own folder: config, safetensors, processor and tokenizer in one place."""

    name = "retinue"
    resized = True

    def plan(self, job: Job) -> Plan:
        opened = job.opened

        def finish(folder: Path) -> None:
            own = job.asked.dtype or language_dtype(opened.sources)
            write_settings(
                opened.config, job.processor, folder, dtype=own, generation=generation(opened)
            )

        return Plan(keys=None, finish=finish)
