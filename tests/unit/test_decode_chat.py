"""A conversation keeps its history and pictures; prompts get their stops, ends and room."""

import io
import json

import pytest

from retinue.core.errors import ConfigError, MediaError, RequestError
from retinue.data.formats import open_format
from retinue.decode.chat import Chat
from retinue.decode.loop import complete
from retinue.decode.prompt import (
    end_ids,
    user_message,
    with_stops,
    with_template,
    within_room,
)
from retinue.decode.sampling import SamplingParams
from retinue.types import Media, Message, Sample, Text
from tiny import ask, picture, tiny_model

PARAMS = SamplingParams(max_new_tokens=8)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(seed=3)


def direct(loaded, messages):
    model, processor = loaded
    batch = processor([Sample(id="x", messages=tuple(messages))], pad_side="left")
    ends = end_ids(processor)
    return complete(model, batch, params=PARAMS, decoder=processor, eos_ids=ends)[0].text


def said(role, text):
    return Message(role=role, parts=(Text(text=text),))


def test_turns_are_answered_with_all_that_came_before(loaded):
    talk = Chat(*loaded, params=PARAMS, system="be brief")
    pictures = [picture(1), picture(2)]
    first = "".join(talk.ask("what differs?", images=pictures))
    second = "".join(talk.ask("why?"))
    history = [said("system", "be brief"), user_message("what differs?", pictures)]
    assert first.strip() == direct(loaded, history)
    history += [said("assistant", first.strip()), user_message("why?")]
    assert second.strip() == direct(loaded, history)
    assert [message.role for message in talk.messages] == ["user", "assistant"] * 2
    talk.reset()
    assert talk.messages == []
    assert "".join(talk.ask("what differs?", images=pictures)) == first


def test_pieces_come_before_the_answer_is_complete(loaded):
    pieces = list(Chat(*loaded, params=PARAMS).ask("what?", images=[picture(1)]))
    assert len(pieces) > 1
    assert not pieces[0][0].isspace()


def test_an_answer_left_early_is_kept_as_far_as_it_was_said(loaded):
    talk = Chat(*loaded, params=PARAMS)
    answer = talk.ask("what?", images=[picture(1)])
    begun = next(answer)
    answer.close()
    assert [message.text.strip() for message in talk.messages] == ["what?", begun.strip()]


def test_a_broken_picture_leaves_the_history_alone(loaded, tmp_path):
    talk = Chat(*loaded, params=PARAMS)
    with pytest.raises(MediaError, match=r"none\.png"):
        next(talk.ask("what?", images=[tmp_path / "none.png"]))
    assert talk.messages == []


def test_budget_travels_with_every_picture(loaded):
    talk = Chat(*loaded, params=PARAMS, budget=4)
    question = user_message("x", [picture(1)], budget=talk.budget)
    assert [media.budget for media in question.media] == [4]


def test_a_saved_conversation_reads_back_as_a_training_row(loaded, tmp_path, draw):
    file = tmp_path / "a.png"
    draw(20, 20).save(file)
    buffer = io.BytesIO()
    draw(9, 9).save(buffer, "PNG")
    talk = Chat(*loaded, params=PARAMS, system="be brief")
    list(talk.ask("both?", images=[str(file), buffer.getvalue(), picture(4)]))
    (tmp_path / "talk.jsonl").write_text(json.dumps(talk.row()) + "\n", "utf-8")
    data = open_format(tmp_path / "talk.jsonl", empty_answers=True)
    assert [m.role for m in data[0].messages] == ["system", "user", "assistant"]
    assert data[0].messages[1].text == talk.messages[0].text
    _, processor = loaded
    items = [processor.item(media, where="x") for media in data[0].media]
    originals = [processor.item(media, where="x") for media in talk.messages[0].media]
    for read, original in zip(items, originals, strict=True):
        assert read.pixels["rgb"].equal(original.pixels["rgb"])


def test_pictures_stand_on_lines_before_the_text():
    message = user_message("why?", ["a.png", "https://host/b.png"])
    kinds = [part.text if isinstance(part, Text) else part.source for part in message.parts]
    assert kinds == ["a.png", "\n", "https://host/b.png", "\nwhy?"]
    assert user_message("\nwhy?", ["a.png"]).text == "\nwhy?"
    assert [type(part) for part in user_message("x", [b"raw"]).parts] == [Media, Text]


def test_template_override_and_its_stop_strings(loaded):
    _, processor = loaded
    assert with_template(processor, None) is processor
    other = with_template(processor, "llava_v0")
    prompt = other.template.text([user_message("hi")], reply=True)
    assert prompt.endswith("###Assistant:")
    assert prompt != processor.template.text([user_message("hi")], reply=True)
    assert with_stops(SamplingParams(stop=("x",)), other).stop == ("x", "###")
    # </s> is the end id of the vocabulary, which leaves no text to look for.
    assert with_stops(SamplingParams(), processor).stop == ()
    assert end_ids(processor) == processor.tokenizer.eos_ids
    with pytest.raises(ConfigError, match="llava_v0"):
        with_template(processor, "llava_v00")


def test_special_stop_marks_become_end_ids(loaded):
    _, processor = loaded
    tokenizer = processor.tokenizer.with_tokens(["<|im_end|>"])
    chatml = with_template(processor, "mpt")
    chatml.tokenizer = tokenizer
    mark = tokenizer.id_of("<|im_end|>")
    assert mark in end_ids(chatml)
    assert all("im_end" not in text for text in with_stops(SamplingParams(), chatml).stop)


def test_answers_stay_within_the_positions_of_the_language_model():
    model, processor = tiny_model(seed=3, max_position_embeddings=40)
    example = processor.example(ask("a", "what?"))
    room = 40 - len(example.tokens)
    assert within_room(SamplingParams(), processor, example).max_new_tokens == room
    assert within_room(PARAMS, processor, example).max_new_tokens == 8
    with pytest.raises(RequestError, match="40 positions"):
        next(Chat(model, processor).ask("what " * 40))


def test_rows_of_both_formats_and_a_chat_make_the_same_prompt(loaded, tmp_path):
    """A list of parts has the line breaks that LLaVA's rows write out."""
    for name in "ab":
        picture(1).save(tmp_path / f"{name}.png")
    said = [{"from": "human", "value": "<image>\n<image>\nwhy?"}, {"from": "gpt", "value": "so"}]
    llava = [{"id": "x", "image": ["a.png", "b.png"], "conversations": said}]
    parts = [{"type": "image", "image": f"{name}.png"} for name in "ab"]
    question = {"role": "user", "content": [*parts, {"type": "text", "text": "why?"}]}
    chat = {"id": "x", "messages": [question, {"role": "assistant", "content": "so"}]}
    (tmp_path / "llava.json").write_text(json.dumps(llava), "utf-8")
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat), "utf-8")
    _, processor = loaded
    rows = [open_format(tmp_path / name)[0] for name in ("llava.json", "chat.jsonl")]
    prompts = [processor.template.text(row.messages[:1], reply=True) for row in rows]
    sources = [str(tmp_path / f"{name}.png") for name in "ab"]
    prompts.append(processor.template.text([user_message("why?", sources)], reply=True))
    hf = [{**question, "content": [*parts, {"type": "text", "text": "why?"}]}]
    prompts.append(processor.apply_chat_template(hf, add_generation_prompt=True))
    assert prompts == [prompts[0]] * 4
    assert "<image>\n<image>\nwhy?" in prompts[0]
