"""Many prompts: order, progress, rows that cannot be used."""

import pytest

from retinue.core.errors import MediaError, RequestError
from retinue.decode.offline import WINDOW, generate
from retinue.decode.sampling import SamplingParams
from tiny import ask, picture, tiny_model

PARAMS = SamplingParams(max_new_tokens=2)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(seed=3, max_position_embeddings=60)


class Watched:
    """Passes calls on to a model and notes the shapes of the prompts."""

    def __init__(self, model):
        self.model, self.prompts = model, []

    def new_cache(self):
        return self.model.new_cache()

    def run(self, batch, *, cache, keep):
        if batch.tokens.shape[1] > 1:
            self.prompts.append(batch)
        return self.model.run(batch, cache=cache, keep=keep)


def test_batches_hold_prompts_of_similar_length_and_output_keeps_the_order(loaded):
    model, processor = loaded
    many = [ask(str(n), "a" * (1 + 7 * n % 20)) for n in range(16)]
    watched = Watched(model)
    found = list(generate(watched, processor, many, params=PARAMS, batch_size=4))
    assert [answer.id for answer in found] == [str(n) for n in range(16)]
    padding = sum(int((batch.segments == 0).sum()) for batch in watched.prompts)
    lengths = [len(processor.example(sample).tokens) for sample in many]
    groups = [lengths[n : n + 4] for n in range(0, 16, 4)]
    unsorted = sum(max(group) * 4 - sum(group) for group in groups)
    assert [len(batch.tokens) for batch in watched.prompts] == [4] * 4
    assert padding < unsorted / 2


def test_input_is_read_a_window_at_a_time_and_progress_reaches_its_end(loaded):
    read, steps = [], []

    def samples():
        for n in range(20):
            read.append(n)
            yield ask(str(n), "hi")

    answers = generate(*loaded, samples(), params=PARAMS, batch_size=2, progress=steps.append)
    next(answers)
    assert len(read) == 2 * WINDOW
    assert len(list(answers)) == 19
    assert steps == sorted(steps)
    assert steps[-1] == 20


def test_rows_that_cannot_be_used(loaded, tmp_path):
    cut = tmp_path / "cut.png"
    picture(1).save(tmp_path / "whole.png")
    cut.write_bytes((tmp_path / "whole.png").read_bytes()[:60])  # its header is whole
    rows = [
        ask("a", "hi"),
        ask("missing", "hi", tmp_path / "none.png"),
        ask("b", "hi", tmp_path / "whole.png"),
        ask("cut", "hi", cut),
        ask("long", "word " * 90),
        ask("c", "hi"),
    ]
    seen = []
    found = list(
        generate(
            *loaded,
            rows,
            params=PARAMS,
            batch_size=2,
            skipped=lambda number, sample, error: seen.append((number, sample.id, error)),
        )
    )
    assert [(answer.number, answer.id) for answer in found] == [(0, "a"), (2, "b"), (5, "c")]
    assert sorted((number, id) for number, id, _ in seen) == [
        (1, "missing"),
        (3, "cut"),
        (4, "long"),
    ]
    kinds = {id: type(error) for _, id, error in seen}
    assert kinds == {"missing": MediaError, "cut": MediaError, "long": RequestError}
    for bad, kind in ((1, MediaError), (3, MediaError), (4, RequestError)):
        with pytest.raises(kind, match=rows[bad].id):
            list(generate(*loaded, [rows[bad]], params=PARAMS))


def test_a_batch_of_which_nothing_is_left(loaded, tmp_path):
    rows = [ask(str(n), "hi", tmp_path / "none.png") for n in range(3)]
    seen = []
    found = list(generate(*loaded, rows, skipped=lambda *what: seen.append(what)))
    assert (found, len(seen)) == ([], 3)
