"""--to vllm: what transformers loads from the folder answers as ours, through its chat template."""

import json

import pytest
import torch

import tiny_hf
from retinue.core.errors import CheckpointError
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.text.jinja import TRIALS, as_jinja, listed, rendered
from retinue.text.template import resolve
from tiny import ask, tiny_model


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_the_folder_answers_as_our_model(kind, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    tiny_hf.save(kind, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", to="retinue", template="vicuna_v1")
    report = convert(tmp_path / "ours", tmp_path / "out", to="vllm")
    assert any("vllm serve" in note for note in report.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    front = AutoProcessor.from_pretrained(tmp_path / "out")
    model, processor = load(tmp_path / "ours")
    picture = tiny_hf.noise(40, 70)
    sample = ask("a", "what colour?", picture)
    wanted = complete(
        model,
        processor([sample], pad_side="left"),
        params=SamplingParams(max_new_tokens=12, ignore_eos=True),
        decoder=processor,
        eos_ids=[],
    )[0]
    turns = listed([("user", ["<image>", "what colour?"])])
    text = front.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = front(text=text, images=[picture], return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"][0].tolist()[:4] == processor([sample]).tokens[0].tolist()[:4]
    with torch.inference_mode():
        out = theirs.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
    found = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert found == wanted.tokens
    assert theirs.generation_config.eos_token_id == processor.tokenizer.eos_ids


@pytest.mark.parametrize(
    "name",
    ["vicuna_v1", "llava_v0", "chatml_direct", "mistral_instruct", "llava_llama_2", "mpt", "moss2"],
)
def test_chat_templates_write_the_dialect(name):
    template = resolve(name)
    source = as_jinja(template, bos="<s>")
    assert source is not None
    asked = rendered(source, [{"role": "user", "content": "what?"}], ask=True)
    assert asked == rendered(source, listed(TRIALS[0]), ask=True)
    assert asked.startswith("<s>")
    front = template.model_copy(update={"placement": "front"})
    source = as_jinja(front)
    assert source is not None
    turns = listed([("user", ["what?", "<image>"])])
    assert "<image>\nwhat?" in rendered(source, turns, ask=True)


def test_a_dialect_that_has_no_chat_template_is_said(tmp_path):
    assert as_jinja(resolve("plain")) is None
    tiny_hf.save("llava", tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "out", to="vllm", template="plain")
    assert any("'plain' cannot be written as a chat template" in note for note in report.notes)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_stop_texts_are_said(tmp_path):
    tiny_hf.save("llava", tmp_path / "theirs")
    report = convert(tmp_path / "theirs", tmp_path / "out", to="vllm", template="llava_v0")
    assert any("'###', which is no token" in note for note in report.notes)


def test_what_the_engines_do_not_know_is_refused(tmp_path):
    save(*tiny_model(seed=1), tmp_path / "patches")
    with pytest.raises(CheckpointError, match=r"a tower 'retinue_patches'.*retinue serve"):
        convert(tmp_path / "patches", tmp_path / "out", to="vllm")
    assert not (tmp_path / "out").exists()
