"""Sample -> Example -> Batch: everything between a conversation and the model, by its specs.

The number of placeholders comes from the same pure function of specs that the model's layout obeys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import Field

from retinue.core.errors import CheckpointError, ConfigError, DataError
from retinue.core.spec import Spec
from retinue.media.frames import VideoPolicyField
from retinue.media.image import image_size, load_image, load_pixels
from retinue.media.views import StreamSpec, ViewPolicyField
from retinue.model.spec import Plan, RetinueConfig
from retinue.ops.collate import collate
from retinue.processor_hf import HFProcessing
from retinue.processor_ready import example_of
from retinue.processor_video import unfold
from retinue.text.labels import tokenize
from retinue.text.template import Template, resolve
from retinue.text.tokenizer import IMAGE, Tokenizer
from retinue.types import IGNORE, Batch, Example, Grid, Item, Media, Sample, Span

FILE = "processor.json"


class ProcessorSpec(Spec):
    """What processor.json holds. One view policy serves every stream, so grids agree.

    template: a name, or {name, fields that differ}; labels: a policy of text.labels;
    video: how a video becomes pictures; max_tokens: longest example, None = as long as it gets.
    """

    views: ViewPolicyField
    video: VideoPolicyField = Field(
        default_factory=lambda: {"kind": "frames"}, validate_default=True
    )
    streams: dict[str, StreamSpec] = Field(min_length=1)
    template: str | dict[str, Any]
    labels: str | dict[str, Any] = "assistant"
    max_tokens: int | None = None


class Processor(HFProcessing):
    """Turns samples into batches for one model; knows its tokenizer, template and views."""

    def __init__(self, plan: Plan, *, tokenizer: Tokenizer, spec: ProcessorSpec) -> None:
        self.plan, self.tokenizer, self.spec = plan, tokenizer, spec
        text = plan.config.get_text_config()
        tokenizer.model_vocab = int(getattr(text, "vocab_size", 0) or 0)
        tokenizer.image_in_text = tokenizer.id_of(IMAGE) == plan.spec.image_token_id

    @cached_property
    def template(self) -> Template:
        return resolve(self.spec.template)

    def adopt(self, spec: ProcessorSpec) -> None:
        """Work by other settings from now on, for everyone who holds this processor."""
        self.spec = spec
        self.__dict__.pop("template", None)

    @property
    def image_id(self) -> int:
        """The placeholder id; the model's config decides."""
        return self.plan.spec.image_token_id

    # ------------------------------------------------------------------ one sample

    def example(self, sample: Sample, *, train: bool = False, pixels: bool = True) -> Example:
        """Tokens, labels, spans and items of a sample.

        train: the conversation is complete and labels count; else a reply is asked for.
        pixels=False reads headers only: items have grids and counts but no tensors.
        Raises DataError or MediaError naming the sample.
        """
        where = f"sample {sample.id}"
        sample = self.unfold(sample, pixels=pixels)
        items = [self.item(media, where=where, pixels=pixels) for media in sample.media]
        if sample.ready is not None:
            return self.truncate(example_of(sample.id, sample.ready, items, id=self.image_id))
        segments = self.template.render(sample.messages, reply=not train)
        found = tokenize(
            segments,
            self.tokenizer,
            policy=self.spec.labels if train else "prompt",
            where=where,
        )
        return self.expand(sample.id, found.tokens, found.labels, found.places, items)

    def expand(
        self,
        id: str,
        tokens: Sequence[int],
        labels: Sequence[int],
        places: Sequence[tuple[int, int]],
        items: Sequence[Item],
    ) -> Example:
        """Grow the single placeholder of each (position, item) to as many as the item needs."""
        out_tokens: list[int] = []
        out_labels: list[int] = []
        spans: list[Span] = []
        at = 0
        for place, number in places:
            length = self.plan.spec.fusion.num_placeholders(items[number].num_tokens)
            out_tokens += tokens[at:place]
            out_labels += labels[at:place]
            spans.append(Span(start=len(out_tokens), length=length, item=number))
            out_tokens += [self.image_id] * length
            out_labels += [IGNORE] * length
            at = place + 1
        example = Example(
            id=id,
            tokens=out_tokens + list(tokens[at:]),
            labels=out_labels + list(labels[at:]),
            spans=spans,
            items=list(items),
        )
        return self.truncate(example)

    def truncate(self, example: Example) -> Example:
        """Cut the right end to max_tokens; a run of placeholders is never cut.

        Raises DataError when the limit falls inside one, or leaves no target.
        """
        limit = self.spec.max_tokens
        if limit is None or len(example.tokens) <= limit:
            return example
        where, full = f"sample {example.id}", len(example.tokens)
        for span in example.spans:
            if span.start < limit < span.start + span.length:
                raise DataError(
                    f"{full} tokens, and the limit of {limit} falls inside picture {span.item}",
                    where=where,
                    rule=f"its {span.length} placeholders must stay together",
                    fix="raise data.max_tokens, or shorten the sample",
                )
        kept = [span for span in example.spans if span.start + span.length <= limit]
        cut = Example(
            id=example.id,
            tokens=example.tokens[:limit],
            labels=example.labels[:limit],
            spans=kept,
            items=example.items,
        )
        if example.num_supervised and not cut.num_supervised:
            raise DataError(
                f"{full} tokens, and no target is left within the limit of {limit}",
                where=where,
                rule="a training sample needs at least one supervised token",
                fix="raise data.max_tokens, or shorten the sample",
            )
        return cut

    def unfold(self, sample: Sample, *, pixels: bool = True) -> Sample:
        """The sample with pictures in place of its videos, by the video policy of the spec.

        pixels=False: blank pictures of the right sizes. Raises MediaError, EnvError without av.
        """
        if all(media.kind == "image" for media in sample.media):
            return sample
        messages = unfold(
            sample.messages,
            policy=self.spec.video,
            template=self.template,
            where=f"sample {sample.id}",
            pixels=pixels,
        )
        return replace(sample, messages=messages)

    def item(self, media: Media, *, where: str, pixels: bool = True) -> Item:
        """The views of one picture in every stream, and how many tokens they will be."""
        assert media.kind == "image", "videos are unfolded first"
        assert not isinstance(media.source, tuple)
        views: dict[str, Any] = {}
        grid: Grid
        if pixels:
            exact = any(stream.mode == "exact" for stream in self.spec.streams.values())
            load: Any = load_image if exact else load_pixels
            if self.spec.views.stored:
                load = partial(load_image, as_stored=True)
            picture = load(media.source, where=where)
            for name, stream in self.spec.streams.items():
                views[name], grid = self.spec.views.views(picture, stream)
        else:
            size = image_size(media.source, where=where)
            grid = self.spec.views.grid(size, next(iter(self.spec.streams.values())))
        try:
            tokens = self.plan.tokens_for(grid, media.budget)
        except ConfigError as error:
            if media.budget is None:
                raise
            raise DataError(error.what, where=where, rule=error.rule, fix=error.fix) from error
        return Item(pixels=views, grid=grid, num_tokens=tokens, budget=media.budget)

    def length(self, sample: Sample) -> tuple[int, int]:
        """(tokens, views) of a training sample, from text and image headers alone."""
        example = self.example(sample, train=True, pixels=False)
        used = {span.item for span in example.spans}
        return len(example.tokens), sum(example.items[i].grid.num_views for i in used)

    # ------------------------------------------------------------------ batches

    def collate(
        self,
        examples: Sequence[Example],
        *,
        train: bool = False,
        packed: bool = False,
        pad_side: str = "right",
        multiple: int = 1,
    ) -> Batch:
        """One Batch of examples, padded rows or one packed row."""
        return collate(
            examples,
            pad_id=self.tokenizer.pad_id,
            train=train,
            packed=packed,
            pad_side=pad_side,
            multiple=multiple,
        )

    def batch(
        self, samples: Sequence[Sample], *, train: bool = False, pad_side: str = "right"
    ) -> Batch:
        """Samples -> one padded Batch; with labels only if `train`."""
        examples = [self.example(sample, train=train) for sample in samples]
        return self.collate(examples, train=train, pad_side=pad_side)

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special: bool = True,
        skip_special_tokens: bool | None = None,
    ) -> str:
        """Text of generated ids; skip_special_tokens is transformers' name of skip_special."""
        skip = skip_special if skip_special_tokens is None else skip_special_tokens
        kept = [int(i) for i in ids if int(i) != self.image_id]
        return self.tokenizer.decode(kept, skip_special=skip)

    # ------------------------------------------------------------------ files

    def fingerprint(self) -> str:
        """A hash of all that decides tokens and counts, for caches."""
        facts = [
            self.spec.model_dump_json(),
            self.plan.spec.model_dump_json(),
            json.dumps({name: s.model_dump() for name, s in self.plan.shapes.items()}),
        ]
        digest = hashlib.blake2b(digest_size=12)
        for data in [*(fact.encode() for fact in facts), *self.tokenizer.facts.files.values()]:
            digest.update(data)
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write processor.json and the tokenizer's files into a folder."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(root)
        (root / FILE).write_text(self.spec.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, config: RetinueConfig) -> Processor:
        """Read processor.json and the tokenizer beside it. Raises CheckpointError without them."""
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"no readable {FILE}", where=str(folder), rule=str(error)
            ) from None
        spec = ProcessorSpec.parse(data, where=str(path))
        vocab = int(getattr(config.get_text_config(), "vocab_size", 0) or 0)
        tokenizer = Tokenizer.load(folder, model_vocab=vocab)
        return cls(Plan(config), tokenizer=tokenizer, spec=spec)
