"""Folders that vLLM and SGLang serve: transformers' Llava classes, with all that engines look for.

Sources: vllm-project/vllm and sgl-project/sglang, their lists of supported multimodal models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from retinue.convert.weights import read_json
from retinue.core.errors import CheckpointError
from retinue.core.files import write_json
from retinue.hub.targets.base import Job
from retinue.hub.targets.hf import ToHf
from retinue.hub.targets.plan import Plan
from retinue.processor import Processor
from retinue.text.jinja import as_jinja

LMS = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Language models that both engines build below a Llava class, by transformers' type."""
TOWERS = ("clip_vision_model", "siglip_vision_model")
SERVED = "`retinue serve` answers for every family"


class ToVllm(ToHf):
    """A folder that vLLM and SGLang serve: LLaVA or LLaVA-NeXT on a language model they know."""

    name = "vllm"

    def plan(self, job: Job) -> Plan:
        self.check(job)
        try:
            plan = super().plan(job)
        except CheckpointError as error:
            raise refused(error.what, error.rule) from None
        words = job.processor
        template = as_jinja(words.template, bos=first_token(words))

        def finish(folder: Path) -> None:
            plan.finish(folder)
            config = read_json(folder / "config.json")
            text = config["text_config"]
            text["architectures"] = [LMS[text.get("model_type", "llama")]]
            write_json(folder / "config.json", config)
            if template is not None:
                (folder / "chat_template.jinja").write_text(template, "utf-8")
            settings = read_json(folder / "generation_config.json")
            settings["eos_token_id"] = ends(words)[0]
            write_json(folder / "generation_config.json", settings)

        return replace(plan, finish=finish, notes=[*plan.notes, *self.notes(job, template)])

    def check(self, job: Job) -> None:
        """Raise CheckpointError for what neither engine has."""
        config = job.opened.config
        kind = str(config.get_text_config().model_type)
        if kind not in LMS:
            raise refused(f"a language model of type {kind!r}", f"known: {', '.join(LMS)}")
        fusion = config.spec.get("fusion", {}).get("kind", "splice")
        if fusion != "splice":
            raise refused(f"a fusion {fusion!r}", "pictures stand among the words, as in LLaVA")
        for encoder in config.encoders.values():
            if encoder.model_type not in TOWERS:
                raise refused(f"a tower {encoder.model_type!r}", f"known: {', '.join(TOWERS)}")

    def notes(self, job: Job, template: str | None) -> list[str]:
        """What to do with the folder, and what is to be known of it."""
        place, words = job.asked.dst, job.processor
        found = [f"vllm serve {place}   or   python -m sglang.launch_server --model-path {place}"]
        if template is None:
            found.append(
                f"the dialect {words.template.name!r} cannot be written as a chat template: give "
                "the engine one of your own (--chat-template)"
            )
        texts = ends(words)[1]
        if texts:
            found.append(
                f"answers end at {', '.join(map(repr, texts))}, which is no token: clients send "
                "it as `stop`"
            )
        if job.opened.config.spec.get("connector", {}).get("kind") == "elastic":
            found.append("these engines show all visual tokens: budgets stay with `retinue serve`")
        return found


def refused(what: str, rule: str | None) -> CheckpointError:
    """The error of a model that the engines cannot serve."""
    return CheckpointError(what, where="export to vllm", rule=rule, fix=SERVED)


def first_token(words: Processor) -> str:
    """What stands before every prompt, since engines add nothing to a chat template's text."""
    return (words.tokenizer.token_text("bos") or "") if words.tokenizer.adds_bos else ""


def ends(words: Processor) -> tuple[list[int], list[str]]:
    """What ends answers: ids of special tokens, and ordinary text."""
    tokenizer = words.tokenizer
    ids, texts = dict.fromkeys(tokenizer.eos_ids), []
    for text in filter(None, words.template.stop):
        id = tokenizer.id_of(text)
        if id is not None and (id in ids or id in tokenizer.special_ids):
            ids[id] = None
        else:
            texts.append(text)
    return list(ids), texts
