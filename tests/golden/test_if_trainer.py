"""A recorded training run: its batches, losses, norms, learning rates and last checkpoint."""

import json
import random

import numpy as np
import pytest
import torch
from cases import compared
from flamingo import batch, ids_of, load, pictures, recordings, tensors
from test_if_dataset import (
    augmented,
    load_image,
    pixels_of,
    prompt,
    stream_of,
    template_of,
    tokenizer_of,
)
from test_if_lora import RULES, ours
from torch import nn
from torch.utils.data import DistributedSampler
from transformers import get_cosine_schedule_with_warmup

from retinue.compat.flamingo_data import EMPTY, Collection, FlamingoEpoch, conversation, draw
from retinue.convert.flamingo import state_of
from retinue.convert.tuning import trainable_rules
from retinue.hub.flamingo_export import trainer_state
from retinue.model.freeze import apply_rules
from retinue.text.flamingo import FlamingoPieces

RUNS = [
    (case, name, json.loads((case / "command.json").read_text("utf-8")))
    for case, name, _ in recordings("checkpoint_0.layout.json", "top")
]


class Command:
    """The recorded command line."""

    def __init__(self, words):
        self.words = words

    def __getitem__(self, name):
        return self.words[self.words.index(f"--{name}") + 1]

    def number(self, name):
        return int(self[name])


def rows_of(case, told):
    """Ids, labels and pictures of every micro-batch, drawn as the original draws them."""
    facts = {
        "tokenizer_of": told["tokenizer_path"],
        "args": {"instruction_prompt_templete": told["instruction_prompt_templete"]},
    }
    tokenizer = tokenizer_of(case, facts)
    template = template_of(facts, tokenizer)
    stream = stream_of((case / told["vision_encoder_pretrained"]).parent)
    coin = random.Random(told.number("seed"))
    colours = np.random.RandomState(told.number("seed"))
    length, most = told.number("max_length"), told.number("max_img")

    def fits(entry):
        asked = prompt((entry.prefix or "") + entry.input, template)
        return len(tokenizer.call(asked)) < length and entry.output not in EMPTY

    def row(epoch, index):
        chosen = epoch.chosen(index)
        done = FlamingoPieces().tokenize(
            template.render(conversation("row", chosen).messages), tokenizer
        )
        ids = done.tokens[:length] + [0] * (length - len(done.tokens))
        labels = done.labels[:length] + [-100] * (length - len(done.labels))
        images = []
        for path in [path for entry in chosen for path in entry.pictures]:
            try:
                picture = load_image(path, where="test", as_stored=True)
            except Exception:
                images.append(torch.zeros(3, *stream.size))
                continue
            images.append(pixels_of(augmented(picture, coin=coin, colours=colours), stream))
        images = [*images[:most], *[torch.zeros(3, *stream.size)] * (most - len(images))]
        real = [1] * min(len(done.tokens), length) + [0] * (length - len(done.tokens))
        return ids, labels, real, torch.stack(images)[:, None]

    count, size = told.number("epoch_num_samples"), told.number("batch_size")
    for _ in range(told.number("num_epochs")):
        collection = Collection.open(case / told["instruction_data"], root=case)
        entries = draw(
            collection.entries,
            collection.ratios,
            number=told.number("train_num_samples"),
            mode=told["dataset_sampling_mode"],
            rng=coin,
            fits=fits,
        )
        epoch = FlamingoEpoch(
            entries, turns=told.number("multiturn_augmentation"), max_images=most, rng=coin
        )
        order = list(DistributedSampler(range(count), num_replicas=1, rank=0, shuffle=True, seed=0))
        for at in range(0, count, size):
            ids, labels, real, images = zip(
                *(row(epoch, i) for i in order[at : at + size]), strict=True
            )
            last = at + size >= count
            yield (
                torch.tensor(ids),
                torch.tensor(labels),
                torch.tensor(real),
                torch.stack(images),
                last,
            )


