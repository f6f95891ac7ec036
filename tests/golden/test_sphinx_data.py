"""LLaMA2-Accessory's datasets, order of samples, learning rates and two epochs of its training.

Exact but for the training: losses and norms 1e-3 relative, final parameters 5e-4 as the case
states; ours are 1e-4 and 5e-5.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import all_cases, cases, compared
from safetensors.torch import load_file
from sphinx_cases import loaded

from retinue.convert.sphinx import sphinx_groups
from retinue.core.errors import DataError
from retinue.data.formats import detect_format, open_format
from retinue.data.formats.accessory import is_single, prompt_of, single_fields
from retinue.data.sampler import SAMPLERS, Sizes
from retinue.media.image import load_image
from retinue.media.views import StreamSpec
from retinue.media.whole import Pad
from retinue.ops.pixels import normalize
from retinue.text.labels import Tokenized, tokenize
from retinue.text.template import resolve
from retinue.text.tokenizer import Tokenizer
from retinue.train.optim import Param, group_parameters
from retinue.train.schedule import ScheduleSpec, curve
from retinue.types import IGNORE, Batch, Sample

pytestmark = pytest.mark.golden

DATASETS = cases("sphinx", "*dataset*", having="data_config.yaml")
SAMPLERS_CASES = cases("sphinx", "*sampler*", having="sampler.json")
RATES = cases("sphinx", "*", having="lr.json")
TRAINING = cases("sphinx", "*train*", having="final_params.safetensors")
SIDE = 28
"""Of the pictures that the dataset cases recorded, stated in their README."""


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", paths, ids=lambda path: path.name)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


@cache
def vocabulary(ids: tuple[int, ...]) -> Tokenizer:
    """The tokenizer among the root's that can have given these ids: the smallest that has all."""
    found = [
        Tokenizer.load(f.parent) for c in all_cases("sphinx") for f in c.glob("*/tokenizer.model")
    ]
    fitting = [one for one in found if one.vocab_size > max(ids)]
    return min(fitting, key=lambda one: one.vocab_size)


def prepared(sample: Sample, *, single: bool, tokenizer: Tokenizer) -> Tokenized:
    template = resolve("accessory_single" if single else "accessory")
    policy = "accessory-single" if single else "accessory"
    return tokenize(template.render(sample.messages), tokenizer, policy=policy)


def without_places(done: Tokenized) -> tuple[list[int], list[int]]:
    """Ids and labels of the text alone: the original has no id for a picture."""
    places = {place for place, _ in done.places}
    keep = [i for i in range(len(done.tokens)) if i not in places]
    return [done.tokens[i] for i in keep], [done.labels[i] for i in keep]


@named(DATASETS)
def test_datasets(case: Path) -> None:
    """Order, types, ids, labels, pictures. A sample that cannot be used is its neighbour there."""
    path = case / "data_config.yaml"
    assert detect_format(path) == "accessory"
    data: Any = open_format(path)
    for settings, outputs in read(case / "outputs.json").items():
        options = {k: int(v) for k, _, v in (pair.partition("=") for pair in settings.split(","))}
        groups: dict[str, list[int]] = {}
        for number, kind in enumerate(data.types):
            groups.setdefault(kind, []).append(number)
        assert groups == outputs["group_indices"]
        if "order" in outputs:
            assert [str(record.data["id"]) for record in data.records] == outputs["order"]
        for record, wanted in zip(data.records, outputs.get("ann", ()), strict=False):
            fields = single_fields(record.entry, record.data)
            for key in ("instruction", "input", "output"):
                assert fields.get(key) == wanted[key]
            assert record.entry.prompt == wanted["sys_prompt"]
            assert prompt_of(record.entry, fields) is not None
        assert len(data) == len(outputs["items"])
        for number, item in enumerate(outputs["items"]):
            tokenizer = vocabulary(tuple(item["input_ids"]))
            try:
                sample = data[number]
                done = prepared(sample, single=is_single(data.records[number]), tokenizer=tokenizer)
            except DataError:
                assert item == outputs["items"][number - 1], "the neighbour before it"
                continue
            room = options["max_words"]
            room -= options["image_words"] if sample.media else 0
            ids, labels = without_places(done)
            assert len(item["input_ids"]) == room
            ids, labels = ids[:room], labels[:room]
            assert ids + [0] * (room - len(ids)) == item["input_ids"]
            targets = [0 if label == IGNORE else label for label in labels]
            assert targets + [0] * (room - len(ids)) == item["labels"]
            assert [1] * len(ids) + [0] * (room - len(ids)) == item["mask"]
            assert bool(sample.media) == ("image_shape" in item)
            if sample.media:
                check_picture(sample, item)
    compared(case)


