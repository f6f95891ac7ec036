"""Several scales in one step give what separate forwards give, and pictures are encoded once."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.model.build import build_model
from retinue.model.freeze import apply_rules
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan, RetinueConfig
from retinue.ops.spans import respan
from retinue.parallel.spec import ParallelSpec
from retinue.processor import Processor
from retinue.train.objectives.elastic import Elastic, ElasticSpec
from retinue.train.prepare import prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer, Update
from retinue.types import Batch, Message, Sample, Text
from tiny import ask, picture, tiny_model

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6}
FORMS: list[dict[str, Any]] = [
    {"form": "packed", "trunk": None},
    {"form": "packed", "trunk": 4},
    {"form": "accumulated"},
]
NAMES = ["packed", "packed with trunks", "accumulated"]
TILES = {"kind": "anyres", "pinpoints": [[32, 64], [64, 32], [64, 64]]}
AROUND = {"kind": "elastic", "of": {"kind": "mlp", "of": {"kind": "take", "encoder": "eye"}}}
INSIDE = {"kind": "mlp", "of": {"kind": "elastic", "of": {"kind": "take", "encoder": "eye"}}}
SCALES = [1, 4, 16]


def elastic(
    connector: Any = AROUND, *, views: Any = None, layout: str = "plain"
) -> tuple[Retinue, Processor]:
    """The tiny model with a grid of 4 x 4 visual tokens, in training mode."""
    model, processor = tiny_model(views=views)
    spec = {**model.config.spec, "connector": copy.deepcopy(connector), "layout": {"kind": layout}}
    config = RetinueConfig(model.config.text_config, model.config.encoders, spec)
    made = Processor(Plan(config), tokenizer=processor.tokenizer, spec=processor.spec)
    return build_model(config, seed=0).train(), made


def later(id: str, *images: Any) -> Sample:
    """A dialogue whose first answer comes before any picture."""
    first = ask(id, "how many shapes are there? one two three", answer="one or two")
    second = ask(id, "what colour?", *images, answer="red or green")
    return Sample(id=id, messages=(*first.messages, *second.messages))


def documents() -> list[Sample]:
    return [
        ask("none", "how many shapes are there?", answer="one two"),
        ask("one", "what colour?", picture(1), answer="red"),
        later("two", picture(2), picture(3, width=70)),
        Sample(
            id="three",
            messages=(
                *ask("", "is it blue?", picture(5), answer="the circle").messages,
                *ask("", "what?", picture(6, height=80), answer="green or blue").messages,
                Message(role="user", parts=(Text(text="why?"),)),
                Message(role="assistant", parts=(Text(text="three"),)),
            ),
        ),
    ]


def collated(processor: Processor, samples: list[Sample], **how: Any) -> Batch:
    return processor.collate([processor.example(s, train=True) for s in samples], train=True, **how)


def gradients(model: Retinue) -> dict[str, Tensor | None]:
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def separate(
    model: Retinue, batch: Batch, scales: list[int]
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Sums of one full forward for each scale, and the gradients of their mean."""
    found = []
    for scale in scales:
        one = batch
        if batch.visual is not None:
            lengths = [model.plan.placeholders_for(grid, scale) for grid in batch.visual.grids]
            one = respan(batch, lengths)
            assert one.visual is not None
            one = replace(one, visual=replace(one.visual, budgets=[scale] * len(lengths)))
        loss = model.run(one).loss_sum
        assert loss is not None
        (loss / len(scales)).backward()
        found.append(loss.detach())
    return found, gradients(model)


def together(
    model: Retinue, batch: Batch, **spec: Any
) -> tuple[Tensor, dict[str, Tensor | None], dict[str, Tensor]]:
    """Loss sum, gradients and metrics of the objective, as the trainer asks for them."""
    objective = Elastic(ElasticSpec.parse({"kind": "elastic", **spec}))
    objective.check(model)
    total, metrics = torch.zeros(()), dict[str, Tensor]()
    for part in objective.parts(model, batch):
        assert part.loss_sum is not None
        part.loss_sum.backward()  # type: ignore[no-untyped-call]
        total = total + part.loss_sum.detach()
        metrics |= part.metrics
    return total, gradients(model), metrics


