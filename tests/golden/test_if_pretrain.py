"""OpenFlamingo's pre-training data: documents, captions, refusals."""

import io as streams
import itertools
import json
import random

import pytest
import torch
from cases import compared
from flamingo import ids_of, recordings, tensors
from PIL import Image
from test_if_dataset import pixels_of, tokenizer_of

from retinue.core.errors import DataError
from retinue.data.web import assign, caption, is_pair, refuse, told_document, web_document
from retinue.media.views import StreamSpec

RUNS = recordings("*.json", "laion_captions")


@pytest.mark.parametrize(("case", "name", "facts"), RUNS, ids=ids_of(RUNS))
def test_documents(case, name, facts):
    io = tensors(case, name)
    tokenizer = tokenizer_of(case, facts)
    vision = (case / facts["tokenizer_of"]).parent / "vision" / f"{facts['vision']}.json"
    stream = StreamSpec(size=json.loads(vision.read_text("utf-8"))["vision_cfg"]["image_size"])
    documents = json.loads((case / "docs.json").read_text("utf-8"))
    eos = tokenizer.token_text("eos")
    for told in facts["cases"]:
        if told.get("type") == "NotImplementedError":
            continue  # the original cannot pad there unless pictures have 224 pixels
        most, why = told["max_num_images"], None
        if told["doc"] == "gpt":
            row = next(one for one in documents if one.get("is_gpt"))
            found = told_document(row, most=most, eos=eos)
        else:
            row = documents[told["doc"]]
            try:
                found = web_document(
                    row, threshold=told["sim_threshold"], most=most, eos=eos, min_bytes=0
                )
            except DataError:
                why = "No images in sample"
        if why is None:
            ids = tokenizer.call(found.text, max_length=told["max_tokens"])
            why = refuse(
                ids,
                image_id=tokenizer.image_id,
                fewest=told["min_num_images"],
                rng=random.Random(told["seed"]),
            )
        assert (why or "").lower()[:12] == told.get("rejected", "").lower()[:12], told["index"]
        if why:
            continue
        index = told["index"]
        real = io[f"{index}.attention_mask"][0] > 0
        assert ids == io[f"{index}.input_ids"][0][real].tolist()
        assert tokenizer.decode(ids, skip_special=False) == told["text"]
        check_pictures(io, index, found.images, told["n_images"], stream)
    captions = zip(facts["laion_captions"], facts["laion_text"], strict=True)
    for text, wanted in captions:
        ids = tokenizer.call(caption(text, eos=eos), max_length=32)
        assert tokenizer.decode(ids, skip_special=False) == wanted
    assert [is_pair(names) for names, _ in facts["filter"]] == [kept for _, kept in facts["filter"]]
    compared(case)


def check_pictures(io, index, images, count, stream):
    made = [pixels_of(Image.open(streams.BytesIO(data)), stream) for data in images]
    made += [torch.zeros(3, *stream.size)] * (count - len(made))
    pixels = torch.stack(made)
    mean, std = pixels.flatten(1).mean(1), pixels.flatten(1).std(1)
    torch.testing.assert_close(mean, io[f"{index}.images_mean"], atol=2e-5, rtol=0)
    torch.testing.assert_close(std, io[f"{index}.images_std"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (5, 2), (4, 6)])
def test_assignment_is_the_best_of_all(shape):
    rng = random.Random(sum(shape))
    for _ in range(20):
        scores = [[rng.random() for _ in range(shape[1])] for _ in range(shape[0])]
        found = assign(scores)
        rows, columns = zip(*found, strict=True)
        assert len(set(rows)) == len(set(columns)) == min(shape)
        short, long = sorted(shape)
        best = max(
            sum(scores[a][b] if shape[0] <= shape[1] else scores[b][a] for a, b in enumerate(order))
            for order in itertools.permutations(range(long), short)
        )
        assert sum(scores[a][b] for a, b in found) == pytest.approx(best)
