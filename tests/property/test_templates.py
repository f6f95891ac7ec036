"""What holds for every dialect and every conversation: prompts, answers, masks, places."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.text.labels import encode, tokenize
from retinue.text.template import Template, dump, resolve
from retinue.text.templates import TEMPLATES
from retinue.text.tokenizer import Tokenizer
from retinue.text.train import train_bpe
from retinue.types import IGNORE, Media, Message, Text

MARKS = ["<|im_start|>", "<|im_end|>", "<image>"]
SPECIAL = ["<s>", "</s>", *MARKS]
JINJA = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SINGLE = ("plain", "v0_plain", "accessory_single")
"""Dialects of one turn."""
RUN_ON = ("document", "web")
"""Dialects without a mark between turns: a token may belong to the end of one and to the next."""
ABUTTING = ("open_flamingo",)
"""Dialects without a mark between a question and its answer: the two may share a token."""
NAMES = [name for name in TEMPLATES if name not in SINGLE]


@cache
def vocabulary() -> Tokenizer:
    lines = ["USER: what is it? ASSISTANT: the cat and the dog\n### Human: [INST] hi [/INST]"] * 3
    return train_bpe(lines, vocab_size=330, specials=MARKS)


def dialect(name: str) -> Template:
    return resolve({"name": "hf", "jinja": JINJA}) if name == "hf" else resolve(name)


# No blanks at the ends: a line break of the template and one of the answer may share a token.
words = st.text(alphabet="ab cé你\n#:.</", min_size=1, max_size=8).map(str.strip).filter(bool)
loose = st.one_of(words, st.sampled_from(SPECIAL))
asked = st.lists(
    st.one_of(loose.map(lambda t: Text(text=t)), st.just(Media(source=b""))), min_size=1
)


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    turns = draw(st.integers(1, 3))
    found = []
    for _ in range(turns):
        parts = draw(asked)
        # A turn that begins with its own text keeps every dialect's first question non-empty.
        found.append(Message(role="user", parts=(Text(text=draw(words)), *parts)))
        found.append(Message(role="assistant", parts=(Text(text=draw(words)),)))
    return found


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(chat=chats())
def test_a_trained_answer_is_what_follows_the_prompt(name: str, chat: list[Message]) -> None:
    template = dialect(name)
    prompt = template.text(chat[:-1], reply=True)
    whole = template.text(chat)
    assert whole.startswith(prompt)
    segments = template.render(chat)
    last = len(segments) - next(
        (i for i, s in enumerate(reversed(segments)) if s.train), len(segments)
    )
    first = max(i for i in range(last + 1) if i == 0 or not segments[i - 1].train)
    answer = "".join(s.text for s in segments[first:last])
    assert whole[len(prompt) :].startswith(answer)
    assert whole[len(prompt) + len(answer) :].strip() == ""
    assert answer.strip().startswith(chat[-1].text)
    assert answer.strip() != chat[-1].text or not template.stop


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(chat=chats())
def test_targets_are_the_answers_with_their_end_marks(name: str, chat: list[Message]) -> None:
    tokenizer = vocabulary()
    if name in RUN_ON:  # only what is learnt, of which no part belongs to somebody else
        chat = [message for message in chat if message.role == "assistant"]
    if name in ABUTTING:  # questions end with a sign that no token of several holds
        chat = [
            message
            if message.role == "assistant"
            else replace(message, parts=(*message.parts, Text(text="你")))
            for message in chat
        ]
    segments = dialect(name).render(chat)
    done = tokenize(segments, tokenizer)
    targets = [label for label in done.labels if label != IGNORE]
    answers = "".join(segment.text for segment in segments if segment.train)
    assert tokenizer.decode(targets, skip_special=False) == answers
    assert all(label in (IGNORE, id) for label, id in zip(done.labels, done.tokens, strict=True))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(chat=chats())
def test_users_cannot_write_special_tokens(name: str, chat: list[Message]) -> None:
    tokenizer = vocabulary()
    template = dialect(name)
    done = encode(template.render(chat), tokenizer)
    tame = [
        Message(
            role=m.role,
            parts=tuple(
                Text(text="x") if isinstance(p, Text) and p.text in SPECIAL else p for p in m.parts
            ),
        )
        for m in chat
    ]
    clean = encode(template.render(tame), tokenizer)

    def specials(ids: list[int]) -> list[int]:
        return [id for id in ids if id in tokenizer.special_ids]

    assert specials(done.tokens) == specials(clean.tokens)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(chat=chats())
def test_media_stay_where_they_stand(name: str, chat: list[Message]) -> None:
    tokenizer = vocabulary()
    done = encode(dialect(name).render(chat), tokenizer)
    assert [medium for _, medium in done.places] == list(range(sum(len(m.media) for m in chat)))
    at = [i for i, id in enumerate(done.tokens) if id == tokenizer.image_id]
    assert at == [place for place, _ in done.places]


@pytest.mark.parametrize("name", NAMES)
def test_names_round_trip(name: str) -> None:
    template = dialect(name).with_system("Be brief.")
    assert resolve(dump(template)) == template


@settings(max_examples=60, deadline=None)
@given(text=st.one_of(st.text(max_size=20), st.lists(loose).map("".join)), live=st.booleans())
def test_encoding_round_trips_and_covers(text: str, live: bool) -> None:
    tokenizer = vocabulary()
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    ids, spans = tokenizer.encode_with_offsets(text, specials=live)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))
    assert live or not set(ids) & tokenizer.special_ids