def same(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], count: int) -> None:
    for name, gradient in wanted.items():
        other = found[name]
        if gradient is None or other is None:
            assert gradient is other, name
        else:
            torch.testing.assert_close(other / count, gradient / count, **CLOSE, msg=name)


MODELS = {
    "around the projector": (AROUND, None, "plain"),
    "inside the projector": (INSIDE, None, "plain"),
    "tiles": (AROUND, TILES, "newline"),
}


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [False, True], ids=["from padded rows", "from a packed row"])
def test_one_step_is_separate_forwards(form: dict[str, Any], name: str, packed: bool) -> None:
    connector, views, layout = MODELS[name]
    model, processor = elastic(connector, views=views, layout=layout)
    batch = collated(processor, documents(), packed=packed)
    assert batch.supervised is not None
    count = len(batch.supervised)
    sums, wanted = separate(model, batch, SCALES)
    total, found, metrics = together(model, batch, **form)
    torch.testing.assert_close(total / count, torch.stack(sums).mean() / count, **CLOSE)
    same(found, wanted, count)
    assert set(metrics) == {f"loss/{scale}" for scale in SCALES}
    for scale, alone in zip(SCALES, sums, strict=True):
        torch.testing.assert_close(metrics[f"loss/{scale}"], alone / count, **CLOSE)
    for part in ("encoders", "connector", "lm"):
        some = [g for n, g in found.items() if n.startswith(part) and g is not None]
        assert any(float(g.abs().sum()) > 0 for g in some), part


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_pictures_are_encoded_once(form: dict[str, Any]) -> None:
    model, processor = elastic()
    ran: list[int] = []
    model.encoders["eye"].register_forward_hook(lambda m, i, o: ran.append(len(i[0])))
    projected: list[int] = []
    model.get_submodule("connector.of.net.0").register_forward_hook(
        lambda m, i, o: projected.append(len(i[0]))
    )
    together(model, collated(processor, documents()), **form)
    assert ran == [5]  # one pass over the five pictures
    assert projected == [5]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_text_alone_counts_once_and_runs_no_encoder(form: dict[str, Any]) -> None:
    model, processor = elastic()
    batch = collated(processor, documents()[:1])
    sums, wanted = separate(model, batch, [16])
    ran: list[int] = []
    model.encoders["eye"].register_forward_hook(lambda *_: ran.append(1))
    model.lm.register_forward_hook(lambda *_: ran.append(2))
    total, found, metrics = together(model, batch, **form)
    assert ran == [2]
    torch.testing.assert_close(total, sums[0], **CLOSE)
    same(found, wanted, 1)
    assert set(metrics) == {f"loss/{scale}" for scale in SCALES}


def test_weights_of_targets_are_kept() -> None:
    model, processor = elastic()
    batch = collated(processor, documents())
    assert batch.supervised is not None
    weights = torch.rand(batch.tokens.shape, generator=torch.manual_seed(0))
    batch = replace(batch, weights=weights)
    sums, wanted = separate(model, batch, SCALES)
    for form in FORMS:
        total, found, metrics = together(model, batch, **form)
        torch.testing.assert_close(total, torch.stack(sums).mean(), atol=1e-5, rtol=1e-6)
        same(found, wanted, 10)
        weight = weights.flatten()[batch.supervised].sum()
        torch.testing.assert_close(metrics["loss/4"], sums[1] / weight, **CLOSE)


def test_a_still_tower_learns_nothing_and_the_rest_as_before() -> None:
    model, processor = elastic()
    batch = collated(processor, documents())
    wanted = separate(model, batch, SCALES)[1]
    for form in FORMS:
        found = together(model, batch, tower="still", **form)[1]
        assert {n for n, g in found.items() if n.startswith("encoders.")} != set()
        assert all(g is None for n, g in found.items() if n.startswith("encoders."))
        rest = {n: g for n, g in wanted.items() if not n.startswith("encoders.")}
        same(found, rest, 10)


