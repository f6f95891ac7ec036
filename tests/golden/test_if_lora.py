"""Tuning configs, trainers' checkpoints over released ones, what each config trains."""

import json

import pytest
import torch
from cases import compared
from flamingo import SYSTEM, batch, cases, ids_of, load, pictures, recordings, tensors
from pydantic import TypeAdapter
from test_if_models import FORWARD, close, generate, same_answers

from retinue.convert.flamingo import LAYERS, flamingo_keys, plain_name, state_of
from retinue.convert.tuning import trainable_rules
from retinue.core.errors import CheckpointError
from retinue.model.freeze import Rule, apply_rules

TUNED = recordings("*.tuning_config.json", "lora_r")
RELEASED = recordings("*.on_*.json", "trainable")
FOLDED = 1e-4  # the recording adds factors at every step; folded into weights they round elsewhere
RULES = TypeAdapter(dict[str, Rule])


def base_case(checkpoint, width):
    """The model case whose language model has the checkpoint's names, and rows of this width."""
    names = [plain_name(key, layers="?") for key in state_of(checkpoint)]
    for case, name, _ in FORWARD:
        keys = json.loads((case / "flamingo_keys.json").read_text("utf-8"))
        roots = {key.partition(".layers.")[0].partition(".blocks.")[0] for key in keys}
        own = {key.partition(".layers.")[0].partition(".blocks.")[0] for key in names}
        shaped = tensors(case, name)["left.input_ids"].shape[1] == width
        if shaped and any(root in own for root in roots if root.startswith("lang_encoder.")):
            return case
    raise AssertionError(f"no model case for {checkpoint}")


def ours(name, kind):
    """Our name of a recorded parameter; an adapter's keeps its halves."""
    head, mark, half = name.partition(".lora_")
    plain = plain_name(head if not mark else f"{head}.weight", layers=LAYERS[kind])
    found = flamingo_keys(kind).to_retinue(plain)
    return found.removesuffix(".weight") + mark + half if mark else found


def check_trained(model, tuning, names):
    """Exactly the recorded parameters train under the rules of a tuning config."""
    kind = model.config.text_config.model_type
    own = [name for name, _ in model.named_parameters()]
    rules = RULES.validate_python(trainable_rules(tuning, own))
    table = apply_rules(model, rules, lr=1e-4)
    assert set(table.names) == {ours(name, kind) for name in names}
    return kind


@pytest.mark.parametrize(("case", "name", "tuning"), TUNED, ids=ids_of(TUNED))
def test_tuned(case, name, tuning):
    stem = name.removesuffix(".tuning_config")
    io = tensors(case, f"{stem}.outputs")
    checkpoint = next(case.glob(f"{stem}.checkpoint_*.pt"))
    folder = base_case(checkpoint, io["logsumexp"].shape[1])
    model, processor = load(folder, checkpoint, case / f"{name}.json")
    rows = tensors(folder, "forward")
    ids, mask = rows["right.input_ids"], rows["right.attention_mask"]
    visual = pictures(rows["vision_x"], ids, processor.image_id)
    real = mask > 0
    with torch.no_grad():
        logits = model.run(batch(ids, mask, visual=visual)).logits
        loss = model.run(batch(ids, mask, visual=visual, labels=rows["right.labels"]))
    close(logits.logsumexp(-1)[real], io["logsumexp"][real], "logsumexp", FOLDED)
    last = io["logits_last12_stride4"]
    tail = real[:, -last.shape[1] :]
    close(logits[:, -last.shape[1] :, ::4][tail], last[tail], "logits", FOLDED)
    close((loss.loss_sum / loss.num_supervised).reshape(1), io["loss"], "loss", 1e-5)
    made = io["generated_ids"]
    ids, mask = rows["left.input_ids"], rows["left.attention_mask"]
    new = {"max_new_tokens": made.shape[1] - ids.shape[1], "no_repeat_ngram_size": 3}
    if tuning["lora"]:  # PEFT's wrapper keeps from the model that images are cached: words see none
        model.fusion.spec = model.fusion.spec.model_copy(update={"decoding": "lost"})
    out = generate(model, rows["vision_x"], ids, mask, processor, new)
    ends = {processor.tokenizer.id_of("<|endofchunk|>"), processor.tokenizer.pad_id}
    same_answers(out, made, ids.shape[1], ends)
    facts = json.loads((case / f"{stem}.names.json").read_text("utf-8"))
    kind = check_trained(model, tuning, facts["trainable"])
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters()} - {""}
    assert adapted == {
        ours(f"{n}.weight", kind).removesuffix(".weight") for n in facts["lora_modules"]
    }
    check_saved(model, facts["saved"], kind, state_of(checkpoint))
    compared(case)


def check_saved(model, saved, kind, state):
    """Names and shapes that the trainer kept are those of our parameters."""
    own = dict(model.named_parameters())
    own |= model.state_dict()
    for key, shape in saved.items():
        assert list(own[ours(key, kind)].shape) == shape, key
        assert list(state[key].shape) == shape


@pytest.mark.parametrize(("case", "name", "facts"), RELEASED, ids=ids_of(RELEASED))
def test_released_config(case, name, facts):
    base = name.rpartition(".on_")[2]
    (folder,) = cases(SYSTEM, base)
    model, _ = load(folder)
    kind = check_trained(model, facts["config"], facts["trainable"])
    own = dict(model.named_parameters())
    for key, shape in facts["trainable"].items():
        assert list(own[ours(key, kind)].shape) == shape, key
    compared(case)


@pytest.mark.parametrize(("case", "name", "tuning"), TUNED[:1], ids=ids_of(TUNED[:1]))
def test_factors_need_their_scale(case, name, tuning):
    stem = name.removesuffix(".tuning_config")
    checkpoint = next(case.glob(f"{stem}.checkpoint_*.pt"))
    io = tensors(case, f"{stem}.outputs")
    with pytest.raises(CheckpointError, match="tuning config"):
        load(base_case(checkpoint, io["logsumexp"].shape[1]), checkpoint)
    compared(case)
