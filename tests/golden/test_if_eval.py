"""Few-shot evaluation: beams after unequal numbers of pictures, ranked names, nearest examples."""

import json
import re
from pathlib import Path

import pytest
import torch
from cases import cases, compared
from flamingo import SYSTEM, batch, ids_of, load, model_case, pictures, recordings, tensors, tower
from test_if_dataset import load_image, pixels_of, stream_of

from retinue.cli.fewshot import FewShot
from retinue.convert.flamingo import state_of
from retinue.decode.score import Ranked
from retinue.eval.shots import name_scores, nearest_shots
from retinue.text.template import resolve
from retinue.types import Media, Message, Text

SHOTS = recordings("*.json", "class_names")
NEAR = recordings("*.json", "selected")
BEST = recordings("*.json", "pred")


@pytest.mark.parametrize(("case", "name", "facts"), SHOTS, ids=ids_of(SHOTS))
def test_few_shot(case, name, facts):
    io = tensors(case, name)
    model, processor = load(model_case(case, facts))
    tokenizer = processor.tokenizer
    ids, mask = io["input_ids"], io["attention_mask"].long()
    visual = pictures(io["vision_x"], ids, processor.image_id)
    eoc = tokenizer.id_of("<|endofchunk|>")
    for told in facts["generation"].values():
        kwargs = dict(told["kwargs"])
        fewest, most = kwargs.pop("min_generation_length"), kwargs.pop("max_generation_length")
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=visual.pixels["rgb"],
            do_sample=False,
            min_new_tokens=fewest,
            max_new_tokens=most,
            eos_token_id=eoc,
            pad_token_id=eoc,
            **kwargs,
        )
        texts = [tokenizer.decode(row[ids.shape[1] :].tolist()) for row in out]
        assert texts == told["texts"]
    names = [tokenizer.encode(text) for text in facts["class_names"]]
    whole = mask.all(1)
    for mean in (True, False):
        ours = name_scores(model, batch(ids, mask, visual=visual), names, mean=mean)
        plain = io[f"logprobs.cache_False.normalize_{mean}"]
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
        # with its cache the original attends to the padding of shorter rows
        cached = io[f"logprobs.cache_True.normalize_{mean}"]
        torch.testing.assert_close(ours[whole], cached[whole], atol=1e-4, rtol=0)
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), BEST, ids=ids_of(BEST))
def test_likeliest_names(case, name, facts):
    """The names that classification reports, from the scores that it ranked."""
    shots = [known for place, _, known in SHOTS if place == case]
    io = tensors(case, next(label for place, label, _ in SHOTS if place == case))
    names = tuple(facts["names"])
    assert [known["class_names"] for known in shots] == [list(names)]
    scores = io["logprobs.cache_True.normalize_True"]
    for own, pred, wanted in zip(scores, facts["pred"], facts["logprobs"], strict=True):
        made = Ranked(
            id="",
            number=0,
            text="",
            scores=own.tolist(),
            greedy=[False] * len(names),
            choices=names,
        ).ranking(most=len(pred))
        assert list(made) == pred
        assert list(made.values()) == pytest.approx(wanted, abs=1e-5)
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), NEAR, ids=ids_of(NEAR))
def test_nearest_examples(case, name, facts):
    features = tensors(case, name)["features"]
    (_, _, shots), *_ = SHOTS
    folder = model_case(case, shots)
    model, _ = load(folder)
    stream = stream_of(folder / "vision")
    files = sorted((case / "images").glob("*.png"))
    with torch.no_grad():
        pixels = torch.stack(
            [pixels_of(load_image(str(f), where="test", as_stored=True), stream) for f in files]
        )
        final = model.encoders["clip"](pixels, layers=(1000,))[1000].x_NLD[:, 0]
        made = final @ state_of(tower(folder))["visual.proj"].float()
        made = made / made.norm(dim=-1, keepdim=True)
    known = made[facts["train"]]
    torch.testing.assert_close(known, features, atol=1e-4, rtol=0)
    for query, wanted in zip(facts["query"], facts["selected"], strict=True):
        assert nearest_shots(known, made[query], count=facts["k"]) == wanted
    compared(case)


PROMPTS = cases(SYSTEM, "*", having="prompts.json")
TOP = recordings("*.json", "pred")
DIALECTS = {"vqa": "vqa", "caption": "caption", "imagenet": "names", "hm": "memes"}


def turn(role, text, *, image=False):
    media = (Media(source="a.png"), Text(text="\n")) if image else ()
    return Message(role=role, parts=(*media, Text(text=text)))


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case.name)
def test_prompts(case):
    """Examples and questions as the dialects write them; what is asked is read off the prompt."""
    told = json.loads((case / "prompts.json").read_text("utf-8"))
    for task, dialect in DIALECTS.items():
        template = resolve(f"open_flamingo_{dialect}")
        before, mark, after = template.ask.partition("{}")
        query, demo = told[f"{task}_query"], told[f"{task}_demo"]
        asked = query.removeprefix("<image>").removeprefix(before)
        asked = asked.removesuffix(after) if mark else "Describe it."
        answer = demo.removeprefix(query).removesuffix(template.end)
        pair = [turn("user", asked, image=True), turn("assistant", answer)]
        assert template.text(pair) == demo
        assert template.text(pair[:1], reply=True) == query
        between = "\n" if task in ("vqa", "caption") else ""
        assert template.text([*pair, pair[0]], reply=True) == demo + between + query
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), SHOTS, ids=ids_of(SHOTS))
def test_joined_prompts(case, name, facts):
    """Prompts of several examples, as joined there, from their conversations."""
    template = resolve("open_flamingo_vqa")
    pattern = re.compile(r"(<image>)?Question:(.*?) Short answer:([^<\n]*)")
    for text in facts["texts"]:
        found = pattern.findall(text)
        if not found:
            continue
        messages = []
        for image, asked, answer in found:
            messages.append(turn("user", asked, image=bool(image)))
            messages += [turn("assistant", answer)] if answer else []
        assert template.text(messages, reply=True) == text
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), TOP, ids=ids_of(TOP))
def test_ranked_names(case, name, facts):
    """The likeliest names and their scores, where the original's cache does not see padding."""
    ((_, stem, shots),) = [one for one in SHOTS if one[0] == case]
    io = tensors(case, stem)
    model, processor = load(model_case(case, shots))
    ids, mask = io["input_ids"], io["attention_mask"].long()
    names = facts["names"]
    visual = pictures(io["vision_x"], ids, processor.image_id)
    options = [processor.tokenizer.encode(text) for text in names]
    found = name_scores(model, batch(ids, mask, visual=visual), options).tolist()
    whole = mask.all(1).tolist()
    assert any(whole)
    plain = io["logprobs.cache_False.normalize_True"].tolist()
    for row, scores in enumerate(found):
        order = sorted(range(len(names)), key=lambda n: -scores[n])[: len(facts["pred"][row])]
        wanted = sorted(range(len(names)), key=lambda n: -plain[row][n])[: len(order)]
        assert order == wanted
        if whole[row]:
            assert [names[n] for n in order] == facts["pred"][row]
            best = [scores[n] for n in order]
            assert best == pytest.approx(facts["logprobs"][row], abs=1e-4)
    for shots_asked, effective in facts["effective_shots"].items():
        few = FewShot(
            shots=int(shots_asked),
            source=Path("examples.json"),
            select="random",
            text_shots=2 if shots_asked == "0" else 0,
            seed=0,
        )
        few.check(saved=False)
        assert (few.shots or few.text_shots) == effective
    compared(case)
