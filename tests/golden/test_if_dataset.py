"""Instruct-Flamingo's data: which samples an epoch has, their ids, masks and pictures."""

import json
import random

import numpy as np
import pytest
import torch
from cases import cases, compared
from flamingo import SYSTEM, ids_of, recordings, tensors
from PIL import Image

from retinue.compat.flamingo_data import (
    EMPTY,
    Collection,
    FlamingoEpoch,
    counts_of,
    draw,
)
from retinue.hub.flamingo import PAD, TOKENS
from retinue.media.image import load_image
from retinue.media.stored import Stored, padded_square
from retinue.media.views import StreamSpec
from retinue.ops.pixels import normalize
from retinue.text.flamingo import FlamingoPieces
from retinue.text.template import resolve
from retinue.text.tokenizer import Tokenizer
from retinue.types import IGNORE, Media, Message, Sample

RUNS = recordings("*.json", "order_after_construction")
SAMPLING = [
    (case, file.stem, json.loads(file.read_text("utf-8")))
    for case in cases(SYSTEM, "*")
    for file in sorted(case.glob("sampling.json"))
]
PREPROCESS = recordings("*.json", "transform")


def tokenizer_of(case, facts):
    tokenizer = Tokenizer.load((case / facts["tokenizer_of"]).resolve())
    return tokenizer.with_tokens([*TOKENS, PAD], pad=PAD)


def template_of(facts, tokenizer):
    name = facts["args"]["instruction_prompt_templete"].replace("-", "_")
    return resolve({"name": name, "end": tokenizer.token_text("eos")})


def stream_of(folder):
    (config,) = folder.glob("*.json")
    return StreamSpec(size=json.loads(config.read_text("utf-8"))["vision_cfg"]["image_size"])


def pixels_of(picture, stream):
    views, _ = Stored(kind="stored").views(picture, stream)
    return normalize(views, mean=stream.mean, std=stream.std, dtype=torch.float32)[0]


def augmented(picture, *, coin, colours):
    """The training picture: with chance one half in a square of a colour that is drawn then."""
    picture = picture.convert("RGB")
    if coin.random() < 0.5:
        picture = padded_square(picture, tuple(int(c) for c in colours.randint(0, 256, 3)))
    return picture


def epoch_of(case, facts, tokenizer, template, *, train):
    """The epoch as the recording's constructor drew it."""
    args, rng = facts["args"], random.Random(facts["seed_before_construction"])
    found = None
    for path in (case / "config.json", *sorted((case / "data").glob("*.json"))):
        collection = Collection.open(path, root=case)
        if path.name == "config.json" and facts["len"] >= 0:
            found = collection
        said = {text.partition("|")[2] for _, text in facts["order_after_construction"]}
        texts = {entry.input[:60] for own in collection.entries for entry in own}
        whole = sum(map(len, collection.entries)) == facts["len"]
        if (
            len(collection.names) == 1
            and whole
            and all(any(t.startswith(x[:50]) for t in texts) for x in said)
        ):
            found = collection

    def fits(entry):
        asked = (entry.prefix or "") + entry.input
        short = len(tokenizer.call(prompt(asked, template))) < args["max_length"]
        return short and entry.output not in EMPTY

    entries = draw(
        found.entries,
        found.ratios,
        number=facts["num_samples"],
        mode=args["dataset_sampling_mode"],
        rng=rng,
        fits=fits if train and not args["skip_check_overlength"] else None,
    )
    epoch = FlamingoEpoch(
        entries,
        turns=args["multiturn_augmentation"],
        max_images=args["max_img"],
        rng=rng,
        shuffle=train,
    )
    return found, epoch


def prompt(text, template):
    import re

    from retinue.types import Text

    plain = re.sub(r"<img_path>(.*?)<img_path>", "<image>", text)
    messages = [Message(role="user", parts=(Text(text=plain),))]
    return template.text(messages, reply=True)


@pytest.mark.parametrize(("case", "name", "facts"), RUNS, ids=ids_of(RUNS))
def test_run(case, name, facts):
    io = tensors(case, name)
    tokenizer = tokenizer_of(case, facts)
    template = template_of(facts, tokenizer)
    train = "text" in facts["items"][0]
    collection, epoch = epoch_of(case, facts, tokenizer, template, train=train)
    for entry, (number, text) in zip(
        epoch.entries, facts["order_after_construction"], strict=False
    ):
        assert entry.dataset == number
        assert f"{entry.prefix or ''}|{entry.input}".startswith(text)
    few = facts["args"]["epoch_num_samples"]
    visited = few if few > 0 and facts["num_samples"] >= 0 else len(epoch)
    assert visited == facts["len"]
    epoch.rng = coin = random.Random(facts["seed_before_items"])
    colours = np.random.RandomState(facts["seed_before_items"])
    stream = stream_of((case / facts["image_processor_of"].split()[0]).resolve())
    for index, item in enumerate(facts["items"]):
        check = check_training if train else check_test
        check(
            case,
            facts,
            index,
            item,
            io,
            epoch,
            collection,
            tokenizer,
            template,
            stream,
            (coin, colours),
        )
    compared(case)


