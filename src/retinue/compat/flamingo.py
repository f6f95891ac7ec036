"""Instruct-Flamingo's `Inferencer` over our path: its arguments, its results.

Source: ChenDelong1999/instruct_flamingo (`inference/inferencer.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.core.errors import ConfigError, RequestError
from retinue.decode.rendered import rendered_ids, tidy
from retinue.hub.flamingo import TOWER, open_flamingo
from retinue.hub.load import make_processor
from retinue.hub.stream import fill, skeleton
from retinue.model.retinue import Retinue
from retinue.processor import Processor

TOWERS = {"ViT-L-14": TOWER, "ViT-L-14-336": f"{TOWER}-336"}
"""open_clip's names of OpenAI's towers."""


class Inferencer:
    """Loads checkpoints, answers rendered prompts.

    checkpoint_paths: files separated by commas, later ones over earlier ones. tuning_config: a JSON
    (for the scale of LoRA factors); with v1 the folder of the adapter. clip_vision_encoder_
    pretrained: `openai`, or open_clip's weights with the model config beside. faithful: also what
    tuned models and surplus `<image>` marks do there; else every generated word sees the last
    picture, and marks must match pictures. Raises ConfigError, CheckpointError.
    """

    def __init__(
        self,
        checkpoint_paths: str,
        lm_path: str,
        tuning_config: str | None,
        clip_vision_encoder_path: str,
        clip_vision_encoder_pretrained: str = "openai",
        cross_attn_every_n_layers: int = 4,
        v1: bool = False,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        faithful: bool = True,
    ) -> None:
        if v1:
            clip_vision_encoder_path, clip_vision_encoder_pretrained = "ViT-L-14-336", "openai"
        tuning = Path(tuning_config) if tuning_config else None
        if tuning is not None and tuning.is_dir():
            tuning = tuning / "adapter_config.json"
        opened = open_flamingo(
            ",".join([checkpoint_paths, *([str(tuning)] if tuning else [])]),
            base=lm_path,
            encoders={"clip": tower(clip_vision_encoder_path, clip_vision_encoder_pretrained)},
            version=1 if v1 else None,
        )
        every = opened.config.spec["fusion"]["every"]
        if every != cross_attn_every_n_layers:
            raise ConfigError(
                f"cross_attn_every_n_layers={cross_attn_every_n_layers}",
                where=checkpoint_paths,
                rule=f"the checkpoint has a block every {every} layers",
                fix=f"say {every}",
            )
        if faithful:
            tuned = bool(opened.config.foreign["tuning"].get("lora"))
            # PEFT's wrapper keeps from the model that pictures are cached: words see none
            quirks = {"counting": "ids", "decoding": "lost" if tuned or v1 else "kept"}
            opened.config.spec["fusion"] |= quirks
        self.processor: Processor = make_processor(opened)
        self.model: Retinue = skeleton(opened.config)
        where = checkpoint_paths
        fill(self.model, opened.sources, dtype=dtype, device=device, where=where)
        self.model.eval()

    def __call__(
        self,
        prompt: str | Sequence[str],
        images: Sequence[Any],
        max_new_token: int = 1024,
        num_beams: int = 3,
        temperature: float = 1.0,
        top_k: int = 20,
        top_p: float = 0.9,
        do_sample: bool = True,
        length_penalty: float = 1.0,
        no_repeat_ngram_size: int = 3,
        response_split: str = "### Assistant:",
    ) -> tuple[list[str], list[str]]:
        """Answers, and prompts with answers, one per row.

        prompt: rendered, with `<image>` marks; images: paths for one prompt, or a list per prompt;
        rows may have different numbers of them. Raises RequestError, MediaError.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        nested = bool(images) and isinstance(images[0], list | tuple)
        rows: list[Any] = list(images) if nested else [list(images)]
        if len(rows) != len(prompts):
            raise RequestError(
                f"pictures for {len(rows)} rows, and {len(prompts)} prompts",
                rule="a list of pictures per prompt",
            )
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        texts = []
        for text, own in zip(prompts, rows, strict=True):
            ids = self.answer_ids(
                text,
                own,
                max_new_tokens=max_new_token,
                num_beams=num_beams,
                do_sample=do_sample,
                length_penalty=length_penalty,
                no_repeat_ngram_size=no_repeat_ngram_size,
                **(sampling if do_sample else {}),
            )
            texts.append(tidy(self.processor.tokenizer.decode(ids.tolist(), skip_special=True)))
        return [text.split(response_split)[-1].strip() for text in texts], texts

    def answer_ids(self, prompt: str, images: Sequence[Any], **options: Any) -> Tensor:
        """(T,) ids of one prompt and its answer."""
        return rendered_ids(self.model, self.processor, prompt, images, **options)


def tower(path: str, pretrained: str) -> str | Path:
    """What loads as the tower that the original's two arguments name."""
    if Path(pretrained).is_file():
        return Path(pretrained)
    if pretrained == "openai" and path in TOWERS:
        return TOWERS[path]
    if Path(path).is_dir():
        return Path(path)
    raise ConfigError(
        f"a vision encoder {path!r} with weights {pretrained!r}",
        rule=f"openai has {', '.join(TOWERS)}; else weights are a file with its .json beside",
        fix="give the file of open_clip's weights",
    )
