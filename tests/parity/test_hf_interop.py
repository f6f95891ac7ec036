"""transformers' and PEFT's own tools on one of our folders, as their users call them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    Trainer,
    TrainingArguments,
)

import retinue
from retinue.core.errors import RequestError
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.build import cast
from retinue.processor import Processor
from tiny import ask, picture, tiny_model

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}
TILES = {"kind": "anyres", "pinpoints": [[32, 64], [64, 32], [64, 64]]}
TEXTS = ["USER: <image>\nwhat colour? ASSISTANT:", "USER: <image> or <image>? ASSISTANT:"]
PICTURES = [[picture(1)], [picture(2), picture(3, width=80)]]


@pytest.fixture(scope="module", params=[False, True], ids=["beyond", "in vocabulary"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved folder whose placeholder is no word, and one whose placeholder is."""
    place = tmp_path_factory.mktemp("saved") / "model"
    model, processor = tiny_model(image_in_vocab=request.param, views=TILES)
    return save(model, processor, place)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture
def inputs(processor: Any) -> Any:
    return processor(text=TEXTS, images=PICTURES, return_tensors="pt")


# ------------------------------------------------------------------ loading and calling


def test_auto_classes_give_ours(folder: Path, model: Any, processor: Any) -> None:
    assert type(model) is retinue.Retinue
    assert type(processor) is Processor
    assert AutoConfig.from_pretrained(folder).model_type == "retinue"
    assert not model.training
    ours, _ = load(folder)
    assert ours.state_dict().keys() == model.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_forward_equals_our_own_path(model: Any, processor: Any, inputs: Any) -> None:
    logits = model(**inputs).logits
    examples = [
        processor.prompt_example(str(row), text, pictures)
        for row, (text, pictures) in enumerate(zip(TEXTS, PICTURES, strict=True))
    ]
    batch = processor.collate(examples, pad_side="left")
    assert torch.equal(batch.tokens, inputs["input_ids"])
    own = model.run(batch).logits
    real = batch.segments > 0
    torch.testing.assert_close(logits[real], own[real], **CLOSE)


def test_chat_template_is_the_call_with_its_text(processor: Any) -> None:
    content = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "what colour?"}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == TEXTS[0]
    ways = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    called = processor(text=text, images=picture(1))
    assert ways.keys() == called.keys()
    for key in ways:
        assert torch.equal(ways[key], called[key]), key


@pytest.mark.parametrize("count", [None, 7])
def test_loss_is_the_cross_entropy_of_shifted_labels(
    model: Any, inputs: Any, count: int | None
) -> None:
    labels = inputs["input_ids"].clone()
    labels[(labels == model.plan.spec.image_token_id) | (inputs["attention_mask"] == 0)] = -100
    found = model(**inputs, labels=labels, num_items_in_batch=count)
    flat, targets = found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    wanted = F.cross_entropy(flat, targets)
    if count is not None:  # what Trainer gives where it accumulates
        wanted = F.cross_entropy(flat, targets, reduction="sum") / count
    torch.testing.assert_close(found.loss, wanted, **CLOSE)


def test_positions_and_embeddings_may_be_given(model: Any, processor: Any) -> None:
    inputs = processor(text="USER: how many? ASSISTANT:")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    wanted = model(**inputs).logits
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, wanted, **CLOSE)
    places = torch.arange(embeds.shape[1])[None]
    given = model(**inputs, position_ids=places).logits
    torch.testing.assert_close(given, wanted, **CLOSE)
    last = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(last, wanted[:, -1:], **CLOSE)


