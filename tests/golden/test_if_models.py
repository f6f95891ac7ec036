"""Whole Flamingo models: vision, resampler, logits, losses, generation, cached steps."""

import json

import pytest
import torch
from cases import compared
from flamingo import (
    TOLERANCE,
    batch,
    ids_of,
    load,
    load_version,
    model_case,
    pictures,
    recordings,
    tensors,
    tower,
)

from retinue.convert.flamingo import plain_name, state_of
from retinue.types import Cache

LOGITS = 4e-5  # the recording's own tolerance is 2e-5 for blocks; sums of another order double it
BUFFERS = ("inv_freq", "masked_bias", "attention.bias")
"""Computed from the config; old files carry them."""
FORWARD = recordings("forward.json", "T_img")
FIRST = recordings("*.json", "state_dict_vision_prefix")
GENERATE = [found for found in recordings("*.json", "runs") if "uses_checkpoint" in found[2]]


def close(ours, theirs, name, tolerance=LOGITS):
    torch.testing.assert_close(
        ours, theirs, atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}"
    )


def check_rows(model, io, prefix, image_id):
    """Logits, their log-sums and the loss of one padding side, at real positions."""
    ids, mask = io[f"{prefix}input_ids"], io[f"{prefix}attention_mask"]
    visual = pictures(io["vision_x"], ids, image_id)
    real = mask > 0
    with torch.no_grad():
        logits = model.run(batch(ids, mask, visual=visual)).logits
        loss = model.run(batch(ids, mask, visual=visual, labels=io[f"{prefix}labels"]))
    close(logits.logsumexp(-1)[real], io[f"{prefix}logsumexp"][real], "logsumexp")
    if f"{prefix}logits_stride4" in io:
        close(logits[..., ::4][real], io[f"{prefix}logits_stride4"][real], "logits")
    if f"{prefix}logits_last" in io:
        close(logits[:, -1], io[f"{prefix}logits_last"], "last logits")
    mean = (loss.loss_sum / loss.num_supervised).reshape(1)
    close(mean, io[f"{prefix}loss"], "loss", 1e-5)


@pytest.mark.parametrize(("case", "name", "facts"), FORWARD, ids=ids_of(FORWARD))
def test_forward(case, name, facts):
    io = tensors(case, name)
    model, processor = load(case)
    tokenizer = processor.tokenizer
    assert tokenizer.vocab_size == facts["len_tokenizer"]
    assert tokenizer.id_of("<|endofchunk|>") == facts["eoc_token_id"]
    assert tokenizer.id_of("<image>") == processor.image_id == facts["media_token_id"]
    assert tokenizer.pad_id == facts["pad_token_id"]
    assert tokenizer.eos_id == facts["eos_token_id"]
    assert tokenizer.bos_id == facts["bos_token_id"]
    for row, text in enumerate(facts["texts"]):
        real = io["right.attention_mask"][row] > 0
        assert tokenizer.call(text) == io["right.input_ids"][row][real].tolist()
    pixels = io["vision_x"].flatten(0, 2)
    with torch.no_grad():
        found = model.encoders["clip"](pixels, layers=(-1, 1000))
        close(found[-1].x_NLD[:, 1:], io["vision_tokens"], "vision tokens", 1e-4)
        proj = state_of(tower(case))["visual.proj"].float()
        close(found[1000].x_NLD[:, 0] @ proj, io["vision_pooled"], "pooled", 1e-4)
        latents = model.connector.encode({("clip", -1): found[-1]}).x_NLD
    close(latents.view_as(io["perceiver_out"]), io["perceiver_out"], "perceiver", 1e-4)
    for prefix in ("right.", "left."):
        check_rows(model, io, prefix, processor.image_id)
    check_pictures(case, facts, processor, io)
    compared(case)


def check_pictures(case, facts, processor, io):
    """The recorded pixels come out of the recorded picture files, zeros where a row has fewer."""
    stream = processor.spec.streams["rgb"]
    from retinue.media.image import load_image
    from retinue.ops.pixels import normalize

    for row, names in enumerate(facts["images"]):
        for number, name in enumerate(names):
            picture = load_image(str(case / name), where="test", as_stored=True)
            views, _ = processor.spec.views.views(picture, stream)
            ours = normalize(views, mean=stream.mean, std=stream.std, dtype=torch.float32)
            close(ours, io["vision_x"][row, number], name, 1e-5)


@pytest.mark.parametrize(("case", "name", "facts"), FORWARD, ids=ids_of(FORWARD))
def test_names(case, name, facts):
    """Every path of the original's whole state, the doubled ones too, means one of our tensors."""
    from retinue.convert.flamingo import LAYERS, flamingo_keys

    model, _ = load(case)
    ours = model.state_dict()
    kind = model.config.text_config.model_type
    keys = flamingo_keys(kind)
    whole = json.loads((case / "full_state_dict_keys.json").read_text("utf-8"))
    saved = json.loads((case / "flamingo_keys.json").read_text("utf-8"))
    seen = set()
    for key in whole:
        plain = plain_name(key, layers=LAYERS[kind])
        if plain.startswith("vision_encoder.") or plain.endswith(BUFFERS):
            continue
        found = keys.to_retinue(plain)
        assert found in ours, key
        seen.add(found)
    parts = ("lm.", "connector.")
    assert seen == {name for name in ours if name.startswith(parts)}
    for key, (shape, _) in saved.items():
        if key.endswith(BUFFERS):
            continue
        assert list(ours[keys.to_retinue(key)].shape) == shape, key
    trainable = json.loads((case / "trainable_after_factory.json").read_text("utf-8"))
    assert all(keys.to_retinue(key) in ours for key in trainable)
    compared(case)


