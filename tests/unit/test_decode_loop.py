"""How rows end and leave the batch, over a runner whose next id is the last one plus one."""

from types import SimpleNamespace

import pytest
import torch

from retinue.core.errors import RequestError
from retinue.decode.loop import complete, stream
from retinue.decode.sampling import SamplingParams
from retinue.ops.collate import collate
from retinue.types import Cache, Example, Output

V = 64
END = 50


class Counter:
    """Says the last id plus one; checks that cache rows, positions and segments go with it."""

    def __init__(self):
        self.sizes = []

    def new_cache(self):
        return Cache(lm=Rows(), cross={0: (torch.zeros(0),) * 3})

    def run(self, batch, *, cache, keep):
        assert keep == "last"
        last = batch.tokens[:, -1]
        if not self.sizes:
            cache.lm.rows = last.clone()
            cache.segments_BS = batch.segments
            cache.cross = {0: (last[:, None], last[:, None], last)}
        else:
            assert batch.tokens.shape == (len(cache.lm.rows), 1)
            assert torch.equal(batch.positions[:, 0], cache.lm.lengths)
            cache.segments_BS = torch.cat([cache.segments_BS, batch.segments], dim=1)
        cache.lm.lengths = batch.positions.max(dim=1).values + 1
        assert len(cache.segments_BS) == len(cache.lm.rows) == len(cache.cross[0][2])
        self.sizes.append(len(last))
        return Output(logits=torch.nn.functional.one_hot((last + 1) % V, V).float())


class Rows(SimpleNamespace):
    def batch_select_indices(self, places):
        self.rows = self.rows[places]
        self.lengths = self.lengths[places]


class Letters:
    def decode(self, ids, *, skip_special=True):
        return "".join(chr(64 + i) for i in ids)


def prompts(*rows):
    examples = [
        Example(id=f"r{n}", tokens=list(row), labels=[-100] * len(row))
        for n, row in enumerate(rows)
    ]
    return collate(examples, pad_side="left")


def answers(batch, runner=None, **params):
    return complete(
        runner or Counter(),
        batch,
        params=SamplingParams(**params),
        decoder=Letters(),
        eos_ids=[END],
    )


def test_ends_at_an_end_id_which_is_kept_but_not_shown():
    (found,) = answers(prompts([46]))
    assert (found.tokens, found.text, found.finish) == ([47, 48, 49, 50], "opq", "stop")


def test_ignore_eos_runs_to_the_limit():
    (found,) = answers(prompts([46]), max_new_tokens=6, ignore_eos=True)
    assert (found.tokens, found.finish) == ([47, 48, 49, 50, 51, 52], "length")
    assert found.text == "opqrst"


def test_length_limit():
    (found,) = answers(prompts([1]), max_new_tokens=3)
    assert (found.tokens, found.text, found.finish) == ([2, 3, 4], "BCD", "length")


def test_stop_string_over_two_ids_ends_and_is_cut():
    (found,) = answers(prompts([1]), stop=("DE",))
    assert (found.tokens, found.text, found.finish) == ([2, 3, 4, 5], "BC", "stop")


def test_stop_string_complete_with_the_last_allowed_id():
    (found,) = answers(prompts([1]), stop=("D",), max_new_tokens=3)
    assert (found.text, found.finish) == ("BC", "stop")


def test_half_a_stop_string_at_the_limit_is_text():
    (found,) = answers(prompts([1]), stop=("DE",), max_new_tokens=3)
    assert (found.text, found.finish) == ("BCD", "length")


def test_rows_leave_as_they_end():
    runner = Counter()
    batch = prompts([3, 4, 47], [20], [1, 45], [48])
    found = answers(batch, runner, max_new_tokens=8)
    assert [len(answer.tokens) for answer in found] == [3, 8, 5, 2]
    assert [answer.finish for answer in found] == ["stop", "length", "stop", "stop"]
    assert [answer.tokens[0] for answer in found] == [48, 21, 46, 49]
    assert [answer.id for answer in found] == ["r0", "r1", "r2", "r3"]
    assert [answer.number for answer in found] == [0, 1, 2, 3]
    assert runner.sizes == [4, 4, 3, 2, 2, 1, 1, 1]


def test_params_per_row_and_deltas_in_step_order():
    params = [SamplingParams(max_new_tokens=1), SamplingParams(max_new_tokens=2)]
    deltas = list(
        stream(Counter(), prompts([1], [7]), params=params, decoder=Letters(), eos_ids=[END])
    )
    seen = [(delta.row, delta.token, delta.text, delta.finish) for delta in deltas]
    assert seen == [(0, 2, "B", "length"), (1, 8, "H", None), (1, 9, "I", "length")]


def test_params_of_another_number_are_refused():
    params = [SamplingParams()] * 3
    with pytest.raises(RequestError, match="3 sampling params for 2 rows"):
        next(stream(Counter(), prompts([1], [2]), params=params, decoder=Letters(), eos_ids=[]))
