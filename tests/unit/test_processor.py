"""The processor: counts the model agrees with, errors that name the sample, files, call shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinue.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvError,
    MediaError,
    RequestError,
)
from retinue.model.build import build_model
from retinue.model.retinue import Retinue
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.processor_hf import deal, message_of
from retinue.types import IGNORE, Media, Message, Sample, Text
from tiny import ask, picture, tiny_model

POLICIES: dict[str, Any] = {
    "squash": {"kind": "squash"},
    "pad": {"kind": "pad"},
    "single": {"kind": "single"},
    "anyres": {"kind": "anyres", "pinpoints": [[32, 64], [64, 32], [64, 64], [32, 96]]},
}
MODELS = {name: tiny_model(views=views) for name, views in POLICIES.items()}
MODEL, PROCESSOR = MODELS["squash"]
TILED = MODELS["anyres"][1]


def changed(processor: Processor, **fields: Any) -> Processor:
    spec = ProcessorSpec.parse({**processor.spec.model_dump(mode="json"), **fields})
    return Processor(processor.plan, tokenizer=processor.tokenizer, spec=spec)


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 120, 30))


# ------------------------------------------------------------------ counts


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=3),
    st.booleans(),
)
def test_placeholders_are_features(name: str, sizes: list[tuple[int, int]], train: bool) -> None:
    model, processor = MODELS[name]
    sample = ask("s", "what?", *(blank(*size) for size in sizes), answer="red" if train else None)
    example = processor.example(sample, train=train)
    assert sum(token == processor.image_id for token in example.tokens) == sum(
        span.length for span in example.spans
    )
    for span in example.spans:
        run = example.tokens[span.start : span.start + span.length]
        assert run == [processor.image_id] * span.length
        assert span.length == example.items[span.item].num_tokens
    visual = processor.collate([example]).visual
    assert visual is not None
    with torch.no_grad():
        words = model.look(visual)
    assert words is not None
    assert words.lengths == [span.length for span in example.spans]
    # headers alone give the same counts as pixels
    light = processor.example(sample, train=train, pixels=False)
    assert (light.tokens, light.spans, light.labels) == (
        example.tokens,
        example.spans,
        example.labels,
    )
    assert all(item.pixels == {} for item in light.items)
    if train:
        views = sum(item.grid.num_views for item in example.items)
        assert processor.length(sample) == (len(example.tokens), views)


def test_labels_are_the_answer_and_its_end_alone() -> None:
    sample = ask("s", "what colour?", picture(), answer="red")
    example = PROCESSOR.example(sample, train=True)
    targets = [label for label in example.labels if label != IGNORE]
    assert targets[-1] == PROCESSOR.tokenizer.eos_id
    assert PROCESSOR.tokenizer.decode(targets[:-1]).strip() == "red"
    assert all(
        label in (IGNORE, token)
        for label, token in zip(example.labels, example.tokens, strict=True)
    )
    batch = PROCESSOR.collate([example], train=True)
    assert batch.labels is not None
    assert batch.labels[0, :-1].tolist() == example.labels[1:]
    assert PROCESSOR.example(replace(sample, messages=sample.messages[:1])).num_supervised == 0


def test_text_is_never_a_picture() -> None:
    sample = ask("s", "is <image> a word?")
    example = PROCESSOR.example(sample)
    assert example.items == []
    assert PROCESSOR.image_id not in example.tokens
    assert "<image>" in PROCESSOR.decode(example.tokens)


# ------------------------------------------------------------------ errors name the sample


def test_missing_picture_names_the_sample(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="sample lost") as caught:
        PROCESSOR.example(ask("lost", "what?", str(tmp_path / "gone.png")))
    assert "gone.png" in str(caught.value)


def test_a_missing_video_names_the_sample() -> None:
    parts = (Media(kind="video", source="a.mp4"), Text(text="what?"))
    sample = Sample(id="v", messages=(Message(role="user", parts=parts),))
    for pixels in (True, False):
        with pytest.raises((MediaError, EnvError), match=r"sample v: a.mp4|pip install"):
            PROCESSOR.example(sample, pixels=pixels)


def test_no_answer_to_learn_from_names_the_sample() -> None:
    with pytest.raises(DataError, match="sample empty"):
        PROCESSOR.example(ask("empty", "what?", picture(), answer=""), train=True)


def lengths(processor: Processor, sample: Sample) -> tuple[int, int, int]:
    """(first placeholder, after the last, all tokens)."""
    example = processor.example(sample, train=True)
    span = example.spans[-1]
    return span.start, span.start + span.length, len(example.tokens)


def test_limit_inside_a_picture_is_refused_with_the_numbers() -> None:
    sample = ask("s7", "what?", picture(), answer="red " * 9)
    start, stop, whole = lengths(PROCESSOR, sample)
    for limit in (start + 1, stop - 1):
        with pytest.raises(DataError, match="inside picture 0") as caught:
            changed(PROCESSOR, max_tokens=limit).example(sample, train=True)
        assert "sample s7" in str(caught.value)
        assert str(limit) in str(caught.value)
        assert str(whole) in str(caught.value)


def test_limit_that_leaves_no_target_is_refused() -> None:
    sample = ask("s8", "what?", picture(), answer="red")
    _, stop, _ = lengths(PROCESSOR, sample)
    with pytest.raises(DataError, match="no target is left") as caught:
        changed(PROCESSOR, max_tokens=stop).example(sample, train=True)
    assert "sample s8" in str(caught.value)


def test_limit_behind_a_picture_cuts_text_and_drops_later_pictures() -> None:
    first = ask("s9", "what?", picture(1), answer="red")
    both = replace(first, messages=(*first.messages, *ask("", "and?", picture(2)).messages))
    end = len(PROCESSOR.example(first, train=True).tokens)
    cut = changed(PROCESSOR, max_tokens=end).example(both, train=True)
    assert len(cut.tokens) == end
    assert [span.item for span in cut.spans] == [0]
    batch = PROCESSOR.collate([cut], train=True)
    assert batch.visual is not None
    assert len(batch.visual.grids) == 1
    assert MODEL.run(batch).loss_sum is not None


def test_budget_the_model_cannot_meet_is_refused() -> None:
    parts = (Media(source=picture(), budget=4), Text(text="what?"))
    with pytest.raises(DataError, match=r"sample a: .*always gives 16"):
        PROCESSOR.example(Sample(id="a", messages=(Message(role="user", parts=parts),)))


# ------------------------------------------------------------------ transformers' way to call


def test_one_text_one_picture_one_row() -> None:
    one = PROCESSOR(text="<image>\nwhat?", images=picture())
    listed = PROCESSOR(text=["<image>\nwhat?"], images=[picture()])
    nested = PROCESSOR(text=["<image>\nwhat?"], images=[[picture()]])
    assert set(one) == {"input_ids", "attention_mask", "pixel_values", "image_grids"}
    for other in (listed, nested):
        for key in one:
            assert torch.equal(one[key], other[key]), key
    assert one["pixel_values"].shape == (1, 1, 3, 32, 32)
    assert one["pixel_values"].is_floating_point()


def test_rows_are_padded_on_the_left_unless_asked() -> None:
    texts = ["<image> what?", "how many shapes are there in it?"]
    left = PROCESSOR(text=texts, images=[picture()])
    right = PROCESSOR(text=texts, images=[picture()], padding_side="right")
    assert left["attention_mask"][:, -1].tolist() == [1, 1]
    assert right["attention_mask"][:, 0].tolist() == [1, 1]
    assert left["attention_mask"].sum(1).tolist() == right["attention_mask"].sum(1).tolist()


def test_tiles_of_different_number_share_a_tensor() -> None:
    found = TILED(text="<image> and <image>", images=[blank(64, 64), blank(90, 20)])
    views = [int(r * c + o) for r, c, o, *_ in found["image_grids"]]
    assert views == [5, 3]
    assert found["pixel_values"].shape[:2] == (2, 5)
    assert not found["pixel_values"][1, 3:].any()


def several(streams: tuple[str, str]) -> tuple[Retinue, Processor]:
    """Two encoders that normalise differently, on one stream or on two."""
    old = PROCESSOR.plan.config
    eyes = {"a": {"mean": [0.5] * 3, "std": [0.5] * 3}, "b": {"mean": [0.2] * 3, "std": [0.3] * 3}}
    config = RetinueConfig(
        old.text_config,
        dict.fromkeys(eyes, old.encoders["eye"]),
        {
            **old.spec,
            "encoders": {
                name: {"kind": "patches", "stream": stream, **eyes[name]}
                for name, stream in zip(eyes, streams, strict=True)
            },
            "connector": {
                "kind": "mlp",
                "of": {
                    "kind": "channel",
                    "parts": [{"kind": "take", "encoder": name, "layer": -1} for name in eyes],
                },
            },
        },
    )
    stream = PROCESSOR.spec.streams["rgb"].model_dump(mode="json")
    spec = {**PROCESSOR.spec.model_dump(mode="json"), "streams": dict.fromkeys(streams, stream)}
    processor = Processor(
        Plan(config), tokenizer=PROCESSOR.tokenizer, spec=ProcessorSpec.parse(spec)
    )
    return build_model(config, seed=0).eval(), processor


def test_encoders_that_normalise_differently_get_grey_levels() -> None:
    model, processor = several(("rgb", "rgb"))
    inputs = processor(text="<image>\nwhat?", images=picture())
    assert inputs["pixel_values"].dtype == torch.uint8
    batch = processor.collate([processor.prompt_example("a", "<image>\nwhat?", [picture()])])
    with torch.no_grad():
        own, called = model.run(batch).logits, model(**inputs).logits
    torch.testing.assert_close(called, own, atol=1e-5, rtol=0)


def test_two_streams_do_not_fit_one_tensor() -> None:
    _, processor = several(("rgb", "fine"))
    with pytest.raises(RequestError, match="fine"):
        processor(text="<image>\nwhat?", images=picture())


def test_chats_in_a_list_are_rows() -> None:
    chats = [
        [{"role": "user", "content": "how many?"}],
        [{"role": "user", "content": [{"type": "image", "image": picture()}]}],
    ]
    texts = PROCESSOR.apply_chat_template(chats, add_generation_prompt=True)
    alone = [PROCESSOR.apply_chat_template(c, add_generation_prompt=True) for c in chats]
    assert texts == alone
    found = PROCESSOR.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    called = PROCESSOR(text=alone, images=[[], [picture()]])
    assert torch.equal(found["input_ids"], called["input_ids"])
    assert found["pixel_values"].shape[0] == 1


def test_decode_by_either_name() -> None:
    ids = PROCESSOR(text="<image>what?", images=picture())["input_ids"][0]
    assert PROCESSOR.decode(ids) == PROCESSOR.decode(ids, skip_special_tokens=True) == "what?"
    shown = PROCESSOR.decode(ids, skip_special_tokens=False)
    assert shown == PROCESSOR.decode(ids, skip_special=False) == "<s>what?"
    assert PROCESSOR.batch_decode(ids[None]) == ["what?"]


def test_text_only() -> None:
    found = PROCESSOR(text="what?")
    assert set(found) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({}, "neither samples nor text"),
        ({"text": "<image> what?"}, "1 <image> marks for 0 pictures"),
        ({"text": "what?", "images": picture()}, "0 <image> marks for 1 pictures"),
        ({"text": "what?", "return_tensors": "np"}, "return_tensors='np'"),
    ],
)
def test_wrong_calls(call: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        PROCESSOR(**call)


def test_samples_give_a_batch() -> None:
    batch = PROCESSOR([ask("a", "what?", picture(), answer="red")], train=True)
    assert batch.labels is not None
    assert PROCESSOR([ask("a", "what?", picture())]).labels is None


def test_pictures_are_dealt_in_order() -> None:
    prompts = ["<image>", "none", "<image> <image>"]
    assert deal(prompts, ["a", "b", "c"]) == [["a"], [], ["b", "c"]]
    assert deal(prompts, [["a"], [], ["b", "c"]]) == [["a"], [], ["b", "c"]]
    assert deal(["<image>"], "a") == [["a"]]
    assert deal(["no"], None) == [[]]


def test_pictures_nested_otherwise_than_the_marks_are_refused() -> None:
    with pytest.raises(RequestError, match="prompt 0"):
        deal(["<image>", "<image>"], [["a", "b"], []])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "cat.png"},
        {"type": "image", "path": "cat.png"},
        {"type": "image", "url": "cat.png"},
        {"type": "image_url", "image_url": {"url": "cat.png"}},
        {"type": "image_url", "image_url": "cat.png"},
    ],
)
def test_message_dialects(part: dict[str, Any]) -> None:
    message = message_of({"role": "user", "content": [part, {"type": "text", "text": "what?"}]})
    assert [media.source for media in message.media] == ["cat.png"]
    assert message.text.strip() == "what?"
    assert message_of({"role": "user", "content": "hi"}).parts == (Text(text="hi"),)


@pytest.mark.parametrize(
    "part", [{"type": "image"}, {"type": "audio", "audio": "a.wav"}, {"type": "video"}]
)
def test_parts_that_are_neither_text_nor_picture(part: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="a message part"):
        message_of({"role": "user", "content": [part]})


@pytest.mark.parametrize(
    "entry",
    [
        {"content": "hi"},
        {"role": "user"},
        {"role": "user", "content": [{"text": "hi"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": ["hi"]},
        {"role": "robot", "content": "hi"},
    ],
    ids=str,
)
def test_broken_messages_are_a_request_error(entry: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        message_of(entry)


# ------------------------------------------------------------------ files


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    processor = changed(TILED, max_tokens=500, labels="assistant")
    processor.save(tmp_path)
    again = Processor.load(tmp_path, processor.plan.config)
    assert again.spec == processor.spec
    assert again.fingerprint() == processor.fingerprint()
    sample = ask("a", "what?", blank(70, 33), answer="red")
    one, other = (p.example(sample, train=True) for p in (processor, again))
    assert (one.tokens, one.labels, one.spans) == (other.tokens, other.labels, other.spans)
    assert torch.equal(one.items[0].pixels["rgb"], other.items[0].pixels["rgb"])


def test_fingerprint_changes_with_all_that_decides_tokens() -> None:
    seen = {PROCESSOR.fingerprint()}
    assert changed(PROCESSOR).fingerprint() in seen
    stream = PROCESSOR.spec.model_dump(mode="json")["streams"]["rgb"]
    for fields in (
        {"max_tokens": 77},
        {"template": {"name": "vicuna_v1", "system": "Be short."}},
        {"template": "plain"},
        {"labels": "llava-v1"},
        {"views": POLICIES["pad"]},
        {"streams": {"rgb": {**stream, "mode": "fast"}}},
    ):
        seen.add(changed(PROCESSOR, **fields).fingerprint())
    seen.add(tiny_model(side=64)[1].fingerprint())
    seen.add(tiny_model(image_in_vocab=True)[1].fingerprint())
    assert len(seen) == 9


def test_folder_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"processor\.json"):
        Processor.load(tmp_path, PROCESSOR.plan.config)
    (tmp_path / "processor.json").write_text("{broken")
    with pytest.raises(CheckpointError, match=r"processor\.json"):
        Processor.load(tmp_path, PROCESSOR.plan.config)


def test_unknown_key_of_processor_json_is_named(tmp_path: Path) -> None:
    PROCESSOR.save(tmp_path)
    path = tmp_path / "processor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_token": 3}))
    with pytest.raises(ConfigError, match="max_token"):
        Processor.load(tmp_path, PROCESSOR.plan.config)


def test_a_plan_is_all_a_processor_needs() -> None:
    """No weight is touched: a plan of the config alone gives the same counts."""
    alone = Processor(
        Plan(PROCESSOR.plan.config), tokenizer=PROCESSOR.tokenizer, spec=PROCESSOR.spec
    )
    sample = ask("a", "what?", picture())
    assert alone.example(sample).tokens == PROCESSOR.example(sample).tokens
