"""Published data sets as rows of the instruction format: a converter each, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from retinue.core.registry import Registry
from retinue.data.published.raw import Raw, Row

Converter = Callable[[Raw], Iterator[Mapping[str, Any]]]
"""A data set in its own layout -> rows of `input` and `output`, or of `conversations`."""

_HERE = "retinue.data.published"

PUBLISHED: Registry[Converter] = Registry(
    "dataset",
    {
        "alpaca_cot": f"{_HERE}.text:alpaca_cot",
        "artemis": f"{_HERE}.clean:artemis",
        "dynosaur": f"{_HERE}.text:dynosaur",
        "funqa": f"{_HERE}.frames:funqa",
        "gqa": f"{_HERE}.questions:gqa",
        "grid_3d": f"{_HERE}.questions:grid_3d",
        "hme100k": f"{_HERE}.captions:hme100k",
        "imagefolder": f"{_HERE}.folders:imagefolder",
        "img2p": f"{_HERE}.captions:img2p",
        "lamini": f"{_HERE}.text:lamini",
        "lamm": f"{_HERE}.dialogs:lamm",
        "lamm_clean": f"{_HERE}.clean:lamm_clean",
        "levir_cc": f"{_HERE}.captions:levir_cc",
        "levir_cc_concat": f"{_HERE}.captions:levir_cc_concat",
        "llava": f"{_HERE}.dialogs:llava",
        "llavar": f"{_HERE}.dialogs:llavar",
        "longform": f"{_HERE}.text:longform",
        "lrv": f"{_HERE}.questions:lrv",
        "map": f"{_HERE}.columns:columns",
        "mimic_it": f"{_HERE}.frames:mimic_it",
        "mimic_it_images": f"{_HERE}.frames:mimic_it_images",
        "mscoco": f"{_HERE}.captions:mscoco",
        "nlvr2": f"{_HERE}.statements:nlvr2",
        "nsfw": f"{_HERE}.clean:nsfw",
        "oasst1": f"{_HERE}.trees:oasst1",
        "orca": f"{_HERE}.text:orca",
        "pf_1m": f"{_HERE}.text:pf_1m",
        "refcocog": f"{_HERE}.regions:refcocog",
        "refcocog_crops": f"{_HERE}.regions:refcocog_crops",
        "sharegpt": f"{_HERE}.dialogs:sharegpt",
        "svit": f"{_HERE}.dialogs:svit",
        "textcaps": f"{_HERE}.captions:textcaps",
        "toolbench": f"{_HERE}.dialogs:toolbench",
        "ultrachat": f"{_HERE}.text:ultrachat",
        "vcr": f"{_HERE}.regions:vcr",
        "video_chat": f"{_HERE}.frames:video_chat",
        "vqav2": f"{_HERE}.questions:vqav2",
        "vsr": f"{_HERE}.statements:vsr",
        "websrc": f"{_HERE}.pages:websrc",
        "websrc_html": f"{_HERE}.pages:websrc_html",
        "wizardlm": f"{_HERE}.text:wizardlm",
    },
)

__all__ = ["PUBLISHED", "Converter", "Raw", "Row"]
