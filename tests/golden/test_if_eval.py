"""Few-shot evaluation: beams after unequal numbers of pictures, ranked names, nearest examples."""

import pytest
import torch
from cases import compared
from flamingo import batch, ids_of, load, model_case, pictures, recordings, tensors, tower
from test_if_dataset import load_image, pixels_of, stream_of

from retinue.convert.flamingo import state_of
from retinue.eval.shots import name_scores, nearest_shots

SHOTS = recordings("*.json", "class_names")
NEAR = recordings("*.json", "selected")


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
