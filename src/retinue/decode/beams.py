"""Beam search for batches: answers as `decode.rendered.search` finds them, as Completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from retinue.core.errors import RequestError
from retinue.decode.loop import Completion
from retinue.decode.prompt import device_of, end_ids
from retinue.decode.rendered import search
from retinue.decode.sampling import SamplingParams
from retinue.decode.stream import Detokenizer
from retinue.processor import Processor
from retinue.types import Example

if TYPE_CHECKING:
    from retinue.model.retinue import Retinue


def check_beams(params: SamplingParams, *, auto: bool = False) -> None:
    """Raise RequestError for what beams cannot be asked together with."""
    if params.num_beams > 1 and auto:
        raise RequestError(
            f"{params.num_beams} beams with an automatic budget",
            rule="it looks at how sure the model is of one answer, id by id",
            fix="name a budget, or leave the beams out",
        )


def searched(
    model: Any, processor: Processor, examples: Sequence[Example], params: Sequence[SamplingParams]
) -> list[Completion]:
    """The best answer of each example; rows of equal parameters are searched together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, own in enumerate(params):
        drawn = own.seed if own.temperature > 0 else 0  # a drawn answer has a stream of its own
        groups.setdefault((own.max_new_tokens, drawn), []).append(row)
    found: dict[int, Completion] = {}
    for rows in groups.values():
        batch = processor.collate([examples[row] for row in rows], pad_side="left")
        own = params[rows[0]]
        ids = search(cast("Retinue", model), processor, batch.to(device_of(model)), params=own)
        for row, tokens in zip(rows, ids, strict=True):
            found[row] = completion(processor, examples[row].id, tokens, own)
    return [found[row] for row in range(len(examples))]


def completion(
    processor: Processor, id: str, tokens: Sequence[int], params: SamplingParams
) -> Completion:
    """Ids as an answer, cut at its stop strings."""
    text = Detokenizer(processor, stop=params.stop)
    ends = set() if params.ignore_eos else set(end_ids(processor))
    done = Completion(id=id)
    for token in tokens:
        done.tokens.append(token)
        if token in ends:
            done.finish = "stop"
            break
        done.text += text.push(token)
        if text.stopped:
            done.finish = "stop"
            break
    done.text = (done.text + ("" if text.stopped else text.finish())).strip()
    return done
