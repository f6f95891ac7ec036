"""The processor as transformers' users call it: text=, images=, return_tensors=, chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from retinue.core.errors import RequestError
from retinue.model.hf_inputs import grid_to_row
from retinue.ops.pixels import normalize
from retinue.text.labels import tokenize
from retinue.text.parts import on_lines
from retinue.types import Batch, Example, Media, Message, Part, Role, Sample, Segment, Text, Visual

if TYPE_CHECKING:
    from retinue.processor import Processor

IMAGE = "<image>"


class HFProcessing:
    """What AutoProcessor's users expect of a processor, as a face over `Processor`."""

    def __call__(
        self: Any,
        samples: Sequence[Sample] | None = None,
        *,
        train: bool = False,
        pad_side: str | None = None,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        return_tensors: str = "pt",
        padding: Any = True,
        padding_side: str = "left",
        visual_tokens: int | None = None,
    ) -> Any:
        """Samples -> Batch; or text= and images= -> the keyword inputs of `model.forward`.

        text: prompts that hold one `<image>` per picture; images: a picture, a list, or a list per
        prompt; rows are padded on the left, for generation. visual_tokens: budget of every picture;
        a picture may also be a `Media` with a budget of its own. Raises ConfigError for a budget
        that the model cannot meet.
        """
        if samples is not None:
            return self.batch(samples, train=train, pad_side=pad_side or "right")
        if text is None:
            raise RequestError("neither samples nor text was given", rule="one of them is needed")
        if return_tensors != "pt":
            raise RequestError(
                f"return_tensors={return_tensors!r}", rule="only 'pt' (torch) is given"
            )
        self.plan.per_view(visual_tokens)
        prompts = [text] if isinstance(text, str) else list(text)
        pictures = deal(prompts, images)
        examples = [
            self.prompt_example(f"row {row}", prompt, own, visual_tokens=visual_tokens)
            for row, (prompt, own) in enumerate(zip(prompts, pictures, strict=True))
        ]
        return hf_inputs(self, self.collate(examples, pad_side=pad_side or padding_side))

    def prompt_example(
        self: Any,
        id: str,
        prompt: str,
        pictures: Sequence[Any],
        *,
        visual_tokens: int | None = None,
    ) -> Example:
        """A prompt that is already rendered: its `<image>` marks become placeholder runs.

        visual_tokens: budget of pictures that are no `Media` with one of their own.
        """
        segments: list[Segment] = []
        for number, piece in enumerate(prompt.split(IMAGE)):
            segments += [Segment(media=number - 1)] if number else []
            segments += [Segment(text=piece)] if piece else []
        media = [p if isinstance(p, Media) else Media(source=p) for p in pictures]
        items = [
            self.item(replace(one, budget=one.budget or visual_tokens), where=id) for one in media
        ]
        found = tokenize(segments, self.tokenizer, policy="prompt", where=id)
        example: Example = self.expand(id, found.tokens, found.labels, found.places, items)
        return example

    def apply_chat_template(
        self: Any,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str = "pt",
    ) -> Any:
        """Render OpenAI-style messages with the model's template; tokenize=True encodes.

        conversation: one list of messages, or a list of such lists, which gives a list of texts.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = [
            self.unfold(
                Sample(id=f"conversation {row}", messages=tuple(map(message_of, chat))),
                pixels=tokenize,
            ).messages
            for row, chat in enumerate(conversation if several else [conversation])
        ]
        prompts = [
            "".join(IMAGE if s.media is not None else s.text for s in segments)
            for segments in (self.template.render(c, reply=add_generation_prompt) for c in chats)
        ]
        if not tokenize:
            return prompts if several else prompts[0]
        pictures = [[media for message in c for media in message.media] for c in chats]
        inputs = self(text=prompts, images=pictures, return_tensors=return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def batch_decode(self: Any, rows: Any, skip_special_tokens: bool = True, **_: Any) -> list[str]:
        """Texts of generated rows."""
        return [self.decode(row, skip_special=skip_special_tokens) for row in as_lists(rows)]

    def save_pretrained(self: Any, folder: str, **_: Any) -> None:
        """Write processor.json and the tokenizer's files."""
        self.save(folder)

    @classmethod
    def from_pretrained(cls: Any, folder: str, **_: Any) -> Processor:
        """What AutoProcessor calls; `folder` is one of our own."""
        from transformers import AutoConfig

        found: Processor = cls.load(folder, AutoConfig.from_pretrained(folder))
        return found


def as_lists(rows: Any) -> list[list[int]]:
    """Tensor or nested sequence -> lists of ints."""
    return [list(map(int, row)) for row in (rows.tolist() if hasattr(rows, "tolist") else rows)]


