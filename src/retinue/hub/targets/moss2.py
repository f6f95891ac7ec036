"""MOSS2's folder: the language model of a multimodal one."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from retinue.convert.internlm import AS_GROUPED
from retinue.convert.internlm_export import moss2_fields
from retinue.convert.keymap import KeyMap
from retinue.core.files import write_json
from retinue.hub.stream import language_dtype
from retinue.hub.targets.base import Files, Job, dtype_name, generation
from retinue.hub.targets.plan import Plan, Planned
from retinue.model.spec import RetinueConfig


class ToMoss2(Planned):
    """MOSS2's folder: the language model alone."""

    name = "moss2"
    resized = True
    files: ClassVar[tuple[Files, ...]] = ("safetensors", "bin")

    def plan(self, job: Job) -> Plan:
        opened = job.opened
        own = dtype_name(job.asked.dtype or language_dtype(opened.sources))
        fields = moss2_fields(opened.config.get_text_config(), dtype=own)

        def finish(folder: Path) -> None:
            write_json(folder / "config.json", fields)
            write_json(folder / "generation_config.json", generation(opened))
            job.processor.tokenizer.save(folder)

        return Plan(
            keys=KeyMap(AS_GROUPED),
            heads=heads_of(opened.config),
            finish=finish,
            skip=lambda name: not name.startswith("lm."),
            notes=["only the language model: encoders and connector are left out"],
        )


def heads_of(config: RetinueConfig) -> tuple[int, int]:
    """Heads of the queries, and of keys and values."""
    text = config.get_text_config()
    return int(text.num_attention_heads), int(text.num_key_value_heads)