def test_wrong_number_of_placeholders_is_said(model: Any, inputs: Any) -> None:
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:1]}
    fewer["image_grids"] = inputs["image_grids"][:1]
    with pytest.raises(RequestError, match="placeholders for 1 pictures"):
        model(**fewer)
    with pytest.raises(RequestError, match="no pixel_values"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


# ------------------------------------------------------------------ generate


def one(processor: Any, row: int) -> Any:
    return processor(text=TEXTS[row], images=PICTURES[row])


def new_ids(model: Any, inputs: Any, **options: Any) -> list[list[int]]:
    out = model.generate(**inputs, max_new_tokens=6, **options)
    return [row.tolist() for row in out[:, inputs["input_ids"].shape[1] :]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1, "repetition_penalty": 1.3},
        {"num_beams": 3},
        {"num_beams": 2, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_batch_generates_as_its_rows_alone(
    model: Any, processor: Any, inputs: Any, options: dict[str, Any]
) -> None:
    """Also with two pictures in a row and one in the other, copied for every beam."""
    together = new_ids(model, inputs, do_sample=False, **options)
    for row, ids in enumerate(together):
        assert new_ids(model, one(processor, row), do_sample=False, **options) == [ids]


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}],
    ids=str,
)
def test_generate_is_our_own_loop(model: Any, processor: Any, options: dict[str, Any]) -> None:
    batch = processor.batch([ask("a", "what colour?", picture(1))], pad_side="left")
    (done,) = complete(
        model,
        batch,
        params=SamplingParams(max_new_tokens=6, **options),
        decoder=processor,
        eos_ids=processor.tokenizer.eos_ids,
    )
    (ids,) = new_ids(model, one(processor, 0), do_sample=False, **options)
    assert done.tokens == ids[: len(done.tokens)]
    assert len(done.tokens) == 6 or ids[len(done.tokens) - 1] in processor.tokenizer.eos_ids


def test_sampling_obeys_the_seed(model: Any, inputs: Any) -> None:
    def draw(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return new_ids(model, inputs, do_sample=True, top_k=9, num_return_sequences=2)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert len(draw(0)) == 4


def test_words_of_the_prompt_are_penalised_and_placeholders_are_not_words(
    model: Any, processor: Any
) -> None:
    seen: list[torch.Tensor] = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(input_ids)
            return scores

    inputs = one(processor, 0)
    rows = model.get_input_embeddings().num_embeddings
    new_ids(model, inputs, do_sample=False, logits_processor=LogitsProcessorList([Look()]))
    assert torch.equal(seen[0], inputs["input_ids"])  # a caller's own processor sees ids as is
    heavy = model.generate(
        **inputs,
        max_new_tokens=1,
        do_sample=False,
        repetition_penalty=3.0,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    scores, logits = heavy.scores[0][0], heavy.logits[0][0]
    assert scores.shape == (rows,)
    words = [i for i in set(inputs["input_ids"][0].tolist()) if 0 <= i < rows]
    changed = (scores != logits).nonzero().flatten().tolist()
    assert sorted(changed) == sorted(words)


def test_texts_of_generated_rows(model: Any, processor: Any, inputs: Any) -> None:
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    texts = processor.batch_decode(out)
    assert "what colour? ASSISTANT:" in texts[0]
    assert not any("<image>" in text for text in texts)


def test_static_cache_is_refused_with_the_way_out(model: Any, inputs: Any) -> None:
    with pytest.raises(RequestError, match="dynamic cache is the default"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation="static")


# ------------------------------------------------------------------ PEFT, saving, settings


@pytest.mark.parametrize(
    ("targets", "where"),
    [
        (r"lm\..*\.(q_proj|v_proj)", "lm.model.layers"),
        ("all-linear", ""),
        (["q_proj", "gate_proj"], "lm.model.layers"),
        (r"connector\..*net\.[02]", "connector"),
    ],
    ids=str,
)
def test_peft_adapts_trains_and_comes_back(
    model: Any, inputs: Any, tmp_path: Path, targets: Any, where: str
) -> None:
    base = copy.deepcopy(model)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    names = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name and where in name for name in names)
    assert not any("lm_head" in name for name in names)
    torch.testing.assert_close(adapted(**inputs).logits, model(**inputs).logits, **CLOSE)
    labels = inputs["input_ids"].clamp_max(5)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):  # A learns once B is no longer zero
        adapted(**inputs, labels=labels).loss.backward()
        optimizer.step()
    adapted.eval()
    logits = adapted(**inputs).logits
    assert float((logits - model(**inputs).logits).detach().abs().max()) > 1e-4
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    torch.testing.assert_close(again(**inputs).logits, logits, **CLOSE)
    assert new_ids(again, inputs, do_sample=False)