def message_of(entry: Mapping[str, Any]) -> Message:
    """One OpenAI- or HF-style message dict -> Message. Raises RequestError for another shape."""
    role: Any = entry.get("role")
    content = entry.get("content")
    if role not in get_args(Role) or not isinstance(content, str | list | tuple):
        raise RequestError(
            f"a message {dict(entry)!r:.80}",
            rule=f"it is {{role, content}}, the role one of {', '.join(get_args(Role))}",
        )
    if isinstance(content, str):
        return Message(role=role, parts=(Text(text=content),))
    return Message(role=role, parts=tuple(on_lines([part_of(part) for part in content])))


def part_of(part: Any) -> Part:
    """One entry of a message's content list."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(text=part["text"])
    if kind in ("image", "image_url"):
        named = (part.get(key) for key in ("image", "path", "url", "image_url"))
        source = next((value for value in named if value is not None), None)
        if isinstance(source, Mapping):
            source = source.get("url")
        if source is not None:
            return Media(source=source, budget=budget_of(part))
    if kind == "video":
        named = (part.get(key) for key in ("video", "path", "url"))
        source = next((value for value in named if value is not None), None)
        if source is not None:
            if isinstance(source, list):
                source = tuple(source)
            return Media(kind="video", source=source, budget=budget_of(part))
    shown = dict(part) if isinstance(part, Mapping) else part
    raise RequestError(
        f"a message part {shown!r:.80}",
        rule="parts are {type: text, text}, {type: image, image: path, URL or picture} or "
        "{type: video, video: path, URL or frames}",
    )


def budget_of(part: Mapping[str, Any]) -> int | None:
    """The visual tokens per view that a content entry asks for; RequestError for no number."""
    budget = part.get("visual_tokens", part.get("budget"))
    if budget is None or (type(budget) is int and budget >= 1):
        return budget
    raise RequestError(
        f"visual_tokens: {budget!r:.60}", rule="it is a positive number of visual tokens per view"
    )


def deal(prompts: Sequence[str], images: Any) -> list[list[Any]]:
    """Which pictures belong to which prompt, by their `<image>` marks.

    images: one, a flat list over all prompts, or a list per prompt.
    """
    wanted = [prompt.count(IMAGE) for prompt in prompts]
    if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
        dealt = [list(own) for own in images]
        for row, (need, own) in enumerate(zip_longest(wanted, dealt)):
            if need != (None if own is None else len(own)):
                raise RequestError(
                    f"{need or 0} {IMAGE} marks in prompt {row} for {len(own or [])} pictures",
                    rule=f"every picture needs one {IMAGE} in the text",
                )
        return dealt
    flat: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    flat = [] if images is None else flat
    if sum(wanted) != len(flat):
        raise RequestError(
            f"{sum(wanted)} {IMAGE} marks for {len(flat)} pictures",
            rule=f"every picture needs one {IMAGE} in the text",
        )
    pictures = iter(flat)
    return [list(islice(pictures, count)) for count in wanted]


def hf_inputs(processor: Processor, batch: Batch) -> Any:
    """Batch -> BatchFeature: input_ids, attention_mask, pixel_values, image_grids."""
    from transformers import BatchFeature

    data: dict[str, Any] = {
        "input_ids": batch.tokens,
        "attention_mask": (batch.segments > 0).long(),
    }
    if batch.visual is not None:
        views = list(final_pixels(processor, batch.visual).split(batch.visual.num_views))
        most = max(len(view) for view in views)
        data["pixel_values"] = torch.stack(
            [torch.cat([view, view.new_zeros(most - len(view), *view.shape[1:])]) for view in views]
        )
        rows = [grid_to_row(grid) for grid in batch.visual.grids]
        data["image_grids"] = torch.tensor(rows)
        if any(budget is not None for budget in batch.visual.budgets):
            data["image_budgets"] = torch.tensor([budget or 0 for budget in batch.visual.budgets])
    return BatchFeature(data)


def final_pixels(processor: Processor, visual: Visual) -> Tensor:
    """(N, C, H, W), normalised; as uint8 where encoders of one stream normalise differently.

    Raises RequestError for a model of several streams, which one tensor cannot hold.
    """
    shapes = list(processor.plan.shapes.values())
    if len({shape.stream for shape in shapes}) > 1:
        raise RequestError(
            f"pictures in the streams {sorted(visual.pixels)}",
            rule="pixel_values holds one stream",
            fix="call processor(samples) and model.run(batch)",
        )
    first, pixels = shapes[0], visual.pixels[shapes[0].stream]
    if any((shape.mean, shape.std) != (first.mean, first.std) for shape in shapes):
        return pixels
    return normalize(pixels, mean=first.mean, std=first.std, dtype=torch.float32)
