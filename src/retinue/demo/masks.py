"""Segment Anything through transformers: boxes of a picture -> masks.

Legend: C H W pixels, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from retinue.convert.sam import SAM, TWIN, sam_config
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.media.boxes import Box

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of Segment Anything, in grey levels."""

Mask = NDArray[np.bool_]


class Masks:
    """A segmenter. Call it with a picture and boxes in pixels; one (H, W) mask for each comes back.

    Source: Kirillov et al. 2023 (arXiv 2304.02643).
    """

    def __init__(self, model: Any, *, device: str | torch.device = "cpu") -> None:
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.side = int(model.config.vision_config.image_size)

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Self:
        """A folder of transformers' SamModel, or a published `sam_vit_*.pth`.

        Raises CheckpointError for anything else, and where weights are missing.
        """
        place = Path(path)
        if place.is_file():
            return cls(published(place), device=device)
        if not (place / "config.json").is_file():
            raise CheckpointError(
                "no config.json" if place.is_dir() else "does not exist",
                where=str(place),
                rule="a folder of transformers' SamModel, or a file sam_vit_h_4b8939.pth",
                fix="download facebook/sam-vit-huge, or the file from Segment Anything's page",
            )
        from transformers import SamConfig, SamModel

        try:
            config = SamConfig.from_pretrained(place, local_files_only=True)
            if config.model_type != "sam":
                raise ValueError(f"model_type {config.model_type!r}")
            model, report = SamModel.from_pretrained(
                place, config=config, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                "no model of Segment Anything",
                where=str(place),
                rule=" ".join(str(error).split())[:200],
            ) from error
        lost = sorted(key for key in report["missing_keys"] if key != TWIN)
        if lost:
            raise CheckpointError(f"{lost[0]} is missing", where=str(place), fix="copy it again")
        return cls(model, device=device)

    @torch.no_grad()
    def __call__(self, picture: Image.Image, boxes: Sequence[Box]) -> list[Mask]:
        """One mask per box, in their order, of the picture's size."""
        if not boxes:
            return []
        width, height = picture.size
        scale = self.side / max(width, height)
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        sized = picture.convert("RGB").resize(small, Image.Resampling.BILINEAR)
        levels_HWC = torch.from_numpy(np.array(sized, dtype=np.float32))
        pixels_CHW = ((levels_HWC - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
        right, below = self.side - small[0], self.side - small[1]
        pixels_CHW = F.pad(pixels_CHW, (0, right, 0, below))
        ratio = torch.tensor([small[0] / width, small[1] / height] * 2)
        boxes_N4 = torch.tensor([list(box) for box in boxes], dtype=torch.float32) * ratio
        found = self.model(
            pixel_values=pixels_CHW[None].to(self.device),
            input_boxes=boxes_N4[None].to(self.device),
            multimask_output=False,
        ).pred_masks[0]
        whole = F.interpolate(found.float(), (self.side, self.side), mode="bilinear")
        cut = whole[..., : small[1], : small[0]]
        full = F.interpolate(cut, (height, width), mode="bilinear")
        return [np.asarray((one > 0).cpu().numpy(), dtype=np.bool_) for one in full[:, 0]]


def published(file: Path) -> Any:
    """transformers' SamModel with the weights of a published file. Raises CheckpointError."""
    from transformers import SamConfig, SamModel

    weights = Weights([file])
    model = SamModel(SamConfig(**sam_config(weights, where=str(file))))
    state = {}
    for key in weights:
        name = SAM.to_retinue(key)
        if name is None:
            raise CheckpointError(f"{key} has no place in the model", where=str(file))
        state[name] = weights.read(key)
    state[TWIN] = state["prompt_encoder.shared_embedding.positional_embedding"]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            "does not fit the model its sizes say",
            where=str(file),
            rule=" ".join(str(error).split())[:200],
            fix="download the file again",
        ) from error
    return model
