"""The Inferencer: prompts' ids, generated ids, texts and answers."""

import pytest
import torch
from cases import compared
from flamingo import ids_of, recordings
from test_if_models import same_answers

from retinue.compat.flamingo import Inferencer

CALLS = recordings("*.json", "constructor")


def arguments(case, told):
    """Recorded constructor arguments, paths below the case."""
    paths = ("lm_path", "tuning_config", "clip_vision_encoder_pretrained")
    given = dict(told)
    for name in paths:
        given[name] = str(case / told[name])
    files = told["checkpoint_paths"].split(",")
    given["checkpoint_paths"] = ",".join(str(case / file) for file in files)
    return given


@pytest.mark.parametrize(("case", "name", "facts"), CALLS, ids=ids_of(CALLS))
def test_calls(case, name, facts):
    inferencer = Inferencer(**arguments(case, facts["constructor"]), dtype=torch.float32)
    tokenizer = inferencer.processor.tokenizer
    ends = {tokenizer.eos_id, tokenizer.pad_id}
    for call in facts["calls"]:
        images = [
            [str(case / one) for one in row] if isinstance(row, list) else str(case / row)
            for row in call["images"]
        ]
        results, texts = inferencer(call["prompt"], images, **call["args"])
        assert results == call["results"]
        assert texts == call["generated_texts"]
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        for row, prompt in enumerate(prompts):
            ids = tokenizer.call(prompt)
            recorded = call["prompt_ids"][row]
            assert recorded[len(recorded) - len(ids) :] == ids
            own = images[row] if images and isinstance(images[0], list) else images
            kwargs = {
                "max_new_tokens": call["args"]["max_new_token"],
                **{
                    key: call["args"][key]
                    for key in ("num_beams", "do_sample", "length_penalty", "no_repeat_ngram_size")
                },
            }
            made = inferencer.answer_ids(prompt, own, **kwargs)
            theirs = torch.tensor([ids + call["output_ids"][row][len(recorded) :]])
            same_answers(made[None], theirs, len(ids), ends)
    compared(case)
