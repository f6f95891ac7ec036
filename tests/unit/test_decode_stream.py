"""Text as it comes: whole characters only, stop strings wherever the ids cut them."""

import pytest

from retinue.decode.stream import Detokenizer
from retinue.text.train import train_bpe


class Bytes:
    """A decoder of which every id is a byte; 256 is a special token."""

    def decode(self, ids, *, skip_special=True):
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class Words:
    """Sentencepiece's habit: pieces carry their blank in front, the first of a text loses it."""

    pieces = (" the", " answer", " is", "STOP", " ST", "OP", " red", "\n", "##", "#")

    def decode(self, ids, *, skip_special=True):
        return "".join(self.pieces[i] for i in ids).removeprefix(" ")


def feed(detokenizer, ids):
    shown = []
    for i in ids:
        shown.append(detokenizer.push(i))
        if detokenizer.stopped:
            break
    return shown


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語", "🙂🙃", "a\u0301b", ""])
def test_no_broken_character_is_shown(text):
    found = Detokenizer(Bytes())
    shown = feed(found, text.encode())
    assert all("\ufffd" not in piece for piece in shown)
    assert "".join(shown) + found.finish() == text


def test_a_character_waits_for_its_last_byte():
    found = Detokenizer(Bytes())
    assert feed(found, "é🙂".encode()) == ["", "é", "", "", "", "🙂"]


def test_bytes_that_never_become_a_character_come_at_the_end():
    found = Detokenizer(Bytes())
    assert feed(found, b"ok\xf0\x9f") == ["o", "k", "", ""]
    assert found.finish() == "\ufffd"


def test_wrong_bytes_in_between_do_not_hold_back_what_follows():
    found = Detokenizer(Bytes())
    shown = feed(found, b"a\xffbc")
    assert "".join(shown) == "a\ufffdbc"


def test_special_tokens_leave_no_text():
    found = Detokenizer(Bytes())
    assert feed(found, [*b"hi", 256, *b"!"]) == ["h", "i", "", "!"]


def test_blanks_between_pieces_are_kept_over_the_window():
    found = Detokenizer(Words())
    assert feed(found, [0, 1, 2, 6]) == ["the", " answer", " is", " red"]


@pytest.mark.parametrize("ids", [[0, 3, 6], [0, 4, 5, 6]])
def test_a_stop_string_is_found_in_one_piece_or_over_several(ids):
    found = Detokenizer(Words(), stop=["STOP"])
    shown = "".join(feed(found, ids))
    assert found.stopped
    assert found.ids == ids[:-1]
    assert (shown + found.finish()).strip() == "the"


def test_the_beginning_of_a_stop_string_is_held_back_and_released():
    found = Detokenizer(Bytes(), stop=["\n###"])
    assert feed(found, b"a\n##b") == ["a", "", "", "", "\n##b"]
    assert not found.stopped
    found = Detokenizer(Bytes(), stop=["\n###"])
    assert feed(found, b"a\n##") == ["a", "", "", ""]
    assert found.finish() == "\n##"


def test_overlapping_beginnings():
    found = Detokenizer(Bytes(), stop=["aab"])
    assert "".join(feed(found, b"aaab!")) == "a"
    assert found.stopped


def test_the_first_of_several_stop_strings_cuts():
    found = Detokenizer(Words(), stop=["red", "is"])
    assert "".join(feed(found, [0, 1, 2, 6])) == "the answer "
    assert found.stopped


def test_a_stop_string_in_bytes_of_a_real_vocabulary():
    tokenizer = train_bpe(["a cat sat. ### Human: hello"] * 3, vocab_size=300)
    ids = tokenizer.encode("naïve cat 🙂 ### Human: more")
    found = Detokenizer(tokenizer, stop=["### Human:"])
    assert "".join(feed(found, ids)) == "naïve cat 🙂 "
    assert found.stopped
