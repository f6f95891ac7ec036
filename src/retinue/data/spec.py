"""The `data:` branch of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from retinue.core.spec import Spec
from retinue.data.augment import AugmentField, NoAugment
from retinue.data.draw import EpochSpec
from retinue.data.fill import FillField, NoFill
from retinue.data.formats import FORMATS
from retinue.data.formats.shards import WebSpec
from retinue.data.sampler import SAMPLERS
from retinue.data.turns import TurnsSpec


def _format(name: str) -> str:
    if name != "auto" and name not in FORMATS:
        raise ValueError(FORMATS.unknown(name))
    return name


def _sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise ValueError(SAMPLERS.unknown(name))
    return name


class SourceSpec(Spec):
    """One data file of a mixture.

    ratio: how often an epoch visits it: 2.0 = twice, 0.5 = another half each epoch.
    share: in place of ratios, of all sources or none: its part of an epoch's tokens.
    limit: use only the first so many records. type: a label for type-wise samplers and reports.
    empty_answers: accept empty answers, for runs that repeat an original's label masks.
    blind: leave the pictures out, so that the records' words stand alone.
    turns: {add, max_media}: each record goes on with others of this file, as further turns.
    web: {threshold, most, ...}: what is taken of web documents, for format `shards`.
    """

    path: str
    format: Annotated[str, AfterValidator(_format)] = "auto"
    ratio: float = Field(default=1.0, gt=0)
    share: float | None = Field(default=None, gt=0)
    type: str | None = None
    media_root: str | None = None
    limit: int | None = Field(default=None, gt=0)
    empty_answers: bool = False
    blind: bool = False
    turns: TurnsSpec | None = None
    web: WebSpec | None = None


class DataSpec(Spec):
    """Sources and how an epoch is cut into steps.

    max_tokens: longest sequence of a row; with packing, the budget of a pack. None: no limit.
    packing: none = padded micro-batches; step = the samples of one optimizer step share packs, so
        the step has the same samples as without; window = packs filled from `window` samples, a
        step is then `global_batch` packs.
    An epoch of shares is as short as visits every source at least once.
    max_views: pictures in one pack. overlong: what to do with a sample above either limit.
    epoch: {samples, share: ratio|sqrt, replace}: an epoch of so many samples, shared out among the
        sources; None: as often as each source's ratio says.
    fill: {kind: black, count}: pictures nobody looks at up to a number, as the original pads.
    augment: {kind: flip, share}: pictures mirrored by chance, anew in each epoch; in training only.
    on_error: stop at a broken sample, or skip it, count it and list it.
    validation: a fraction held out by the hash of the sample id, or the path of another file, whose
    media paths start at validation_root.
    """

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, gt=0)
    max_views: int | None = Field(default=None, gt=0)
    packing: Literal["none", "step", "window"] = "none"
    window: int = Field(default=512, gt=0)
    overlong: Literal["error", "truncate", "skip"] = "truncate"
    sampler: Annotated[str, AfterValidator(_sampler)] = "shuffle"
    drop_last: bool = False
    seed: int = 0
    workers: int = Field(default=0, ge=0)
    validation: float | str | None = None
    validation_root: str | None = None
    on_error: Literal["error", "skip"] = "error"
    epoch: EpochSpec | None = None
    fill: FillField = NoFill()
    augment: AugmentField = NoAugment()

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        shares = [source.share for source in self.sources]
        if any(shares) and (None in shares or any(source.ratio != 1 for source in self.sources)):
            raise ValueError("give every source a share, and none a ratio, or no source a share")
        if self.packing != "none" and self.max_tokens is None:
            raise ValueError("packing needs max_tokens, the budget of a pack")
        if self.packing != "none" and self.fill.kind != "none":
            raise ValueError("fill adds pictures to padded rows; set packing to none")
        if isinstance(self.validation, float | int) and not 0 < self.validation < 1:
            raise ValueError(f"validation is a fraction between 0 and 1, not {self.validation}")
        return self
