"""LLaVA-MOSS2 through our path: pictures, features, logits, losses, greedy ids, a chat.

Tolerances as the case states: pixels 1e-6; features, embeddings, logits 2e-5; losses 1e-5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from torch import Tensor

from retinue.convert.detect import detect
from retinue.decode.chat import Chat
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load, load_with_report
from retinue.model.retinue import Retinue
from retinue.ops.collate import collate
from retinue.ops.pixels import normalize
from retinue.processor import Processor, ProcessorSpec
from retinue.text.template import resolve
from retinue.types import IGNORE, Example, Item, Media, Message, Text

pytestmark = pytest.mark.golden

CASES = cases("llava-moss2", "*infer*", having="outputs.json")
IMAGE = -200
CLOSE = {"atol": 2e-5, "rtol": 0.0}
ROLES = ("user", "assistant")


def folder(case: Path) -> Path:
    """The model of the case: the folder whose config is LLaVA-MOSS2's."""
    (found,) = [f.parent for f in case.glob("*/config.json") if "moss2" in f.read_text()]
    return found


def opened(case: Path, **options: Any) -> tuple[Retinue, Processor]:
    return load(folder(case), dtype=torch.float32, **options)


def read(case: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    outputs = json.loads((case / "outputs.json").read_text("utf-8"))
    return outputs, load_file(case / "outputs.safetensors")


def pictures(case: Path) -> list[Media]:
    return [Media(source=str(path)) for path in sorted(case.glob("image*.png"))]


def items(case: Path, processor: Processor) -> list[Item]:
    return [processor.item(medium, where=str(medium.source)) for medium in pictures(case)]


def example(
    processor: Processor, ids: Sequence[int], used: Sequence[Item], labels: Sequence[int]
) -> Example:
    places = [(at, n) for n, at in enumerate(i for i, id in enumerate(ids) if id == IMAGE)]
    return processor.expand("golden", ids, labels, places, used)


def embeds(model: Retinue, batch: Any) -> Tensor:
    found: Tensor = model.fusion(
        model.lm.embed(batch.tokens), model.look(batch.visual), batch
    ).embeds_BTD
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_pictures(case: Path) -> None:
    model, processor = opened(case)
    _, tensors = read(case)
    shape = model.plan.shapes["clip"]
    for key, views in (("default", None), ("pad", {"kind": "pad"})):
        if views is not None:
            spec = ProcessorSpec.parse(processor.spec.model_dump() | {"views": views})
            processor = Processor(model.plan, tokenizer=processor.tokenizer, spec=spec)
        visual = collate(
            [example(processor, [IMAGE], [one], [IGNORE]) for one in items(case, processor)]
        ).visual
        assert visual is not None
        pixels = normalize(
            visual.pixels["rgb"], mean=shape.mean, std=shape.std, dtype=torch.float32
        )
        torch.testing.assert_close(pixels, tensors[f"pixel_values_{key}"], atol=1e-6, rtol=0)
        if views is None:
            features = model.encode(visual)
            (seen,) = features.values()
            torch.testing.assert_close(
                seen.x_NLD, tensors["tower_hidden_select_layer_with_cls"], **CLOSE
            )
            taken = tensors["tower_features"]  # with or without the class token
            torch.testing.assert_close(seen.x_NLD[:, -taken.shape[1] :], taken, **CLOSE)
            found = model.connector.encode(features).x_NLD
            torch.testing.assert_close(found, tensors["projected"], **CLOSE)
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_chats(case: Path) -> None:
    """Prompts, embeddings, logits, losses of every chat, each on a model that saw the others."""
    model, processor = opened(case)
    outputs, tensors = read(case)
    shown = items(case, processor)
    template = resolve("llava_llama_2")
    assert processor.tokenizer.vocab_size == outputs["len_tokenizer"]
    for i, chat in enumerate(outputs["chats"]):
        said = [
            Message(role=ROLES[role], parts=tuple(_parts(text)))
            for role, text in chat["turns"]
            if text is not None
        ]
        assert template.text(said, reply=True) == chat["prompt"]
        made = processor.prompt_example(
            "p", chat["prompt"], [str(pictures(case)[chat["image"]].source)]
        )
        unexpanded = [id for id in made.tokens if id != processor.image_id]
        assert unexpanded == [id for id in chat["input_ids"] if id != IMAGE]
        assert tensors[f"chat{i}_input_ids"][0].tolist() == chat["input_ids"]
        labels = tensors[f"chat{i}_labels"][0].tolist()
        whole = example(processor, chat["input_ids"], [shown[chat["image"]]], labels)
        batch = collate([whole], train=True)
        assert batch.tokens.shape[1] == chat["n_spliced"]
        spliced = [IGNORE if id == processor.image_id else id for id in whole.tokens]
        assert spliced == tensors[f"chat{i}_spliced_labels"][0].tolist()
        torch.testing.assert_close(embeds(model, batch), tensors[f"chat{i}_inputs_embeds"], **CLOSE)
        assert loss_of(model, batch, outputs) == pytest.approx(
            tensors[f"chat{i}_loss"].item(), abs=1e-5
        )
        logits = allowed(model.run(collate([whole])).logits, outputs)
        last = tensors[f"chat{i}_logits_last24"]
        torch.testing.assert_close(logits[:, -last.shape[1] :], last, **CLOSE)
        if f"chat{i}_argmax" in tensors:
            assert torch.equal(logits.argmax(-1), tensors[f"chat{i}_argmax"])
        torch.testing.assert_close(logits.logsumexp(-1), tensors[f"chat{i}_logsumexp"], **CLOSE)


def _parts(text: str) -> list[Media | Text]:
    head, mark, tail = text.partition("<image>")
    return [
        *([Text(text=head)] if head else []),
        *([Media(source=b"")] if mark else []),
        Text(text=tail),
    ]


def loss_of(model: Retinue, batch: Any, outputs: dict[str, Any]) -> float:
    """Mean loss over the rows that the original kept; the model's own where these are all."""
    out = model.run(batch)
    assert out.loss_sum is not None
    own = float(out.loss_sum / out.num_supervised)
    scores = allowed(model.lm.logits(model.run(batch, keep="none").hidden), outputs).flatten(0, 1)
    found = torch.nn.functional.cross_entropy(scores, batch.labels.flatten()).item()
    if model.config.get_text_config().vocab_size == outputs["len_tokenizer"]:
        assert own == pytest.approx(found, abs=1e-5)
    return found


def allowed(logits: Tensor | None, outputs: dict[str, Any]) -> Tensor:
    """The original cuts its tables to the tokenizer; ours stay, more ids are only never drawn."""
    assert logits is not None
    return logits[..., : outputs["len_tokenizer"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_greedy_ids(case: Path) -> None:
    """An answer depends on the request alone; with the sticky rope, on what came before it."""
    outputs, _ = read(case)
    for rope in ("sequence", "sticky"):
        model, processor = opened(case, rope=rope)
        again, _ = opened(case, rope=rope)
        shown = items(case, processor)
        for chat in outputs["chats"]:
            used = [shown[chat["image"]]]
            ids = chat["input_ids"]
            batch = collate([example(processor, ids, used, [IGNORE] * len(ids))])
            steps = len(chat["generated_ids"]) - 1
            asked = {
                "params": SamplingParams(max_new_tokens=steps),
                "eos_ids": processor.tokenizer.eos_ids,
            }
            fresh, _ = opened(case, rope=rope) if rope == "sticky" else (again, None)
            first = complete(fresh, batch, decoder=processor, **asked)[0].tokens
            # transformers 4.37 returns bos in front of what follows embeddings
            assert first == chat["generated_ids"][1:]
            second = complete(fresh, batch, decoder=processor, **asked)[0].tokens
            key = "generated_ids_second_call_same_model" if rope == "sticky" else "generated_ids"
            assert second == chat[key][1:]
            text = processor.tokenizer.decode(first)
            assert text.strip() == chat["generated_text_skip_special"].strip()
        del model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_batches(case: Path) -> None:
    model, processor = opened(case)
    outputs, tensors = read(case)
    shown = items(case, processor)
    keep = tensors["batch_attention_mask_in"]
    rows = []
    for row, ids in enumerate(tensors["batch_input_ids"]):
        held = ids[keep[row]].tolist()
        used = [shown[0]] if IMAGE in held else []
        rows.append(
            example(processor, held, used, tensors["batch_labels_in"][row][keep[row]].tolist())
        )
    for side in ("right", "left"):
        batch = collate(rows, train=True, pad_side=side)
        mask = tensors[f"batch_{side}_attention_mask"]
        assert torch.equal(batch.segments > 0, mask)
        found = embeds(model, batch).sum(-1)
        wanted = tensors[f"batch_{side}_inputs_embeds_sum_per_pos"]
        torch.testing.assert_close(found[mask], wanted[mask], atol=1e-4, rtol=0)
        assert loss_of(model, batch, outputs) == pytest.approx(
            tensors[f"batch_{side}_loss"].item(), abs=1e-5
        )
        hidden = model.run(batch, keep="none").hidden
        logits = allowed(model.lm.logits(hidden), outputs)
        wanted = tensors[f"batch_{side}_logsumexp"]
        torch.testing.assert_close(logits.logsumexp(-1)[mask], wanted[mask], **CLOSE)
        wanted = tensors[f"batch_{side}_argmax"]
        assert torch.equal(logits.argmax(-1)[mask], wanted[mask])
    # cut after the pictures were put in, as the original does
    limit = outputs["trunc_max_length"]
    batch = collate(rows, train=True)
    mask = tensors["trunc_attention_mask"]
    assert torch.equal((batch.segments > 0)[:, :limit], mask)
    hidden = model.run(batch, keep="none").hidden
    logits = allowed(model.lm.logits(hidden), outputs)[:, :limit]
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tensors["trunc_labels"][:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(tensors["trunc_loss"].item(), abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keys(case: Path) -> None:
    """Every key of the file is used or known to be the tower's copy, which is never read."""
    found = load_with_report(folder(case))
    outputs, _ = read(case)
    recorded = json.loads((case / "state_dict_keys.json").read_text())
    (in_file,) = [keys for name, keys in recorded.items() if "bin" in name]
    weights = detect(folder(case)).weights
    assert {name: list(weights.shape(name)) for name in weights} == in_file
    copies = [name for name in weights if ".vision_tower." in name]
    assert len(copies) == outputs["loading_info"]["n_unexpected"]
    assert set(outputs["loading_info"]["unexpected_sample"]) <= set(copies)
    assert found.coverage.complete
    assert not any(".vision_tower." in name for name in found.coverage.used)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@torch.inference_mode()
def test_transcript(case: Path) -> None:
    """The command line's conversation in fp16: prompts exactly, but for what it kept of markers.

    Its history has special tokens in it, ours what was said. In fp16 its ids may differ from ours.
    """
    model, processor = load(folder(case), dtype=torch.float16)
    for run in json.loads((case / "cli_transcript.json").read_text("utf-8")):
        flags = dict(zip(run["args"][:-1], run["args"][1:], strict=True))
        # without --conv-mode the original guesses by the folder's name
        template = resolve({"name": flags.get("--conv-mode", "llava_v0"), "preset": ()})
        assert list(template.roles) == run["role_prefixes"][0]
        params = SamplingParams(max_new_tokens=int(flags["--max-new-tokens"]))
        chat = Chat(model, processor, template=template, params=params)
        theirs: list[Message] = []
        for text, turn in zip(run["stdin"], run["turns"], strict=True):
            picture = () if theirs else (str(case / flags["--image-file"]),)
            answer = "".join(chat.ask(text, images=picture))
            assert answer
            assert "<s>" not in answer
            asked = chat.messages[-2]
            shown = template.text([*theirs, asked], reply=True)
            assert shown == turn["prompt"]
            said = Message(role="assistant", parts=(Text(text=turn["outputs"]),))
            theirs += [asked, said]