def check_picture(sample: Sample, item: dict[str, Any]) -> None:
    stream = StreamSpec(size=SIDE)
    levels = Pad().views(load_image(sample.media[0].source), stream)[0]
    pixels = normalize(levels, mean=stream.mean, std=stream.std)[0]
    assert list(pixels.shape) == item["image_shape"]
    assert float(pixels.mean()) == pytest.approx(item["image_mean"], abs=1e-5)


@named(SAMPLERS_CASES)
def test_order(case: Path) -> None:
    """Each rank's share of the order, also of a run that goes on in the middle."""
    for row in read(case / "sampler.json"):
        types = [str(k) for k, count in enumerate(row["groups"]) for _ in range(count)]
        sizes = Sizes(
            tokens=range(len(types)), views=[0] * len(types), words=[0] * len(types), types=types
        )
        world, batch = row["world_size"], row["batch_size"]
        sampler = SAMPLERS.get("accessory" if row["shuffle"] else "accessory-sorted")()
        order = sampler.order(
            sizes,
            micro_batch=batch,
            num_micro=world * row["acc_grad"],
            generator=torch.Generator().manual_seed(row["seed"] + row["epoch"]),
        )
        assert sorted(order) == list(range(len(types)))
        kept = order[: row["len"] * world]
        for rank, wanted in enumerate(row["order_per_rank"]):
            starts = range(rank * batch, len(kept), batch * world)
            mine = [i for start in starts for i in kept[start : start + batch]]
            assert mine[row["start_iter"] * batch :] == wanted
    compared(case)


@named(RATES)
def test_rates(case: Path) -> None:
    """The epoch form with a fractional warm-up, a group of half the rate, the iteration form."""
    for row in read(case / "lr.json"):
        args = row["args"]
        spec = ScheduleSpec(floor=args["min_lr"] / args["lr"])
        if row["kind"] == "epoch":
            for epoch, number, rate, half in row["epoch_iter_lr_lrscaled05"]:
                place = epoch + number / row["iters_per_epoch"]
                found = args["lr"] * curve(
                    place, spec=spec, warm=args["warmup_epochs"], total=args["epochs"]
                )
                assert found == pytest.approx(rate, rel=1e-9, abs=1e-15)
                assert found * 0.5 == pytest.approx(half, rel=1e-9, abs=1e-15)
        else:
            for number, rate in row["iter_lr"]:
                found = args["lr"] * curve(
                    number, spec=spec, warm=args["warmup_iters"], total=args["lr_decay_iters"]
                )
                assert found == pytest.approx(rate, rel=1e-9, abs=1e-15)
    compared(case)


def test_fractional_warmup_of_a_recipe() -> None:
    """`exact` keeps the fraction that is rounded up otherwise."""
    assert ScheduleSpec(warmup=0.03, exact=True).warmup_steps(50) == pytest.approx(1.5)
    assert ScheduleSpec(warmup=0.03).warmup_steps(50) == 2


