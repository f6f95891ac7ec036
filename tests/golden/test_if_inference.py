"""The Inferencer: prompts' ids, generated ids, texts and answers; predictions over data sets."""

import json

import pytest
import torch
from cases import cases, compared
from flamingo import SYSTEM, ids_of, recordings
from test_if_models import same_answers

from retinue.compat.flamingo import Inferencer
from retinue.compat.flamingo_chat import demo_prompt
from retinue.eval.instruct import predict, read_config, results_folder, summary, with_folder
from retinue.text.template import resolve

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


PREDICTED = cases(SYSTEM, "*", having="dataset_inference_command.json")
SUMMARIES = cases(SYSTEM, "*", having="summary_example.md")


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("case", PREDICTED, ids=lambda case: case.name)
def test_predictions_over_data_sets(case, tmp_path):
    """The original's command: its folder, its files, its summary; stopped half-way, the same."""
    words = read(case / "dataset_inference_command.json")
    told = dict(zip(words[::2], words[1::2], strict=True))
    inferencer = Inferencer(
        **arguments(
            case,
            {
                "checkpoint_paths": told["--checkpoint_paths"],
                "lm_path": told["--lm_path"],
                "tuning_config": told["--tuning_config"],
                "clip_vision_encoder_path": told["--vision_encoder_path"],
                "clip_vision_encoder_pretrained": told["--vision_encoder_pretrained"],
                "cross_attn_every_n_layers": int(told["--cross_attn_every_n_layers"]),
            },
        ),
        dtype=torch.float32,
    )
    name = told["--instruction_prompt_templete"].replace("-", "_")
    template = resolve({"name": name, "end": ""})
    assert told["--num_samples"] == "-1"
    records = read_config(case / told["--instruction_path"])

    def prompt(record):
        return template.text([record.asked], reply=True)

    def answers(some):
        for record in some:
            results, _ = inferencer(
                prompt(record),
                [str(path) for path in record.pictures],
                max_new_token=int(told["--max_new_token"]),
                num_beams=int(told["--num_beams"]),
                do_sample=bool(told["--do_sample"]),
                no_repeat_ngram_size=int(told["--no_repeat_ngram_size"]),
            )
            yield results[0]

    folder = results_folder(
        tmp_path / told["--results_dir"],
        checkpoints=told["--checkpoint_paths"],
        data=told["--instruction_path"],
        number=int(told["--num_samples"]),
    )
    wanted = case / told["--results_dir"] / folder.relative_to(tmp_path / told["--results_dir"])

    def stopped(some):
        for number, text in enumerate(answers(some)):
            if number == 2:
                raise KeyboardInterrupt
            yield text

    with pytest.raises(KeyboardInterrupt):
        predict(records, stopped, folder, prompt=prompt)
    asked = []

    def rest(some):
        asked.extend(some)
        return answers(some)

    predict(records, rest, folder, prompt=prompt)
    assert len(asked) == len(records) - 2
    for file in sorted(wanted.iterdir()):
        made = (folder / file.name).read_text("utf-8")
        assert made == file.read_text("utf-8"), file.name
    compared(case)


@pytest.mark.parametrize("case", SUMMARIES, ids=lambda case: case.name)
def test_summary_and_paths(case):
    results = read(case / "summary_example.input.json")
    assert summary(results) == (case / "summary_example.md").read_text("utf-8")
    for told in read(case / "add_image_dir.json"):
        assert with_folder(told["text"], told["img_dir"]) == told["out"]
    compared(case)


PROMPTS = cases(SYSTEM, "*", having="gradio_prompts.json")


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case.name)
def test_prompts_of_the_web_demo(case):
    for told in read(case / "gradio_prompts.json"):
        prompt, images = demo_prompt(told["history"], **told["kwargs"])
        assert (prompt, images) == (told["prompt"], told["images"])
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), CALLS, ids=ids_of(CALLS))
def test_rows_with_different_numbers_of_pictures(case, name, facts):
    """Two, none and one, which the original cannot stack: each answers as by itself."""
    inferencer = Inferencer(**arguments(case, facts["constructor"]), dtype=torch.float32)
    files = [str(path) for path in sorted((case / "images").glob("*.png"))[:2]]
    rows = [files, [], files[1:]]
    prompts = [
        "### Human: <image>Compare <image>\n### Assistant: ",
        "### Human: Say hello.\n### Assistant: ",
        "### Human: What is this?<image>\n### Assistant: ",
    ]
    for args in ({"do_sample": False, "num_beams": 1}, {"do_sample": False, "num_beams": 2}):
        together, texts = inferencer(prompts, rows, max_new_token=5, **args)
        alone = [
            inferencer(p, own, max_new_token=5, **args)
            for p, own in zip(prompts, rows, strict=True)
        ]
        assert together == [results[0] for results, _ in alone]
        assert texts == [whole[0] for _, whole in alone]
        assert len(set(together)) > 1
