"""A retinue model for lmms-eval: `lmms_eval --model retinue --model_args pretrained=PATH`.

The interface is that of lmms-eval 0.7 (https://github.com/EvolvingLMMs-Lab/lmms-eval), which finds
this model by the entry point `lmms_eval.models`; importing this file needs lmms-eval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from retinue.core.errors import ConfigError, DataError
from retinue.decode.budget import budget_of
from retinue.decode.offline import generate
from retinue.decode.prompt import with_video
from retinue.decode.sampling import SamplingParams
from retinue.decode.score import CHOICES, rank
from retinue.hub.load import load
from retinue.ops.backend import pick_device
from retinue.types import Media, Message, Part, Sample, Text

IMAGE = "<image>"
Visuals = Callable[[Any], Any]


class RetinueModel(lmms):
    """pretrained: a model folder or hub id. visual_tokens: per view, a number or `auto`.

    template, quant, adapter, base, video: as the options of `retinue eval`. batch_size: requests
    decoded side by side. Raises ConfigError for an argument that it does not know.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        visual_tokens: int | str | None = None,
        template: str | None = None,
        quant: str | None = None,
        adapter: str | None = None,
        base: str | None = None,
        video: str | None = None,
        device: str = "auto",
        batch_size: int | str = 16,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(key for key in others if key != "max_batch_size")
        if unknown:
            raise ConfigError(
                f"no model argument is called {unknown[0]!r}",
                where="--model_args",
                rule="pretrained, visual_tokens, template, quant, adapter, base, video",
            )
        place = pick_device(str(device).partition(":")[0])[0]
        model, processor = load(
            pretrained,
            device=place,
            template=template,
            adapters=adapter.split("+") if adapter else (),
            base=base,
            quant=quant,
        )
        self.model, self.processor = model, with_video(processor, video)
        self.budget = budget_of(self.processor.plan, visual_tokens)
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 16

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests; requests of equal settings are decoded together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        found = [""] * len(requests)
        for settings, numbers in groups.items():
            answers = generate(
                self.model,
                self.processor,
                (self.sample(requests[n].args[0], *requests[n].args[2:]) for n in numbers),
                params=params_of(json.loads(settings)),
                batch_size=self.batch_size,
                budget=self.budget,
            )
            for one in answers:
                number = numbers[one.number]
                found[number] = one.text
                self.cache_hook.add_partial("generate_until", requests[number].args[:2], one.text)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(loss, whether decoding would say it) of each request's continuation.

        The loss is the mean over tokens, less is better, as lmms-eval's own models return it.
        Requests about one context that follow each other share its forward.
        """
        if self.budget is not None and not isinstance(self.budget, int):
            raise ConfigError("visual_tokens=auto is for written answers", fix="name a number")
        pairs = [self.asked(request) for request in requests]
        found = []
        for same in runs(pairs):
            sample = Sample(
                id=same[0][0].id,
                messages=same[0][0].messages,
                meta={CHOICES: tuple(said for _, said in same)},
            )
            (made,) = rank(self.model, self.processor, [sample], budget=self.budget)
            found += [(-score, said) for score, said in zip(made.scores, made.greedy, strict=True)]
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raises ConfigError: tasks that ask on after an answer are not supported."""
        raise ConfigError("tasks of several rounds are not supported", where="lmms-eval")

    def asked(self, request: Any) -> tuple[Sample, str]:
        """A request's conversation and the continuation to score."""
        context, target, *rest = request.args
        _, doc_id, task, split = rest
        said = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        return self.sample(context, *rest), str(said).strip()

    def sample(self, context: str, visuals: Visuals, doc_id: Any, task: str, split: str) -> Sample:
        """A request as a conversation; pictures stand where it says `<image>`, else before it."""
        shown = [media_of(one) for one in flat(visuals(self.task_dict[task][split][doc_id]))]
        where = f"{task} {doc_id}"
        message = Message(role="user", parts=tuple(parts_of(context, shown, where=where)))
        return Sample(id=f"{task}/{doc_id}", messages=(message,))


def parts_of(context: str, shown: Sequence[Media], *, where: str) -> Iterator[Part]:
    """The text with its pictures. Raises DataError where places and pictures differ in number."""
    pieces = context.split(IMAGE)
    if len(pieces) == 1:
        for one in shown:
            yield one
            yield Text(text="\n")
        yield Text(text=context)
        return
    if len(pieces) - 1 != len(shown):
        raise DataError(
            f"{len(pieces) - 1} places for {len(shown)} pictures", where=where, rule="one each"
        )
    for piece, one in zip(pieces[:-1], shown, strict=True):
        if piece:
            yield Text(text=piece)
        yield one
    if pieces[-1]:
        yield Text(text=pieces[-1])


def media_of(visual: Any) -> Media:
    """A picture, or the path of a video. Raises DataError for sounds."""
    if isinstance(visual, Image.Image):
        return Media(source=visual.convert("RGB"))
    if isinstance(visual, str):
        still = visual.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"))
        return Media(kind="image" if still else "video", source=visual)
    raise DataError("only pictures and videos can be shown", where=f"{type(visual).__name__}")


def flat(visuals: Any) -> Iterable[Any]:
    """The pictures of a document: a list, a list of lists, one, or none."""
    if visuals is None:
        return
    if not isinstance(visuals, list | tuple):
        yield visuals
        return
    for one in visuals:
        yield from flat(one)


def params_of(settings: Mapping[str, Any]) -> SamplingParams:
    """Generation settings of a task. Raises ConfigError for beams."""
    if int(settings.get("num_beams") or 1) > 1:
        raise ConfigError(
            "beams are not searched here", where="generation_kwargs", fix="num_beams 1"
        )
    until = settings.get("until") or ()
    told = {key: settings[key] for key in ("max_new_tokens", "top_k") if settings.get(key)}
    sampled = settings.get("do_sample", True)
    return SamplingParams(
        **{"max_new_tokens": 1024, **told},
        temperature=float(settings.get("temperature") or 0) if sampled else 0.0,
        top_p=float(settings.get("top_p") or 1),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )


def runs(pairs: Sequence[tuple[Sample, str]]) -> Iterator[list[tuple[Sample, str]]]:
    """Neighbours that ask the same of the same document; a continuation may not repeat."""
    group: list[tuple[Sample, str]] = []
    for sample, said in pairs:
        if group and (
            group[0][0].id != sample.id
            or group[0][0].messages[0].text != sample.messages[0].text
            or said in [other for _, other in group]
        ):
            yield group
            group = []
        group.append((sample, said))
    if group:
        yield group


def manifests() -> Any:
    """What lmms-eval's registry reads from the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="retinue", simple_class_path=f"{__name__}.RetinueModel")
