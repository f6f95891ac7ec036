"""transformers' Llava and LlavaNext."""

from __future__ import annotations

from pathlib import Path

from retinue.convert import hf_export
from retinue.convert.nested import budget_note
from retinue.core.files import write_json
from retinue.hub.grow import grown, image_token
from retinue.hub.sources import Opened
from retinue.hub.stream import language_dtype, skeleton
from retinue.hub.targets.base import Job, dtype_name, generation
from retinue.hub.targets.plan import Plan, Planned


class ToHf(Planned):
    """transformers' Llava or LlavaNext, which other engines read too."""

    name = "hf"

    def plan(self, job: Job) -> Plan:
        opened = job.opened
        config, settings = opened.config, job.processor.spec.model_dump(mode="json")
        token, write_tokenizer = image_token(job.processor.tokenizer)
        text = config.get_text_config()
        rows = max(token + 1, text.vocab_size)
        more = rows - text.vocab_size
        text.vocab_size = rows
        kind = dtype_name(job.asked.dtype or language_dtype(opened.sources))
        fields = hf_export.export_hf(config, settings, dtype=kind, image_token_id=token)
        files = hf_export.processor_files(config, settings, fields)

        def finish(folder: Path) -> None:
            write_json(folder / "config.json", fields)
            write_json(folder / "generation_config.json", generation(opened))
            write_tokenizer(folder)
            for name, data in files.items():
                write_json(folder / name, data)

        added = f"{more} rows added to the vocabulary for the placeholder <image>"
        return Plan(
            keys=hf_export.export_keys(config),
            finish=finish,
            grow=grown(token_rows(opened), rows=rows),
            notes=[*([added] if more else []), *budget_note(config, to="hf")],
        )


def token_rows(opened: Opened) -> set[str]:
    """Our names of the tensors that have one row per token."""
    model = skeleton(opened.config)
    return {f"lm.{model.lm.embed_name}.weight", f"lm.{model.lm.head_name}.weight"}