@named(TRAINING)
def test_training(case: Path) -> None:
    """Order, losses of micro-batches, rates, norms, final parameters of the original's loop."""
    outputs = read(case / "outputs.json")
    args = outputs["args"]
    loaded.cache_clear()
    own = loaded(case)
    model = own.model.train()
    data: Any = open_format(case / "data_config.yaml")
    names = [str(record.data["id"]) for record in data.records]
    groups = sphinx_groups(model.config, experts=None)
    theirs = {group.ours[0]: f"llma.{group.theirs[0]}" for group in groups}
    params = [Param(name=n, module="", dims=p.dim()) for n, p in model.named_parameters()]
    made = group_parameters(params, lr=1.0, weight_decay=args["weight_decay"], decay="accessory")
    for wanted in outputs["param_groups"]:
        (found,) = [g for g in made if g.weight_decay == wanted["weight_decay"]]
        assert sorted(theirs[name] for name in found.names) == sorted(wanted["names"])
    by_name = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [by_name[n] for n in g.names], "weight_decay": g.weight_decay} for g in made],
        lr=args["lr"],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    spec = ScheduleSpec(floor=args["min_lr"] / args["lr"])
    batch, accum = args["batch_size"], args["accum_iter"]
    losses, updates = iter(outputs["micro_batches"]), iter(outputs["updates"])
    for epoch, wanted_order in enumerate(outputs["order_ids_per_epoch"]):
        lengths = list(range(len(names)))
        sizes = Sizes(tokens=lengths, views=lengths, words=lengths, types=data.types)
        order = SAMPLERS.get("accessory")().order(
            sizes,
            micro_batch=batch,
            num_micro=accum,
            generator=torch.Generator().manual_seed(epoch),
        )[: len(wanted_order)]
        assert [names[i] for i in order] == wanted_order
        steps = len(order) // batch
        assert steps == outputs["iters_per_epoch"]
        for number in range(steps):
            if number % accum == 0:
                place = epoch + number / steps
                rate = args["lr"] * curve(
                    place, spec=spec, warm=args["warmup_epochs"], total=args["epochs"]
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
            record = next(losses)
            chosen = order[number * batch : (number + 1) * batch]
            loss = mean_loss(own, [data[i] for i in chosen], record["ids_shape"][1])
            assert float(loss.detach()) == pytest.approx(record["closs"], rel=1e-4)
            (loss / accum).backward()
            if number % accum == accum - 1:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args["clip_grad"])
                wanted = next(updates)
                assert float(norm) == pytest.approx(wanted["grad_norm"], rel=1e-4)
                assert rate == pytest.approx(wanted["lr"])
                optimizer.step()
                optimizer.zero_grad()
    assert (next(losses, None), next(updates, None)) == (None, None)
    final = load_file(case / "final_params.safetensors")
    seen = set()
    for group in groups:
        (value,) = group.write([by_name[group.ours[0]].detach()])
        name = f"llma.{group.theirs[0]}"
        step = -(-len(value) // len(final[name]))  # tables are recorded with a stride over rows
        torch.testing.assert_close(value[::step], final[name], atol=5e-5, rtol=0)
        seen.add(name)
    assert seen == set(final)
    loaded.cache_clear()
    compared(case)


def mean_loss(own: Any, samples: list[Sample], width: int) -> torch.Tensor:
    """The mean over a micro-batch's targets, rows padded to `width` as the original pads them."""
    rows, targets = [], []
    for sample in samples:
        done = prepared(sample, single=False, tokenizer=own.processor.tokenizer)
        ids, labels = done.tokens[:width], done.labels[:width]
        rows.append(ids + [0] * (width - len(ids)))
        targets.append(labels[1:] + [IGNORE] * (width - len(labels) + 1))
    tokens, labels_BT = torch.tensor(rows), torch.tensor(targets)
    batch = Batch(
        ids=[sample.id for sample in samples],
        tokens=tokens,
        positions=torch.arange(width).expand_as(tokens).contiguous(),
        segments=torch.ones_like(tokens),
        labels=labels_BT,
        supervised=(labels_BT.flatten() != IGNORE).nonzero()[:, 0],
    )
    output = own.model.run(batch)
    loss: torch.Tensor = output.loss_sum / output.num_supervised
    return loss
