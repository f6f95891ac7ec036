"""The processor as transformers' users call it: text=, images=, return_tensors=, chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from retinue.core.errors import RequestError
from retinue.model.hf_inputs import grid_to_row
from retinue.ops.pixels import normalize
from retinue.text.labels import tokenize
from retinue.text.parts import on_lines
from retinue.types import Batch, Example, Media, Message, Part, Sample, Segment, Text

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
    ) -> Any:
        """Samples -> Batch; or text= and images= -> the keyword inputs of `model.forward`.

        text: prompts that hold one `<image>` per picture; images: a picture, a list, or a list per
        prompt; rows are padded on the left, for generation.
        """
        if samples is not None:
            return self.batch(samples, train=train, pad_side=pad_side or "right")
        if text is None:
            raise RequestError("neither samples nor text was given", rule="one of them is needed")
        if return_tensors != "pt":
            raise RequestError(
                f"return_tensors={return_tensors!r}", rule="only 'pt' (torch) is given"
            )
        prompts = [text] if isinstance(text, str) else list(text)
        pictures = deal(prompts, images)
        examples = [
            self.prompt_example(f"row {row}", prompt, own)
            for row, (prompt, own) in enumerate(zip(prompts, pictures, strict=True))
        ]
        return hf_inputs(self, self.collate(examples, pad_side=pad_side or padding_side))

    def prompt_example(self: Any, id: str, prompt: str, pictures: Sequence[Any]) -> Example:
        """A prompt that is already rendered: its `<image>` marks become placeholder runs."""
        segments: list[Segment] = []
        for number, piece in enumerate(prompt.split(IMAGE)):
            segments += [Segment(media=number - 1)] if number else []
            segments += [Segment(text=piece)] if piece else []
        items = [self.item(Media(source=picture), where=id) for picture in pictures]
        found = tokenize(segments, self.tokenizer, policy="prompt", where=id)
        example: Example = self.expand(id, found.tokens, found.labels, found.places, items)
        return example

    def apply_chat_template(
        self: Any,
        conversation: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str = "pt",
    ) -> Any:
        """Render OpenAI-style messages with the model's template; tokenize=True encodes."""
        messages = [message_of(entry) for entry in conversation]
        segments = self.template.render(messages, reply=add_generation_prompt)
        prompt = "".join(IMAGE if s.media is not None else s.text for s in segments)
        if not tokenize:
            return prompt
        pictures = [media.source for message in messages for media in message.media]
        inputs = self(text=[prompt], images=[pictures], return_tensors=return_tensors)
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
    """One OpenAI- or HF-style message dict -> Message."""
    content = entry["content"]
    if isinstance(content, str):
        return Message(role=entry["role"], parts=(Text(text=content),))
    parts: list[Part] = []
    for part in content:
        if part["type"] == "text":
            parts.append(Text(text=part["text"]))
            continue
        url = part.get("image_url")
        source = part.get("image") or part.get("path") or part.get("url") or url
        if isinstance(source, Mapping):
            source = source.get("url")
        if part["type"] not in ("image", "image_url") or source is None:
            raise RequestError(
                f"a message part {dict(part)!r:.80}",
                rule="parts are {type: text, text} or {type: image, image: path, URL or picture}",
            )
        parts.append(Media(source=source))
    return Message(role=entry["role"], parts=tuple(on_lines(parts)))


def deal(prompts: Sequence[str], images: Any) -> list[list[Any]]:
    """Which pictures belong to which prompt, by their `<image>` marks."""
    wanted = [prompt.count(IMAGE) for prompt in prompts]
    if images is None:
        flat: list[Any] = []
    elif isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
        flat = [picture for own in images for picture in own]
    else:
        flat = list(images) if isinstance(images, list | tuple) else [images]
    if sum(wanted) != len(flat):
        raise RequestError(
            f"{sum(wanted)} {IMAGE} marks for {len(flat)} pictures",
            rule=f"every picture needs one {IMAGE} in the text",
        )
    dealt, at = [], 0
    for count in wanted:
        dealt.append(flat[at : at + count])
        at += count
    return dealt


def hf_inputs(processor: Processor, batch: Batch) -> Any:
    """Batch -> BatchFeature: input_ids, attention_mask, pixel_values, image_grids."""
    from transformers import BatchFeature

    data: dict[str, Any] = {
        "input_ids": batch.tokens,
        "attention_mask": (batch.segments > 0).long(),
    }
    if batch.visual is not None:
        shape = next(iter(processor.plan.shapes.values()))
        pixels = normalize(
            batch.visual.pixels[shape.stream], mean=shape.mean, std=shape.std, dtype=torch.float32
        )
        views = list(pixels.split(batch.visual.num_views))
        most = max(len(view) for view in views)
        data["pixel_values"] = torch.stack(
            [torch.cat([view, view.new_zeros(most - len(view), *view.shape[1:])]) for view in views]
        )
        rows = [grid_to_row(grid) for grid in batch.visual.grids]
        data["image_grids"] = torch.tensor(rows)
    return BatchFeature(data)