def test_a_picture_keeps_the_budget_that_the_data_states() -> None:
    model, processor = elastic()
    sample = ask("a", "what?", picture(1), picture(2), answer="red")
    parts = [replace(p, budget=4) if n == 1 else p for n, p in enumerate(sample.messages[0].parts)]
    fixed = Sample(
        id="a", messages=(replace(sample.messages[0], parts=tuple(parts)), sample.messages[1])
    )
    batch = collated(processor, [fixed])
    assert batch.visual is not None
    assert batch.visual.budgets == [None, 4]
    lengths: list[list[int]] = []
    model.layout.register_forward_hook(lambda m, i, o: lengths.append(o.lengths))
    together(model, batch)
    assert lengths == [[1, 4, 4, 4, 16, 4]]


# ---------------------------------------------------------------- in the trainer


def trainer(model: Retinue, objective: dict[str, Any], *, seed: int = 0, **stage: Any) -> Trainer:
    spec = StageSpec.parse(
        {
            "name": "tiny",
            "trainable": {"**": "full"},
            "steps": 9,
            "global_batch": 4,
            "optim": {"lr": 1e-3, "clip": None},
            "objective": {"kind": "elastic", **objective},
            **stage,
        }
    )
    table = apply_rules(model, spec.trainable, lr=1e-3)
    prepare(model, compute=ParallelSpec())
    return Trainer(model, stage=spec, table=table, data=None, total=9, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_updates_do_not_depend_on_micro_batches(form: dict[str, Any]) -> None:
    """One batch of four, two of two, and the mean of separate forwards; text alone in one."""
    found: list[tuple[Update, dict[str, Tensor | None]]] = []
    for size in (4, 2, 1):
        model, processor = elastic()
        batches = [collated(processor, documents()[at : at + size]) for at in range(0, 4, size)]
        one = trainer(model, form)
        update = one.update(batches)
        found.append((update, gradients(model)))
    model, processor = elastic()
    batch = collated(processor, documents())
    assert batch.supervised is not None
    sums, wanted = separate(model, batch, SCALES)
    count = len(batch.supervised)
    for update, grads in found:
        assert update.loss == pytest.approx(float(torch.stack(sums).mean()) / count, abs=1e-6)
        same(grads, {n: g if g is None else g / count for n, g in wanted.items()}, 1)


def test_scales_are_drawn_for_each_update_and_again_after_a_resume() -> None:
    model, processor = elastic()
    batches = [collated(processor, documents()[at : at + 2]) for at in (0, 2)]
    one = trainer(model, {"sample": 2}, seed=3)
    drawn = [sorted(one.update(batches).metrics) for _ in range(8)]
    assert all(len(names) == 2 for names in drawn)
    assert len({tuple(names) for names in drawn}) == 3  # every pair of three scales
    again = trainer(elastic()[0], {"sample": 2}, seed=3)
    again.step = 5
    assert [sorted(again.update(batches).metrics) for _ in range(3)] == drawn[5:]
    other = trainer(elastic()[0], {"sample": 2}, seed=4)
    assert [sorted(other.update(batches).metrics) for _ in range(8)] != drawn


def test_validation_sees_every_scale() -> None:
    model, processor = elastic()
    batch = collated(processor, documents())
    with torch.no_grad():
        outputs = [Elastic(ElasticSpec.parse({"kind": "elastic"}))(model, batch).loss_sum]
    for form in FORMS:
        one = trainer(model, {"sample": 1, **form})
        one.objective.begin(0, seed=0)
        loss, count = one.evaluate(iter([batch]))
        assert outputs[0] is not None
        assert loss * count == pytest.approx(float(outputs[0]), rel=1e-6)


@pytest.mark.parametrize(
    ("connector", "objective", "message"),
    [
        (AROUND["of"], {}, "wrap the connector in kind: elastic"),
        (AROUND, {"scales": [1, 9]}, "the nearest is"),
        (AROUND, {"sample": 4}, "sample: 4 of 3 scales"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    connector: Any, objective: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer(elastic(connector)[0], objective)
    assert message in str(caught.value)
