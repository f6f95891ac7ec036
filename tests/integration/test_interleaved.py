"""Pictures between words: rows of three train, answers follow a picture in the middle, errors name.

The pictures of a row stand where the row says, in its order, whatever fuses them with the words.
"""

import itertools
import json

import pytest
import torch

from retinue.core.errors import DataError
from retinue.data.formats import open_format
from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.model.build import build_model
from retinue.model.spec import RetinueConfig
from retinue.processor import Processor
from retinue.types import IGNORE, Media, Message, Ready, Sample, Text
from tiny import picture, tiny_model

FUSIONS = {"splice": {"kind": "splice"}, "expert": {"kind": "expert"}}
WORDS = ("first ", " then ", " and ", " what colour is the circle?")


@pytest.fixture(scope="module", params=sorted(FUSIONS))
def loaded(request):
    model, processor = tiny_model(seed=5)
    fields = model.config.to_dict()
    fields["spec"] = {**fields["spec"], "fusion": FUSIONS[request.param]}
    config = RetinueConfig.from_dict(fields)
    made = build_model(config, seed=5).eval()
    return made, Processor(made.plan, tokenizer=processor.tokenizer, spec=processor.spec)


def rows(folder, *, marks=3, pictures=3):
    """chat.jsonl with one row: so many marks between its words, so many pictures in its list."""
    for number in range(pictures):
        picture(20 * number).save(folder / f"{number}.png")
    content = "".join(word + "<image>" for word in WORDS[:marks]) + WORDS[-1]
    row = {
        "id": "seven",
        "images": [f"{number}.png" for number in range(pictures)],
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "red"},
        ],
    }
    (folder / "chat.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    return open_format(folder / "chat.jsonl")


def loss(model, processor, sample):
    out = model.run(processor.batch([sample], train=True))
    return out.loss_sum / out.num_supervised


def swapped(sample, one, two):
    """The same words with two pictures in each other's places."""
    asked, *rest = sample.messages
    places = [n for n, part in enumerate(asked.parts) if isinstance(part, Media)]
    parts = list(asked.parts)
    parts[places[one]], parts[places[two]] = parts[places[two]], parts[places[one]]
    return Sample(id=sample.id, messages=(Message(role="user", parts=tuple(parts)), *rest))


def test_a_row_with_three_pictures_between_words_trains(loaded, tmp_path):
    model, processor = loaded
    sample = rows(tmp_path)[0]
    kinds = [type(part) for part in sample.messages[0].parts]
    assert kinds == [Text, Media, Text, Media, Text, Media, Text]
    example = processor.example(sample, train=True)
    starts = [span.start for span in example.spans]
    assert len(starts) == 3
    for start, following in itertools.pairwise(starts):
        assert following > start + 16, "words stand between the pictures"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = loss(model, processor, sample).item()
    for _ in range(8):
        optimizer.zero_grad()
        loss(model, processor, sample).backward()
        optimizer.step()
    assert loss(model, processor, sample).item() < 0.5 * first
    moved = {n.partition(".")[0] for n, p in model.named_parameters() if not p.equal(before[n])}
    assert moved == {"lm", "encoders", "connector"}
    model.load_state_dict(before)


def test_order_and_place_of_the_pictures_matter(loaded, tmp_path):
    model, processor = loaded
    sample = rows(tmp_path)[0]
    with torch.no_grad():
        kept = float(loss(model, processor, sample))
        assert float(loss(model, processor, sample)) == kept
        for pair in ((0, 1), (1, 2)):
            assert abs(float(loss(model, processor, swapped(sample, *pair))) - kept) > 1e-5


def test_answers_follow_a_picture_in_the_middle(loaded, tmp_path):
    """Greedy decoding with a cache gives whole passes' tokens, and sees the middle picture."""
    model, processor = loaded
    full = rows(tmp_path)[0]
    question = Sample(id="q", messages=full.messages[:1])
    params = SamplingParams(max_new_tokens=6, temperature=0.0)
    (answer,) = generate(model, processor, [question], params=params)
    prompt = processor.example(question)
    tokens: list[int] = []
    logits = []
    for _ in range(len(answer.tokens)):
        grown = prompt.tokens + tokens
        longer = type(prompt)(
            id="q",
            tokens=grown,
            labels=[IGNORE] * len(grown),
            spans=prompt.spans,
            items=prompt.items,
        )
        with torch.no_grad():
            out = model.run(processor.collate([longer]), keep="last")
        logits.append(out.logits.flatten())
        tokens.append(int(logits[-1].argmax()))
    assert list(answer.tokens) == tokens
    other = processor.batch([swapped(question, 1, 2)])
    with torch.no_grad():
        seen = model.run(other, keep="last").logits.flatten()
    assert float((seen - logits[0]).abs().max()) > 1e-4


@pytest.mark.parametrize(("marks", "pictures"), [(3, 2), (2, 3)])
def test_a_wrong_count_names_the_sample(tmp_path, marks, pictures):
    with pytest.raises(DataError) as caught:
        rows(tmp_path, marks=marks, pictures=pictures)[0]
    said = str(caught.value)
    assert "seven" in said
    assert "chat.jsonl:1" in said
    assert str(pictures) in said


@pytest.mark.parametrize(("length", "count"), [(16, 1), (9, 2)])
def test_a_wrong_place_names_the_sample(loaded, length, count):
    """Rows prepared elsewhere say where pictures stand; both numbers are checked."""
    _, processor = loaded
    media = (Media(source=picture(1)), Media(source=picture(2)))
    tokens = [5] * 60
    slots = [(4 + 20 * n, length) for n in range(count)]
    ready = Ready(tokens=tokens, labels=tokens, slots=slots)
    sample = Sample(id="row-7", messages=(Message(role="user", parts=media),), ready=ready)
    with pytest.raises(DataError) as caught:
        processor.example(sample, train=True)
    assert "row-7" in str(caught.value)
    assert "places for" in str(caught.value)