@pytest.mark.parametrize(("case", "name", "words"), RUNS, ids=ids_of(RUNS))
def test_run(case, name, words):
    told = Command(words)
    io = tensors(case, "batches")
    losses = json.loads((case / "batches_losses.json").read_text("utf-8"))
    model, processor = load((case / told["lm_path"]).resolve().parent)
    model.fusion.spec = model.fusion.spec.model_copy(update={"counting": "ids"})
    tuning = json.loads((case / told["tuning_config"]).read_text("utf-8"))
    table = apply_rules(
        model,
        RULES.validate_python(trainable_rules(tuning, [n for n, _ in model.named_parameters()])),
        lr=float(told["learning_rate"]),
    )
    own = dict(model.named_parameters())
    kind = model.config.text_config.model_type
    begin = tensors(case, "initial_trainable")
    renamed = {ours(key, kind): key for key in begin}
    assert set(renamed) == set(table.names)
    with torch.no_grad():
        for mine, key in renamed.items():
            own[mine].copy_(begin[key])
    decayed = [own[n] for n in table.names if "gated_cross_attn" in n]
    others = [own[n] for n in table.names if "gated_cross_attn" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=float(told["learning_rate"]),
    )
    total = told.number("train_num_samples") // told.number("batch_size")
    schedule = get_cosine_schedule_with_warmup(
        optimizer, told.number("warmup_steps"), total * told.number("num_epochs")
    )
    accumulate = told.number("gradient_accumulation_steps")
    per_epoch = told.number("epoch_num_samples") // told.number("batch_size")
    scalars, held = [], 0.0
    for number, (ids, labels, real, images, last) in enumerate(rows_of(case, told)):
        assert ids.tolist() == io[f"{number}.input_ids"].tolist()
        assert labels.tolist() == io[f"{number}.labels"].tolist()
        check_pixels(io, number, images)
        visual = pictures(images, ids, processor.image_id)
        out = model.run(batch(ids, real, visual=visual, labels=labels))
        loss = out.loss_sum / out.num_supervised
        assert abs(float(loss.detach()) - losses[number]) <= 1e-4, number
        (loss / accumulate).backward()
        held += float(loss.detach()) / accumulate
        norm = nn.utils.clip_grad_norm_([own[n] for n in table.names], 1.0)
        # the original's rule: the first micro-batch of an epoch is a step of its own
        step = number % per_epoch
        if step == 0 or (step + 1) % accumulate == 0 or last:
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            rate = schedule.get_last_lr()[0]
            scalars += [["train/loss", held, number], ["train/lr", rate, number]]
            scalars += [["train/grad_norm", float(norm), number]]
            held = 0.0
    said = [
        row
        for row in json.loads((case / "scalars.json").read_text("utf-8"))
        if row[0][:5] == "train"
    ]
    assert [(tag, at) for tag, _, at in scalars] == [(tag, at) for tag, _, at in said]
    for (tag, mine, at), (_, theirs, _) in zip(scalars, said, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3), (tag, at)
    check_checkpoint(case, model, own, kind)
    compared(case)


def check_pixels(io, number, images):
    if f"{number}.vision_x" in io:
        torch.testing.assert_close(images, io[f"{number}.vision_x"], atol=1e-5, rtol=0)
    mean, std = images.flatten(2).mean(2), images.flatten(2).std(2)
    torch.testing.assert_close(mean, io[f"{number}.vision_x_mean"], atol=2e-5, rtol=0)
    torch.testing.assert_close(std, io[f"{number}.vision_x_std"], atol=2e-5, rtol=0)


def check_checkpoint(case, model, own, kind):
    """The last checkpoint's tensors, and the names under which ours would be saved."""
    last = sorted(case.glob("checkpoint_*.pt"))[-1]
    saved = state_of(last)
    mine = trainer_state(model)["model_state_dict"]
    tied = {key for key in saved if key.endswith("lm_head.weight")}  # a second path of the words
    assert set(mine) == set(saved) - tied
    for key in mine:
        # AdamW divides by the root of tiny gradients: rounding of 1e-7 there moves a step of 5e-3
        torch.testing.assert_close(mine[key], saved[key], atol=2e-3, rtol=0, msg=key)
    for layout in case.glob("checkpoint_*.layout.json"):
        told = json.loads(layout.read_text("utf-8"))["model"]
        assert {k: list(v.shape) for k, v in mine.items()} == {
            k: shape for k, shape in told.items() if k not in tied
        }
