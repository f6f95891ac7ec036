"""`MetaModel`: the original's wrapper of tokenizer and language model.

Legend: B rows, T text tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from retinue.compat.sphinx.rows import Rows, first_batch
from retinue.compat.sphinx.tokenizer import SphinxTokenizer
from retinue.core.errors import RequestError
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.types import Item, Media

MAX_BATCH = 32


class MetaModel:
    """Generation, scores and logits with the original's keywords and rules.

    max_seq_len: of a row, pictures included. `model` and `processor` are ours. Two things differ:
    a prompt too long for its row is cut behind bos, and images are PIL pictures or `Item`s.
    """

    def __init__(self, model: Retinue, processor: Processor, *, max_seq_len: int) -> None:
        self.model, self.processor = model, processor
        self.tokenizer = SphinxTokenizer(processor.tokenizer)
        self.max_seq_len = max_seq_len

    # ------------------------------------------------------------------ answers

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Image | Item] | None = None,
        max_gen_len: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.95,
        additional_stop_symbols: Sequence[str] = (),
    ) -> list[str]:
        """One answer per prompt, cut before eos or a stop symbol that appears as tokens.

        Raises RequestError for more than 32 prompts, or no room for a prompt.
        """
        if len(prompts) > MAX_BATCH:
            raise RequestError(f"{len(prompts)} prompts", rule=f"at most {MAX_BATCH} at once")
        sequences = []
        for symbol in additional_stop_symbols:
            sequences.append(self.tokenizer.encode_segment(symbol))
            sequences.append(self.tokenizer.encode_wo_prefix_space(symbol))
        rows = self._rows(prompts, images, max_gen_len, temperature, top_p)
        rows.sequences = sequences
        for _ in rows.run():
            pass
        return [self.tokenizer.decode(ids) for ids in rows.answers()]

    def stream_generate(
        self,
        prompt: str,
        image: Image | Item | None = None,
        max_gen_len: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.95,
        additional_stop_symbols: Sequence[str] = (),
    ) -> Iterator[dict[str, Any]]:
        """{"text": all so far, "end_of_content": bool} after every token.

        Unlike `generate` it stops where the text shows a stop symbol, however it is tokenized.
        """
        rows = self._rows(
            [prompt], None if image is None else [image], max_gen_len, temperature, top_p
        )
        text = ""
        for _ in rows.run():
            text = self.tokenizer.decode(rows.answers()[0])
            if rows.ends[0] is not None:
                break
            places = [at for s in additional_stop_symbols if (at := text.find(s)) >= 0]
            if places:
                text = text[: min(places)]
                break
            yield {"text": text, "end_of_content": False}
        yield {"text": text, "end_of_content": True}

    def _rows(
        self,
        prompts: Sequence[str],
        images: Sequence[Image | Item] | None,
        max_gen_len: int,
        temperature: float,
        top_p: float,
    ) -> Rows:
        items = self.items(images)
        room = self.max_seq_len - (items[0].num_tokens if items else 0)
        if room - max_gen_len < 2:
            raise RequestError(
                f"{room} tokens of text, {max_gen_len} of them for the answer",
                rule=f"max_seq_len is {self.max_seq_len}, pictures take part of it",
                fix="raise max_seq_len, or lower max_gen_len",
            )
        ids = [self.tokenizer.encode(prompt, bos=True, eos=False) for prompt in prompts]
        keep = room - max_gen_len
        ids = [row if len(row) <= keep else [row[0], *row[len(row) - keep + 1 :]] for row in ids]
        return Rows(
            model=self.model,
            processor=self.processor,
            prompts=ids,
            items=items,
            limit=min(room, max_gen_len + max(map(len, ids))),
            temperature=temperature,
            top_p=top_p,
            eos=self.tokenizer.eos_id,
        )

    def items(self, images: Sequence[Image | Item] | None) -> list[Item]:
        """Pictures as the model reads them."""
        return [
            one if isinstance(one, Item) else self.processor.item(Media(source=one), where="image")
            for one in images or ()
        ]

    # ------------------------------------------------------------------ scores

    @torch.inference_mode()
    def forward_text(self, tokens_BT: Tensor, items: Sequence[Item] = ()) -> Tensor:
        """(B, T, V) scores at the text's positions; behind a picture, its last token is the first.

        The picture stands after bos, so row t of the scores says what follows text token t, but
        row 0 what follows the picture.
        """
        batch = first_batch(self.processor, tokens_BT.tolist(), items)
        scores = self.model.run(batch.to(self.device)).logits
        assert scores is not None
        return scores[:, scores.shape[1] - tokens_BT.shape[1] :].float()

    def compute_logits(
        self,
        examples: Sequence[str | list[int]],
        images: Sequence[Image | Item] | None = None,
        bos: bool = True,
        eos: bool = False,
    ) -> list[Tensor]:
        """(T, V) fp32 scores of each example, text or ids."""
        rows = [e if isinstance(e, list) else self.tokenizer.encode(e, bos, eos) for e in examples]
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        scores = self.forward_text(padded, self.items(images))
        return [scores[place, : len(row)] for place, row in enumerate(rows)]

    def evaluate_examples(
        self,
        examples: Sequence[str],
        contexts: Sequence[str] | None = None,
        images: Sequence[Image | Item] | None = None,
    ) -> dict[str, list[Any]]:
        """log_likelihood, ppl (the mean, not its exponential), max_equal, non_context_logits.

        contexts: how each example begins, not scored. Raises RequestError where it does not.
        """
        rows = [self.tokenizer.encode(example, True, False) for example in examples]
        starts = [1] * len(rows)
        if contexts is not None:
            given = [self.tokenizer.encode(context, True, False) for context in contexts]
            for row, context in zip(rows, given, strict=True):
                if row[: len(context)] != context:
                    raise RequestError("an example does not begin with its context")
            starts = [len(context) for context in given]
        found: dict[str, list[Any]] = {
            name: [] for name in ("log_likelihood", "ppl", "max_equal", "non_context_logits")
        }
        for row, start, scores in zip(rows, starts, self.compute_logits(rows, images), strict=True):
            kept_TV = scores[start - 1 : -1]
            targets = torch.tensor(row[start:], device=kept_TV.device)
            losses = nn.functional.cross_entropy(kept_TV, targets, reduction="none")
            losses = losses[targets != 0]
            found["log_likelihood"].append(-float(losses.sum()))
            found["ppl"].append(float(losses.mean()))
            found["max_equal"].append(bool((kept_TV.argmax(-1) == targets).all()))
            found["non_context_logits"].append(kept_TV)
        return found

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return next(self.model.lm.parameters()).device