@pytest.mark.parametrize(("case", "name", "facts"), FIRST, ids=ids_of(FIRST))
def test_first_version(case, name, facts):
    io = tensors(case, name)
    folder = model_case(case, facts)
    model, processor = load_version(folder, 1)
    io["vision_x"] = tensors(folder, "forward")["vision_x"]
    assert processor.tokenizer.vocab_size == facts["len_tokenizer"]
    check_rows(model, io, "", processor.image_id)
    ids, mask = io["gen.input_ids"], io["gen.attention_mask"]
    out = generate(model, io["vision_x"], ids, mask, processor, facts["generate"])
    same_answers(out, io["gen.output_ids"], ids.shape[1], {facts["eos"], facts["pad_token_id"]})
    compared(case)


def generate(model, vision_x, ids, mask, processor, kwargs):
    visual = pictures(vision_x, ids, processor.image_id)
    eos = kwargs.get("eos_token_id", processor.tokenizer.id_of("<|endofchunk|>"))
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=visual.pixels["rgb"],
        do_sample=False,
        pad_token_id=eos,
        **{**kwargs, "eos_token_id": eos},
    )


def same_answers(ours, theirs, prompt, ends):
    """Equal ids; where a row has ended, any filling is the same."""
    for own, recorded in zip(ours.tolist(), theirs.tolist(), strict=True):
        own, recorded = own[prompt:], recorded[prompt:]
        while recorded and recorded[-1] in ends:
            recorded.pop()
        while own and own[-1] in ends:
            own.pop()
        assert own == recorded


@pytest.mark.parametrize(("case", "name", "facts"), GENERATE, ids=ids_of(GENERATE))
def test_generate(case, name, facts):
    io = tensors(case, name)
    folder = model_case(case, facts)
    model, processor = load(folder)
    vision_x = tensors(folder, "forward")["vision_x"]
    ids, mask = io["input_ids"], io["attention_mask"]
    for run, told in facts["runs"].items():
        out = generate(model, vision_x, ids, mask, processor, told["kwargs"])
        eos = told["kwargs"].get("eos_token_id", processor.tokenizer.id_of("<|endofchunk|>"))
        same_answers(out, io[f"{run}.output_ids"], ids.shape[1], {eos, processor.tokenizer.pad_id})
    check_cache(model, io, pictures(vision_x, ids, processor.image_id), ids, mask)
    compared(case)


@torch.no_grad()
def check_cache(model, io, visual, ids, mask):
    """Cached steps, the same without a cache, and words that only the media are cached for."""
    cache = model.new_cache()
    prompt = batch(ids, mask, visual=visual)
    close(
        model.run(prompt, cache=cache, keep="last").logits[:, ::4],
        io["cache.prefill_logits_last_stride4"],
        "prefill",
    )
    media = dict(cache.cross)
    steps = io["cache.step_tokens"]
    grown, seen = ids, mask
    for step in range(steps.shape[1]):
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        whole = batch(torch.cat([grown, steps[:, : step + 1]], 1), seen)
        one = batch(steps[:, step : step + 1], torch.ones_like(steps[:, :1]))
        one = one.__class__(
            ids=one.ids,
            tokens=one.tokens,
            segments=one.segments,
            positions=whole.positions[:, -1:],
        )
        logits = model.run(one, cache=cache).logits[:, 0, ::4]
        close(logits, io["cache.step_logits_stride4"][:, step], f"step {step}")
    full = io["nocache.full_ids"]
    assert full.tolist() == torch.cat([ids, steps], 1).tolist()
    logits = model.run(batch(full, seen, visual=respaced(visual, full))).logits
    tail = io["nocache.full_logits_tail_stride4"]
    close(logits[:, -tail.shape[1] :, ::4], tail, "without cache")
    words = io["cache.no_image_chunk_tokens"]
    alone = batch(words, torch.ones_like(words))
    held = Cache(lm=model.new_cache().lm, cross=media)
    close(
        model.run(alone, cache=held).logits[..., ::4],
        io["cache.no_image_chunk_logits_stride4"],
        "words after cached media",
    )


def respaced(visual, ids):
    """The same pictures in rows of another width."""
    index = visual.spans[:, 0] * ids.shape[1] + visual.spans[:, 1]
    return visual.__class__(
        pixels=visual.pixels,
        grids=visual.grids,
        budgets=visual.budgets,
        spans=visual.spans,
        index=index,
    )


assert TOLERANCE <= LOGITS