def test_save_pretrained_and_back(model: Any, processor: Any, inputs: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    words = AutoProcessor.from_pretrained(tmp_path)
    assert words.fingerprint() == processor.fingerprint()
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    ours, mine = load(tmp_path)
    assert torch.equal(ours(**inputs).logits, model(**inputs).logits)
    assert mine.fingerprint() == processor.fingerprint()


def test_half_precision(folder: Path, model: Any, inputs: Any) -> None:
    half = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    wanted = cast(copy.deepcopy(model), torch.bfloat16)
    assert torch.equal(half(**inputs).logits, wanted(**inputs).logits)
    assert half(**inputs).logits.dtype == torch.bfloat16


def gradients(model: Any, inputs: Any) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model.train()
    model(**inputs, labels=inputs["input_ids"].clamp_max(5)).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(model: Any, inputs: Any) -> None:
    net = copy.deepcopy(model)
    plain = gradients(net, inputs)
    net.activation_checkpointing_enable()
    runs = []
    net.lm.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    again = gradients(net, inputs)
    assert len(runs) == 2  # once forward, once in the backward
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad, **CLOSE, msg=name)


def test_more_rows_of_vocabulary(model: Any, inputs: Any) -> None:
    net = copy.deepcopy(model)
    rows = net.get_input_embeddings().num_embeddings
    net.resize_token_embeddings(rows + 7, mean_resizing=False)
    assert net.config.text_config.vocab_size == rows + 7
    assert net.get_output_embeddings().out_features == rows + 7
    torch.testing.assert_close(net(**inputs).logits[..., :rows], model(**inputs).logits, **CLOSE)


@pytest.mark.parametrize("tie", [True, False])
def test_tied_and_untied_embeddings(tie: bool, tmp_path: Path) -> None:
    made, words = tiny_model(tie_word_embeddings=tie)
    table, head = made.get_input_embeddings().weight, made.get_output_embeddings().weight
    assert (table is head) == tie
    save(made, words, tmp_path / "ours")
    made.save_pretrained(tmp_path / "theirs")
    inputs = words(text=TEXTS, images=PICTURES)
    wanted = made(**inputs).logits
    for name in ("ours", "theirs"):
        net: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        table, head = net.get_input_embeddings().weight, net.get_output_embeddings().weight
        assert (table is head) == tie
        assert torch.equal(net(**inputs).logits, wanted)
        expected = {"lm.lm_head.weight": "lm.model.embed_tokens.weight"} if tie else {}
        assert net.all_tied_weights_keys == expected
    net.resize_token_embeddings(table.shape[0] + 3, mean_resizing=False)
    assert (net.get_input_embeddings().weight is net.get_output_embeddings().weight) == tie


def test_plans_of_the_language_model_stand_under_its_prefix(model: Any) -> None:
    plan = model.tp_plan
    assert plan["lm.model.layers.*.self_attn.q_proj"] == "colwise"
    assert plan["lm.model.layers.*.mlp.down_proj"] == "rowwise"
    assert plan["lm.lm_head"].startswith("colwise")
    assert model.supports_tp_plan
    names = [name for name, _ in model.named_modules()]
    for pattern in plan:
        own = pattern.replace("*", "0")
        assert own in names, pattern
    assert model._no_split_modules == {"LlamaDecoderLayer"}


def test_trainer_steps_and_its_checkpoint_loads(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    """Two accumulated micro-batches are one batch of both: Trainer hands over the target count."""
    net: Any = AutoModelForImageTextToText.from_pretrained(folder)
    rows = []
    for text, pictures in zip(TEXTS, PICTURES, strict=True):
        row = dict(processor(text=text, images=[pictures]))
        labels = row["input_ids"].clone()
        labels[(labels == net.plan.spec.image_token_id) | (labels < 3)] = -100
        rows.append({**row, "labels": labels})
    rows[1]["labels"][:, -2:] = -100  # rows of different weight

    def collate(picked: list[dict[str, Any]]) -> dict[str, Any]:
        (row,) = picked
        return row

    trainer = Trainer(
        net,
        TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    trainer.train()
    own: Any = AutoModelForImageTextToText.from_pretrained(folder)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    count = sum(int((row["labels"][:, 1:] != -100).sum()) for row in rows)
    for row in rows:
        own(**row, num_items_in_batch=count).loss.backward()
    optimizer.step()
    for (name, one), other in zip(net.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(one, other, **CLOSE, msg=name)
    saved: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-1")
    for (name, one), other in zip(net.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(one, other), name
