"""The types that travel along the path. Only data: slicing, counting and moving to a device.

Shape legend: B rows, T tokens, D language-model width, N views (over the whole batch),
L tokens of one view, I items (images or videos of the batch), C H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PILImage
    from torch import Tensor

IGNORE = -100
"""Label of a position without a target."""

Role = Literal["system", "user", "assistant", "tool"]


# ---------------------------------------------------------------- what formats yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A run of text inside a message."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """An image or a video inside a message: a path, URL, data URI, bytes or PIL image.

    A video may also be a folder of pictures or a tuple of them. budget: visual tokens per view, of
    every frame where a video is seen as several pictures.
    """

    kind: Literal["image", "video"] = "image"
    source: str | bytes | PILImage | tuple[str | PILImage, ...]
    name: str | None = None
    budget: int | None = None


Part = Text | Media


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `train`: None = the role decides (assistant turns are trained)."""

    role: Role
    parts: tuple[Part, ...]
    train: bool | None = None

    @property
    def text(self) -> str:
        """The text parts joined; media leave no trace."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> list[Media]:
        return [part for part in self.parts if isinstance(part, Media)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Tokens that a data file holds already, for one tokenizer and one number of visual tokens.

    labels, weights: one for each token, unshifted (labels[t] = tokens[t] or IGNORE); slots: (first
    token, number of them) of every picture, in the order of the sample's media.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    slots: tuple[tuple[int, int], ...] = ()
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One conversation as a format reads it. `meta`: references, task, source.

    ready: its tokens, where the file has them; messages then only hold the pictures.
    """

    id: str
    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    ready: Ready | None = None

    @property
    def media(self) -> list[Media]:
        return [item for message in self.messages for item in message.media]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A rendered run of a prompt: text (trained or not), or the place of the media-th item.

    `literal`: the user's own characters, in which the name of a special token is only text.
    """

    text: str = ""
    train: bool = False
    media: int | None = None
    literal: bool = False


# ---------------------------------------------------------------- what the processor yields


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How the views of one item are arranged: an optional overview, then rows x cols tiles.

    `size` is the (height, width) of the original picture in pixels.
    """

    rows: int = 1
    cols: int = 1
    overview: bool = False
    size: tuple[int, int]

    @property
    def num_views(self) -> int:
        return self.rows * self.cols + int(self.overview)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShape:
    """Tokens of one view: `length` in all, `prefix` first, then a (rows, cols) `grid`.

    grid is None where the tokens have no place on the picture.
    """

    length: int
    grid: tuple[int, int] | None
    prefix: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One image ready for the encoders: stream -> (V, C, H, W); uint8, or float when final."""

    pixels: dict[str, Tensor]
    grid: Grid
    num_tokens: int
    budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of placeholders in one example: `length` ids from `start` stand for items[item]."""

    start: int
    length: int
    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One tokenized sample. `labels` are unshifted (labels[t] = tokens[t] or IGNORE)."""

    id: str
    tokens: list[int]
    labels: list[int]
    spans: list[Span] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    positions: list[int] | None = None
    weights: list[float] | None = None

    @property
    def num_supervised(self) -> int:
        """Targets that count: the first token is never one."""
        return sum(label != IGNORE for label in self.labels[1:])


# ---------------------------------------------------------------- what the model eats


@dataclass(frozen=True, slots=True, kw_only=True)
class Movable:
    """Base of tensor-carrying types: `to` moves every tensor, nested ones too."""

    def to(self, device: torch.device | str) -> Self:
        """The same value with every tensor on `device`."""
        changes = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **changes)


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Movable):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if hasattr(value, "device") and hasattr(value, "to"):
        return value.to(device, non_blocking=True)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Visual(Movable):
    """All pictures of a batch, flat.

    pixels: stream -> (N, C, H, W), items in order, each with grids[i].num_views views
    grids, budgets: one per item (budget None = the model's default)
    spans: (I, 3) int64 rows of [batch row, first column, number of placeholders]
    index: (sum of placeholders,) int64, flat position row * T + column of every visual token
    shown: the picture that each item shows, where items share pictures (one picture at several
        budgets): pixels hold each picture once. None: item i shows picture i
    features: the connector's encoding of all views, where it is known already; pixels are not read
    """

    pixels: dict[str, Tensor]
    grids: list[Grid]
    budgets: list[int | None]
    spans: Tensor
    index: Tensor
    shown: list[int] | None = None
    features: Features | None = None

    @property
    def num_views(self) -> list[int]:
        return [grid.num_views for grid in self.grids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Movable):
    """Tokens (B, T), padded rows or one packed row, and the pictures they speak of.

    labels: (B, T) already shifted, labels[t] is the target of position t (IGNORE: none)
    supervised: (S,) flat indices of the positions that have a target
    positions: (B, T) position ids; segments: (B, T), 0 = padding, k = the k-th document of the row
    cu_seqlens: (K + 1,) int32 document boundaries on the flattened row when packed, else None
    branches: (B, T), documents that are trees: 0 = the trunk, which comes first, k = the k-th
        branch, which sees the trunk and itself; its positions go on from the trunk. None: no tree
    visual: None where the batch has no picture
    kinds: the type of every document's source, where the loader knows it
    """

    ids: list[str]
    tokens: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor | None = None
    supervised: Tensor | None = None
    weights: Tensor | None = None
    cu_seqlens: Tensor | None = None
    branches: Tensor | None = None
    visual: Visual | None = None
    kinds: list[str | None] | None = None

    @property
    def num_real(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments > 0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Features(Movable):
    """Output of an encoder or connector node: (N, L, D), `prefix` tokens before the grid."""

    x_NLD: Tensor
    grid: tuple[int, int] | None
    prefix: int = 0

    def cast(self, dtype: torch.dtype) -> Features:
        """The same features in another dtype."""
        return replace(self, x_NLD=self.x_NLD.to(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualTokens(Movable):
    """What replaces the placeholders: (sum of lengths, D), one length per item."""

    x_TD: Tensor
    lengths: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Movable):
    """What cross-attention reads. It travels as an argument to every layer.

    x_SD: (S, D) tokens of the media that are new in this batch, flat; None where none is
    plan: which token sees which of them, `ops.cross.CrossPlan`
    held: `Cache.cross`, read and extended in place; None without a cache
    """

    x_SD: Tensor | None
    plan: Any
    held: dict[int, tuple[Tensor, Tensor, Tensor]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LMInputs(Movable):
    """What a fusion hands to the language model; positions belong to the fusion.

    embeds (B, T, D), positions and segments (B, T); cu_seqlens (K + 1,) when packed;
    branches (B, T) where documents are trees, as in `Batch`;
    visual_BT: (B, T) bool, True at visual tokens, for fusions with visual experts.
    """

    embeds_BTD: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    cu_seqlens: Tensor | None = None
    visual_BT: Tensor | None = None
    memory: Memory | None = None
    branches_BT: Tensor | None = None


@dataclass(slots=True, kw_only=True)
class Cache:
    """What decoding keeps: the language model's K/V and the segments seen so far.

    lm: transformers' Cache, or blocks with the same `update`
    segments_BS: (B, S) segments of the cached tokens, 0 = padding to be masked
    cross: layer -> (K, V, lengths) of the media that a row's next tokens see: (B, H, L, D) twice,
        and (B,) how many of the L are real; for cross-attention fusions
    """

    lm: Any = None
    segments_BS: Tensor | None = None
    cross: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a forward or an objective returns; `metrics`: named detached scalars to log.

    losses: (S,) loss of every supervised position before weights, detached
    """

    loss_sum: Tensor | None = None
    num_supervised: Tensor | None = None
    losses: Tensor | None = None
    logits: Tensor | None = None
    hidden: Tensor | None = None
    cache: Cache | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
