"""`eval_model`: one question about pictures, as the original's quick start asks it."""

from __future__ import annotations

from typing import Any

import torch
from PIL.Image import Image as PILImage

from retinue.compat.llava.conversation import conv_templates
from retinue.compat.llava.loading import load_pretrained_model
from retinue.compat.llava.names import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
    conv_mode_of,
    get_model_name_from_path,
)
from retinue.compat.llava.pictures import process_images
from retinue.compat.llava.tokenizer import tokenizer_image_token
from retinue.convert.translation import FOREIGN
from retinue.core.errors import RequestError
from retinue.core.log import once
from retinue.media.image import load_image


def eval_model(args: Any) -> None:
    """Print the answer to `args.query` about the pictures of `args.image_file`.

    Fields of args: model_path, model_base, query, conv_mode (None: by the model's name),
    image_file (several joined by `sep`), sep, temperature (0: greedy), top_p, num_beams,
    max_new_tokens, matryoshka_vis_token_scale (absent or None: all visual tokens); ours: device
    (default auto). In the query each `<image-placeholder>` is a picture's place; without one, one
    picture stands in front, and further ones are left out with a note. Raises CheckpointError,
    MediaError, and RequestError where places and pictures differ in number.
    """
    name = get_model_name_from_path(args.model_path)
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path,
        getattr(args, "model_base", None),
        name,
        device=getattr(args, "device", "auto"),
    )
    old = (getattr(model.config, FOREIGN, None) or {}).get("config", {})
    query, places = asked(args.query, marks=bool(old.get("mm_use_im_start_end")))
    talk = conv_templates[conversation_of(name, getattr(args, "conv_mode", None))]
    talk.append_message(talk.roles[0], query)
    talk.append_message(talk.roles[1], None)

    files = str(args.image_file).split(getattr(args, "sep", ","))
    images = shown([load_image(file) for file in files], places)
    ids = tokenizer_image_token(
        talk.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"
    )
    temperature = getattr(args, "temperature", 0.2)
    with torch.inference_mode():
        output = model.generate(
            ids[None],
            images=process_images(images, image_processor, model.config),
            image_sizes=[image.size for image in images],
            do_sample=temperature > 0,
            temperature=temperature,
            top_p=getattr(args, "top_p", None),
            num_beams=getattr(args, "num_beams", 1),
            max_new_tokens=getattr(args, "max_new_tokens", 512),
            use_cache=True,
            matryoshka_vis_token_scale=getattr(args, "matryoshka_vis_token_scale", None),
        )
    print(tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip())


def asked(query: str, *, marks: bool) -> tuple[str, int]:
    """The query with `<image>` at every picture's place, and how many places there are.

    marks: pictures stand between the tokens of `mm_use_im_start_end`.
    """
    image = DEFAULT_IMAGE_TOKEN
    if marks:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    if IMAGE_PLACEHOLDER in query:
        query = query.replace(IMAGE_PLACEHOLDER, image)
    else:
        query = f"{image}\n{query}"
    return query, query.count(DEFAULT_IMAGE_TOKEN)


def shown(images: list[PILImage], places: int) -> list[PILImage]:
    """The pictures that the query has places for; the original leaves out the others unsaid."""
    if places > len(images):
        raise RequestError(
            f"{places} places in the query for {len(images)} pictures",
            rule=f"each {IMAGE_PLACEHOLDER} needs a picture",
            fix="name more in image_file, joined by sep",
        )
    if places < len(images):
        once(
            f"eval_model: {len(images)} pictures, of which the query shows {places}; write "
            f"{IMAGE_PLACEHOLDER} at each one's place to show all"
        )
    return images[:places]


def conversation_of(name: str, asked_for: str | None) -> str:
    """The conversation to use: the one asked for, else the one that the name stands for."""
    inferred = conv_mode_of(name)
    if asked_for is not None and asked_for != inferred:
        once(f"eval_model: {name!r} would be asked as {inferred}; as you say, it is {asked_for}")
    return asked_for or inferred