def check_test(case, facts, index, item, io, epoch, collection, tokenizer, template, *_):
    entry = epoch.entries[index]
    asked = (entry.prefix or "") + entry.input
    assert prompt(asked, template) == item["prompt"]
    assert tokenizer.call(item["prompt"]) == io[f"{index}.input_ids"].tolist()
    assert entry.output == item["target"]
    assert collection.names[entry.dataset] == item["dataset_name"]
    assert [str(case / path) for path in item["img_paths"]] == entry.pictures


def check_training(
    case, facts, index, item, io, epoch, collection, tokenizer, template, stream, streams
):
    args = facts["args"]
    chosen = epoch.chosen(index)
    turns = args["multiturn_augmentation"]
    padded = ([entry.dataset for entry in chosen] + [-1] * turns)[:turns]
    assert padded == io[f"{index}.dataset_idxs"].tolist()
    from retinue.compat.flamingo_data import conversation

    sample = conversation(str(index), chosen)
    assert isinstance(sample, Sample)
    done = FlamingoPieces().tokenize(template.render(sample.messages), tokenizer)
    mask = io[f"{index}.target_mask"]
    real = int(io[f"{index}.attention_mask"].sum())
    assert done.tokens[: args["max_length"]] == io[f"{index}.input_ids"][:real].tolist()
    ours = [label != IGNORE for label in done.labels[:real]]
    for at, (own, theirs) in enumerate(zip(ours, mask[:real].tolist(), strict=True)):
        silent = "<|endofchunk|>" in item["target_text"]  # hidden later, by the training loop
        assert own == bool(theirs) or silent, (index, at)
    check_images(case, args, index, io, chosen, stream, streams)


def check_images(case, args, index, io, chosen, stream, streams):
    coin, colours = streams
    found = []
    for path in [path for entry in chosen for path in entry.pictures]:
        try:
            picture = load_image(path, where="test", as_stored=True)
        except Exception:
            found.append(torch.zeros(3, *stream.size))
            continue
        found.append(pixels_of(augmented(picture, coin=coin, colours=colours), stream))
    kept = found[: args["max_img"]]
    kept += [torch.zeros(3, *stream.size)] * (args["max_img"] - len(kept))
    ours = torch.stack(kept)
    if f"{index}.images" in io:
        torch.testing.assert_close(ours, io[f"{index}.images"], atol=1e-5, rtol=0)
    mean, std = ours.flatten(1).mean(1), ours.flatten(1).std(1)
    torch.testing.assert_close(mean, io[f"{index}.images_mean"], atol=2e-5, rtol=0)
    torch.testing.assert_close(std, io[f"{index}.images_std"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("case", "name", "rows"), SAMPLING, ids=ids_of(SAMPLING))
def test_sampling(case, name, rows):
    for row in rows:
        rng = random.Random(row["seed"])
        entries = [
            [(number, f"q{at}") for at in range(size)] for number, size in enumerate(row["sizes"])
        ]
        counts = counts_of(
            row["sizes"], row["ratios"], number=row["num_samples"], mode=row["mode"], rng=rng
        )
        rng = random.Random(row["seed"])
        found = draw(entries, row["ratios"], number=row["num_samples"], mode=row["mode"], rng=rng)
        assert [sum(n == number for n, _ in found) for number in range(len(counts))] == row[
            "counts"
        ]
        assert counts == row["counts"]
        rng.shuffle(found)
        first = [list(one) for one in found[: len(row["first12"])]]
        assert first == row["first12"], (first, row["first12"])
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), PREPROCESS, ids=ids_of(PREPROCESS))
def test_pictures(case, name, facts):
    io = tensors(case, name)
    stream = StreamSpec(size=tuple(io["black"].shape[-2:]))
    for number, told in enumerate(facts["images"]):
        picture = load_image(str(case / told["file"]), where="test", as_stored=True)
        assert list(picture.size) == told["size"]
        plain = pixels_of(picture, stream)
        torch.testing.assert_close(plain, io[f"{number}.plain"], atol=1e-5, rtol=0)
        coin, colours = (
            random.Random(told["seed_for_aug"]),
            np.random.RandomState(told["seed_for_aug"]),
        )
        made = augmented(picture, coin=coin, colours=colours)
        assert list(made.size) == told["size_after_aug"]
        assert list(made.getpixel((0, 0))) == told["corner_pixel"]
        torch.testing.assert_close(
            pixels_of(made, stream), io[f"{number}.train_aug"], atol=1e-5, rtol=0
        )
    black = Image.new("RGB", (30, 30))
    torch.testing.assert_close(pixels_of(black, stream), io["black"], atol=1e-5, rtol=0)
    assert not io["dataset_zero_image"].any()
    compared(case)


assert Media
