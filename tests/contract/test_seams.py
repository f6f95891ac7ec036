"""Every seam carries a leaf that was not there when the path was written.

Toy leaves use what later families need: budgets per item, positions that the fusion owns, a mask of
visual tokens, memory that reaches swapped decoder layers as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from retinue.model.build import build_model
from retinue.model.connectors import CONNECTORS
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures, split_items
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders import ENCODERS
from retinue.model.encoders.base import Encoder, EncoderShape, EncoderSpec
from retinue.model.fusions import FUSIONS
from retinue.model.fusions.base import Fusion, FusionSpec
from retinue.model.layouts import LAYOUTS
from retinue.model.layouts.base import Layout, LayoutSpec
from retinue.model.lm.base import LanguageModel
from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig
from retinue.ops.collate import collate
from retinue.types import (
    IGNORE,
    Batch,
    Cache,
    Example,
    Features,
    Grid,
    Item,
    LMInputs,
    Memory,
    Span,
    TokenShape,
    VisualTokens,
)

WIDTH, PLACEHOLDER = 16, 50


# ------------------------------------------------------------------ leaves that come from outside


class MeanSpec(UnarySpec):
    kind: Literal["toy-mean"] = "toy-mean"

    def num_tokens(self, shapes: Any, budget: int | None) -> TokenShape:
        below = self.of.num_tokens(shapes, None)
        return below if budget is None else TokenShape(length=budget, grid=None)


class Mean(Unary):
    """Keeps the first `budget` tokens of each view: budgets differ from item to item."""

    Spec: ClassVar[type[ConnectorSpec]] = MeanSpec

    def encode(self, features: EncoderFeatures) -> Features:
        return self.of.encode(features)

    def reduce(
        self, features: Features, num_views: Sequence[int], budgets: Sequence[int | None]
    ) -> list[Features]:
        return [
            item if budget is None else Features(x_NLD=item.x_NLD[:, :budget], grid=None)
            for item, budget in zip(split_items(features, num_views), budgets, strict=True)
        ]


class FlatSpec(EncoderSpec):
    kind: Literal["toy-flat"] = "toy-flat"

    def shape(self, config: Any) -> EncoderShape:
        half = (0.5, 0.5, 0.5)
        return EncoderShape(
            width=12, grid=(2, 2), prefix=0, num_layers=1, size=(4, 4), mean=half, std=half
        )


class Flat(Encoder):
    """Cuts a 4x4 picture into 2x2 patches, without a weight but a scale."""

    Spec: ClassVar[type[EncoderSpec]] = FlatSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.scale = nn.Parameter(torch.ones(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)

    def forward(self, pixels_NCHW: Tensor, *, layers: tuple[int, ...]) -> dict[int, Features]:
        x_NLD = nn.functional.unfold(pixels_NCHW, 2, stride=2).transpose(1, 2) * self.scale
        return {layer: Features(x_NLD=x_NLD, grid=(2, 2)) for layer in layers}


class EndsSpec(LayoutSpec):
    kind: Literal["toy-ends"] = "toy-ends"

    def num_tokens(self, grid: Grid, per_view: TokenShape) -> int:
        return grid.num_views * (per_view.length + 1)


class Ends(Layout):
    """One learned vector after each view."""

    Spec: ClassVar[type[LayoutSpec]] = EndsSpec

    def __init__(self, spec: Any, lm_width: int) -> None:
        super().__init__(spec, lm_width)
        self.end = nn.Parameter(torch.ones(lm_width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.end)

    def forward(self, views: Sequence[Features], grids: Sequence[Grid]) -> VisualTokens:
        runs = []
        for view in views:
            end = self.end.expand(len(view.x_NLD), 1, -1)
            runs.append(torch.cat([view.x_NLD, end], dim=1).flatten(0, 1))
        return VisualTokens(x_TD=torch.cat(runs), lengths=[len(run) for run in runs])


class GatedLayer(LlamaDecoderLayer):
    """A decoder layer whose class was swapped: it gained the child `gate`, its keys stayed."""

    def forward(self, hidden_states: Tensor, memory: Memory | None = None, **kw: Any) -> Tensor:
        out = super().forward(hidden_states, **kw)
        if memory is None:
            return out
        plan = memory.plan
        seen_BTD = torch.stack(
            [
                x_MD[index_T]
                for x_MD, index_T in zip(plan.x_BMLD[:, :, 0], plan.media_BT, strict=True)
            ]
        )
        return out + self.gate(seen_BTD) * (plan.media_BT >= 0)[..., None]


class MemorySpec(FusionSpec):
    kind: Literal["toy-memory"] = "toy-memory"

    def num_placeholders(self, num_tokens: int) -> int:
        return 1


class ByMemory(Fusion):
    """Pictures travel beside the sequence, one placeholder each; positions are its own."""

    Spec: ClassVar[type[FusionSpec]] = MemorySpec

    def attach(self, lm: LanguageModel, *, media_width: int, image_id: int) -> None:
        assert (media_width, image_id) == (WIDTH, PLACEHOLDER)
        for layer in lm.layers:
            layer.__class__ = GatedLayer
            layer.gate = nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        x_BTD: Tensor,
        words: VisualTokens | None,
        batch: Batch,
        *,
        cache: Cache | None = None,
    ) -> LMInputs:
        memory = visual_BT = None
        if words is not None:
            assert batch.visual is not None
            visual_BT = batch.tokens == PLACEHOLDER
            media_BT = visual_BT.long().cumsum(1) - 1
            rows = batch.visual.spans[:, 0]
            most = int(rows.bincount().max())
            longest = max(words.lengths)
            x_BMLD = x_BTD.new_zeros(len(x_BTD), most, longest, x_BTD.shape[-1])
            lengths_BM = torch.zeros(len(x_BTD), most, dtype=torch.long)
            used = [0] * len(x_BTD)
            for run, row in zip(words.x_TD.split(words.lengths), rows.tolist(), strict=True):
                x_BMLD[row, used[row], : len(run)] = run
                lengths_BM[row, used[row]] = len(run)
                used[row] += 1
            seen = SimpleNamespace(x_BMLD=x_BMLD, lengths_BM=lengths_BM, media_BT=media_BT)
            memory = Memory(x_SD=words.x_TD, plan=seen)
        return LMInputs(
            embeds_BTD=x_BTD,
            positions_BT=batch.positions + 3,
            segments_BT=batch.segments,
            visual_BT=visual_BT,
            memory=memory,
        )


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, name, leaf in (
        (CONNECTORS, "toy-mean", Mean),
        (ENCODERS, "toy-flat", Flat),
        (LAYOUTS, "toy-ends", Ends),
        (FUSIONS, "toy-memory", ByMemory),
    ):
        # another package would bring an entry point; both end in this table
        monkeypatch.setitem(registry._table, name, f"{leaf.__module__}:{leaf.__name__}")
    monkeypatch.setitem(__import__("sys").modules, __name__, _this_module())


def _this_module() -> Any:
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


def model(spec: dict[str, Any], encoders: dict[str, Any]) -> Retinue:
    text = LlamaConfig(
        vocab_size=PLACEHOLDER,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config = RetinueConfig(text, encoders, {**spec, "image_token_id": PLACEHOLDER})
    return build_model(config, seed=0).eval()


def clip() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )


def example(name: str, side: int, lengths: Sequence[int], budgets: Sequence[int | None]) -> Example:
    tokens, spans = [1], []
    for number, length in enumerate(lengths):
        spans.append(Span(start=len(tokens), length=length, item=number))
        tokens += [PLACEHOLDER] * length + [5 + number]
    items = [
        Item(
            pixels={"rgb": torch.full((1, 3, side, side), 40 * (number + 1), dtype=torch.uint8)},
            grid=Grid(size=(side, side)),
            num_tokens=length,
            budget=budget,
        )
        for number, (length, budget) in enumerate(zip(lengths, budgets, strict=True))
    ]
    labels = [IGNORE if token == PLACEHOLDER else token for token in tokens]
    return Example(id=name, tokens=tokens, labels=labels, spans=spans, items=items)


TAKE = {"kind": "take", "encoder": "a"}
CLIP = {"encoders": {"a": {"kind": "clip"}}}


def test_budgets_differ_from_item_to_item() -> None:
    spec = {**CLIP, "connector": {"kind": "toy-mean", "of": {"kind": "linear", "of": TAKE}}}
    net = model(spec, {"a": clip()})
    grid = Grid(size=(8, 8))
    assert [net.plan.tokens_for(grid, b) for b in (None, 1, 3)] == [4, 1, 3]
    batch = collate([example("one", 8, [1, 4, 3], [1, None, 3])], train=True)
    words = net.look(batch.visual)
    assert words is not None
    assert words.lengths == [1, 4, 3]
    full = net.look(replace(batch.visual, budgets=[None] * 3))  # type: ignore[arg-type, type-var]
    assert full is not None
    torch.testing.assert_close(words.x_TD[0], full.x_TD[0])
    out = net.run(batch)
    assert out.loss_sum is not None
    assert out.loss_sum.isfinite()


def test_questions_about_one_picture_are_branches_of_a_tree() -> None:
    """A trunk with a picture and K branches: what K documents are that all repeat the trunk."""
    net = model({**CLIP, "connector": {"kind": "linear", "of": TAKE}}, {"a": clip()})
    for weight in net.lm.parameters():
        weight.data *= 10 if weight.dim() == 2 else 1  # so that what a token sees matters
    trunk, questions = example("one", 8, [4], [None]), [[7, 8, 9], [11, 4], [12, 13]]
    alone = []
    for words in questions:
        tokens = trunk.tokens + words
        labels = [IGNORE] * len(trunk.tokens) + words
        row = collate([replace(trunk, tokens=tokens, labels=labels)], train=True)
        # the trunk's last token has another target in each document: it is none of the tree's
        last = len(trunk.tokens) - 1
        cut = row.supervised[row.supervised != last]  # type: ignore[index]
        alone.append(net.run(replace(row, supervised=cut)).loss_sum)
    start = collate([trunk], train=True)
    tokens = [trunk.tokens + [token for words in questions for token in words]]
    labels = [[IGNORE] * len(trunk.tokens) + [t for w in questions for t in [*w[1:], IGNORE]]]
    positions = [*range(len(trunk.tokens))] + [
        len(trunk.tokens) + at for words in questions for at in range(len(words))
    ]
    branches = [0] * len(trunk.tokens) + [k for k, w in enumerate(questions, 1) for _ in w]
    tree = replace(
        start,
        tokens=torch.tensor(tokens),
        labels=torch.tensor(labels),
        supervised=(torch.tensor(labels[0]) != IGNORE).nonzero().flatten(),
        positions=torch.tensor([positions]),
        segments=torch.ones(1, len(positions), dtype=torch.long),
        branches=torch.tensor([branches]),
        cu_seqlens=None,
    )
    torch.testing.assert_close(net.run(tree).loss_sum, sum(alone), rtol=1e-5, atol=0)
    apart = net.run(replace(tree, branches=None)).loss_sum
    assert not torch.allclose(apart, sum(alone), rtol=1e-3)  # type: ignore[arg-type]


def test_items_may_share_a_picture_and_its_encoding() -> None:
    spec = {**CLIP, "connector": {"kind": "toy-mean", "of": {"kind": "linear", "of": TAKE}}}
    net = model(spec, {"a": clip()})
    two = collate([example("two", 8, [4, 4], [None, None])]).visual
    assert two is not None
    whole = net.look(two)
    assert whole is not None
    shared = replace(
        two, grids=[two.grids[0]] * 5, budgets=[2, None, 1, 3, 1], shown=[1, 0, 1, 1, 0]
    )
    passes: list[int] = []
    net.encoders["a"].register_forward_hook(lambda m, i, o: passes.append(len(i[0])))
    words = net.look(shared)
    assert words is not None
    assert passes == [2]
    first, second = whole.x_TD.split(4)
    expected = [second[:2], first, second[:1], second[:3], first[:1]]
    assert words.lengths == [len(part) for part in expected]
    torch.testing.assert_close(words.x_TD, torch.cat(expected))
    encoded = replace(shared, features=net.connector.encode(net.encode(two)), pixels={})
    again = net.look(encoded)
    assert again is not None
    assert passes == [2, 2]  # the line above; looking at what is encoded runs no encoder
    torch.testing.assert_close(again.x_TD, words.x_TD)


def test_an_encoder_of_ones_own_and_a_layout_with_a_vector() -> None:
    spec = {
        "encoders": {"a": {"kind": "toy-flat"}},
        "connector": {"kind": "linear", "of": {**TAKE, "layer": 0}},
        "layout": {"kind": "toy-ends"},
    }
    net = model(spec, {"a": clip()})
    batch = collate([example("one", 4, [5, 5], [None, None])], train=True)
    out = net.run(batch)
    assert out.loss_sum is not None
    out.loss_sum.backward()
    assert net.encoders["a"].scale.grad is not None
    assert net.layout.end.grad is not None
    assert net.layout.end.grad.abs().sum() > 0


def test_a_fusion_owns_positions_and_sends_memory_to_swapped_layers() -> None:
    spec = {
        **CLIP,
        "connector": {"kind": "linear", "of": TAKE},
        "fusion": {"kind": "toy-memory"},
    }
    net = model(spec, {"a": clip()})
    assert net.plan.placeholders_for(Grid(size=(8, 8))) == 1
    names = {name for name, _ in net.named_parameters()}
    assert "lm.model.layers.0.self_attn.q_proj.weight" in names
    assert "lm.model.layers.1.gate.weight" in names
    seen: list[Tensor] = []
    net.lm.base.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    batch = collate([example("one", 8, [1, 1], [None, None])], train=True)
    out = net.run(batch)
    assert seen[0].tolist() == [[3, 4, 5, 6, 7]]
    assert out.loss_sum is not None
    out.loss_sum.backward()
    grads = [p.grad for name, p in net.named_parameters() if name.startswith("connector")]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    # text alone passes through the swapped layers as if nothing had been added
    plain = model({**CLIP, "connector": {"kind": "linear", "of": TAKE}}, {"a": clip()})
    state = {name: t for name, t in net.state_dict().items() if ".gate." not in name}
    plain.load_state_dict(state)
    words = collate([Example(id="t", tokens=[1, 7, 9, 4], labels=[IGNORE] * 4)])
    shifted = replace(words, positions=words.positions + 3)
    torch.testing.assert_close(net.run(words).logits, plain.run(shifted).logits, rtol=0, atol=0)


def test_cached_steps_continue_what_was_said() -> None:
    net = model({**CLIP, "connector": {"kind": "linear", "of": TAKE}}, {"a": clip()})
    whole = collate([example("one", 8, [4], [None])])
    with torch.no_grad():
        expected = net.run(whole).logits
        cache = net.new_cache()
        first = replace(
            whole, **{k: getattr(whole, k)[:, :5] for k in ("tokens", "positions", "segments")}
        )
        net.run(first, cache=cache)
        rest = replace(
            whole,
            visual=None,
            **{k: getattr(whole, k)[:, 5:] for k in ("tokens", "positions", "segments")},
        )
        found = net.run(rest, cache=cache).logits
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected[:, 5:], atol=1e-5, rtol=0)
    assert cache.segments_BS is not None
    assert cache.segments_BS.shape == whole.segments.shape
