"""View policies: registry, specs, arrangements, errors."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from retinue.core.errors import ConfigError, MediaError
from retinue.core.spec import Spec
from retinue.media import VIEWS
from retinue.media.anyres import AnyRes
from retinue.media.chat import chat_image, chat_image_size
from retinue.media.resize import pixels
from retinue.media.views import StreamSpec, ViewPolicy, ViewPolicyField
from retinue.media.whole import Pad, Single, Squash
from retinue.types import Grid


class Holder(Spec):
    views: ViewPolicyField


@pytest.mark.parametrize("kind", list(VIEWS))
def test_registry_round_trip(kind: str) -> None:
    held = Holder.parse({"views": {"kind": kind}})
    assert isinstance(held.views, ViewPolicy)
    assert held.views.kind == kind
    assert type(held.views) is VIEWS.get(kind)
    assert Holder.parse(held.model_dump()) == held
    assert VIEWS.describe(kind)


def test_unknown_names_and_keys() -> None:
    with pytest.raises(ConfigError, match="did you mean 'anyres'"):
        Holder.parse({"views": {"kind": "anyress"}})
    with pytest.raises(ConfigError, match="pinpoint"):
        Holder.parse({"views": {"kind": "anyres", "pinpoint": []}})
    with pytest.raises(ValidationError, match="one or more pairs"):
        AnyRes(pinpoints=())


def test_stream_spec() -> None:
    stream = StreamSpec(size=14)
    assert stream.size == (14, 14)
    assert StreamSpec.parse(stream.model_dump()) == stream
    assert StreamSpec(size=(14, 28)).size == (14, 28)
    for bad in ({"size": 0}, {"size": 4, "std": (0, 1, 1)}, {"size": 4, "mode": "quick"}):
        with pytest.raises(ConfigError):
            StreamSpec.parse(bad)


def test_policies_place_the_picture() -> None:
    image, stream = Image.new("RGB", (40, 20), (255, 0, 0)), StreamSpec(size=8)
    views, grid = Single().views(image, stream)
    assert grid == Grid(size=(20, 40))
    assert (views[0, 0] == 255).all()
    whole = StreamSpec(size=40)
    views, _ = Pad().views(image, whole)
    assert views[0, :, 9, 0].tolist() == [122, 116, 104]
    assert views[0, :, 10, 0].tolist() == [255, 0, 0]
    views, _ = Pad(colour=(1, 2, 3)).views(image, whole)
    assert views[0, :, 30, 0].tolist() == [1, 2, 3]
    views, _ = Squash().views(image, stream)
    assert (views[0, 0] == 255).all()


def test_single_with_a_larger_window_is_black_outside() -> None:
    views, _ = Single(shortest_edge=4).views(
        Image.new("RGB", (6, 6), (7, 7, 7)), StreamSpec(size=8)
    )
    assert views[0, :, 0, 0].tolist() == [0, 0, 0]
    assert views[0, :, 2, 2].tolist() == [7, 7, 7]


def test_three_rows_read_as_channels_only_if_asked() -> None:
    rows = [(10, 10, 10), (20, 20, 20), (30, 30, 30)]
    image = Image.new("RGB", (5, 3))
    for y, colour in enumerate(rows):
        image.paste(colour, (0, y, 5, y + 1))
    stream = StreamSpec(size=6)
    guessed, grid = Single(axes="guessed").views(image, stream)
    assert grid.size == (3, 5)
    assert guessed[0, :, 3, 3].tolist() == [10, 20, 30]
    upright, _ = Single().views(image, stream)
    assert upright[0, :, 3, 3].unique().numel() == 1


def test_anyres_order_decides_ties() -> None:
    pinpoints = ((8, 16), (16, 8))
    stream = StreamSpec(size=8)
    assert AnyRes(pinpoints=pinpoints).grid((1, 1), stream).rows == 2
    assert AnyRes(pinpoints=pinpoints, order="hw").grid((1, 1), stream).rows == 1


def test_anyres_tiles_are_row_major() -> None:
    image = Image.new("RGB", (16, 16))
    for n, box in enumerate([(0, 0), (8, 0), (0, 8), (8, 8)]):
        image.paste((n * 50, 0, 0), (*box, box[0] + 8, box[1] + 8))
    views, grid = AnyRes(pinpoints=((16, 16),)).views(image, StreamSpec(size=8))
    assert (grid.rows, grid.cols, grid.overview, views.shape[0]) == (2, 2, True, 5)
    assert views[1:, 0, 4, 4].tolist() == [0, 50, 100, 150]


def test_anyres_refuses_canvases_that_cannot_be_cut() -> None:
    with pytest.raises(ConfigError, match=r"30 x 14.*multiples"):
        AnyRes(pinpoints=((30, 14),)).grid((5, 5), StreamSpec(size=14))


@pytest.mark.parametrize("policy", [Single(), Pad()])
def test_thin_pictures_are_refused_by_header(policy: ViewPolicy) -> None:
    with pytest.raises(MediaError, match=r"intermediate picture"):
        policy.grid((1, 1_000_000), StreamSpec(size=336))


def test_views_never_share_the_memory_of_the_picture() -> None:
    image = Image.new("RGB", (8, 8), (5, 5, 5))
    for mode in ("exact", "fast"):
        views, _ = Squash().views(image, StreamSpec(size=8, mode=mode))
        views.zero_()
        assert pixels(image).unique().tolist() == [5]


@pytest.mark.parametrize("mode", ["Pad", "Resize", "Default", "Crop"])
def test_chat_image_has_the_size_told(mode: str) -> None:
    for width, height in ((30, 20), (100, 20), (90, 91)):
        limits = {"longest": 64, "shortest": 32, "side": 16}
        size = chat_image_size((height, width), mode=mode, **limits)
        image = chat_image(Image.new("RGB", (width, height)), mode=mode, **limits)
        assert (image.height, image.width) == size
    assert torch.is_tensor(pixels(image))
