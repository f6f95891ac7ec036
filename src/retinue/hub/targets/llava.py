"""The original LLaVA's folders, on LLaMA's family or on MOSS2."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from retinue.convert import llava_export
from retinue.convert.nested import budget_note
from retinue.convert.pictures import preprocessor_of
from retinue.convert.translation import foreign
from retinue.core.files import write_json
from retinue.hub.stream import Fingerprint, language_dtype
from retinue.hub.targets.base import Files, Job, dtype_name, generation
from retinue.hub.targets.moss2 import heads_of
from retinue.hub.targets.plan import Plan, Planned


class ToLlava(Planned):
    """The original LLaVA's folder: one CLIP tower, its MLP projector, a LLaMA or Mistral."""

    name = "llava"
    files: ClassVar[tuple[Files, ...]] = ("safetensors", "bin", "projector")
    own_tower = True
    moss2: ClassVar[bool] = False

    def plan(self, job: Job) -> Plan:
        opened, processor, asked = job.opened, job.processor, job.asked
        config, settings = opened.config, processor.spec.model_dump(mode="json")
        carry = asked.tower == "include" or (asked.tower == "auto" and tower_changed(job))
        named = str(foreign(config).get("config", {}).get("mm_vision_tower", ""))
        kind = dtype_name(asked.dtype or (language_dtype(opened.sources) if self.moss2 else None))
        fields = llava_export.export_llava(
            config, settings, dtype=kind, carry_tower=carry, moss2=self.moss2
        )
        own = fields["mm_vision_tower"] == llava_export.OWN_TOWER

        def finish(folder: Path) -> None:
            write_json(folder / "config.json", fields)
            write_json(folder / "generation_config.json", generation(opened))
            processor.tokenizer.save(folder)
            if own:
                place = folder / llava_export.OWN_TOWER
                place.mkdir()
                vision = next(iter(config.encoders.values())).to_dict()
                write_json(place / "config.json", vision)
                stream = next(iter(settings["streams"].values()))
                pictures = preprocessor_of(stream, settings["views"])
                pictures["image_processor_type"] = "CLIPImageProcessor"
                write_json(place / "preprocessor_config.json", pictures)

        notes = budget_note(config, to="llava")
        if own:
            notes.append(
                "the tower's config is in vision_tower/; the original looks for it from its "
                "working folder, so set mm_vision_tower to where you keep it"
            )
        elif not carry:
            notes.append(f"the tower stays {named!r}, unchanged and outside the checkpoint")
        return Plan(
            keys=llava_export.export_keys(config, carry_tower=carry, moss2=self.moss2),
            heads=heads_of(config) if self.moss2 else None,
            finish=finish,
            skip=lambda name: not carry and name.startswith("encoders."),
            notes=notes,
        )


class ToLlavaMoss2(ToLlava):
    """LLaVA-MOSS2's folder: LLaVA's with MOSS2's joined attention weights."""

    name = "llava_moss2"
    moss2 = True


def tower_changed(job: Job) -> bool:
    """Whether the checkpoint must hold the tower: it did, or it is not the named one."""
    kept = foreign(job.opened.config)
    if kept.get("format") != "llava" or kept.get("tower_carried"):
        return True
    if job.opened.format.startswith("llava"):
        return False
    mark = Fingerprint()
    for name, tensor in job.tensors():
        mark.add(name, tensor)
    return bool(mark.value != kept.get("tower_digest"))
