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

from retinue.data.formats.base import RefusedError
from retinue.data.formats.shards import Shards, WebSpec
from retinue.data.web import assign, caption, is_pair, refuse, told_document, web_document
from retinue.media.views import StreamSpec
from retinue.text.labels import tokenize
from retinue.text.template import resolve
from retinue.types import IGNORE, Media, Message, Text

RUNS = recordings("*.json", "laion_captions")


@pytest.mark.parametrize(("case", "name", "facts"), RUNS, ids=ids_of(RUNS))
def test_documents(case, name, facts, tmp_path):
    io = tensors(case, name)
    tokenizer = tokenizer_of(case, facts)
    vision = (case / facts["tokenizer_of"]).parent / "vision" / f"{facts['vision']}.json"
    stream = StreamSpec(size=json.loads(vision.read_text("utf-8"))["vision_cfg"]["image_size"])
    documents = json.loads((case / "docs.json").read_text("utf-8"))
    eos = tokenizer.token_text("eos")
    for told in facts["cases"]:
        most, why = told["max_num_images"], None
        row = document_of(documents, told)
        try:
            if row.get("is_gpt"):
                found = told_document(row, most=most, eos=eos)
            else:
                found = web_document(
                    row, threshold=told["sim_threshold"], most=most, eos=eos, min_bytes=0
                )
        except RefusedError:
            why = "No images in sample"
        if why is None:
            ids = tokenizer.call(found.text, max_length=told["max_tokens"])
            why = refuse(
                ids,
                image_id=tokenizer.image_id,
                fewest=told["min_num_images"],
                rng=random.Random(told["seed"]),
            )
        if told.get("type") == "NotImplementedError":
            check_unpadded(facts, told, row, found, why)
            continue
        assert (why or "").lower()[:12] == told.get("rejected", "").lower()[:12], told["index"]
        if why:
            continue
        index = told["index"]
        real = io[f"{index}.attention_mask"][0] > 0
        wanted = io[f"{index}.input_ids"][0][real].tolist()
        assert ids == wanted
        assert tokenizer.decode(ids, skip_special=False) == told["text"]
        check_pictures(io, index, found.images, told["n_images"], stream)
        if not (row.get("is_gpt") and len(row["image_map"]) > most):  # there a text is lost
            check_normal_path(row, told, tokenizer, wanted, tmp_path)
    captions = zip(facts["laion_captions"], facts["laion_text"], strict=True)
    for text, wanted in captions:
        ids = tokenizer.call(caption(text, eos=eos), max_length=32)
        assert tokenizer.decode(ids, skip_special=False) == wanted
        asked = Message(role="user", parts=(Media(source=b""),))
        said = Message(role="assistant", parts=(Text(text=text.strip()),))
        done = rendered((asked, said), tokenizer)
        assert done.tokens[:32] == ids
        assert done.labels[1:32] == ids[1:]  # all but the picture's mark
        assert done.labels[0] == IGNORE
    assert [is_pair(names) for names, _ in facts["filter"]] == [kept for _, kept in facts["filter"]]
    compared(case)


def document_of(documents, told):
    """The document of a case: by number, or the generated one."""
    if told["doc"] == "gpt":
        return next(one for one in documents if one.get("is_gpt"))
    return documents[told["doc"]]


def check_unpadded(facts, told, row, found, why):
    """Where the original cannot pad (its pictures would need 224 pixels), the rule still holds."""
    pictures, most = len(row["image_map"]), told["max_num_images"]
    shown = pictures if pictures <= most else most - 1  # one picture's text is lost
    assert found.text.count("<image>") == shown
    assert len(found.images) == min(pictures, most)
    refused = shown < told["min_num_images"]
    assert (why is not None) == refused
    same = [
        other["text"]
        for other in facts["cases"]
        if other["doc"] == "gpt" and other["max_num_images"] == most and other["max_tokens"] > 40
    ]
    assert all(text == found.text for text in same)


def rendered(messages, tokenizer):
    template = resolve({"name": "web", "end": tokenizer.token_text("eos")})
    return tokenize(template.render(messages), tokenizer, policy="flamingo-web")


def check_normal_path(row, told, tokenizer, wanted, folder):
    """The same document as a source of a recipe: format, template and label policy."""
    path = folder / f"{told['index']}.jsonl"
    path.write_text(json.dumps(row), "utf-8")
    web = WebSpec(
        threshold=told.get("sim_threshold", 0.24),
        most=told["max_num_images"],
        min_bytes=0,
        single=1.0,
    )
    sample = Shards.open(path).using(web)[0]
    done = rendered(sample.messages, tokenizer)
    assert done.tokens[: told["max_tokens"]] == wanted
    image, chunk = tokenizer.image_id, tokenizer.id_of("<|endofchunk|>")
    spoken, labels = False, []
    for token in done.tokens:
        spoken = True if token == image else spoken
        labels.append(token if spoken and token != image else IGNORE)
        spoken = False if token == chunk else spoken
    assert done.labels == labels
    marks = [at for at, token in enumerate(done.tokens) if token == image]
    assert [place for place, _ in done.places] == marks
    assert len(sample.media) == len(marks)


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
