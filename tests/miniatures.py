"""Each packaged benchmark in small: its published files with two or three questions of our own.

`miniature("pope", folder)` writes them below `folder`; `ANSWERS` says what a perfect model says.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from miniatures_ranked import imagenet, lines, memes, mmmu, tinyworld
from tiny import picture

TEN = ["red"] * 7 + ["dark red"] * 2 + ["crimson"]
FIVE = {f"a{n}": word for n, word in enumerate(["runs", "sits", "eats", "sleeps", "swims"])}
Files = dict[str, Any]
"""Path -> text, bytes, JSON data, or None for a picture."""


def vqa(questions: str, annotations: str | None, name: str, *, every: str | None = None) -> Files:
    asked = [
        {"question_id": n, "image_id": 7, "question": f"What colour is shape {n}?"} for n in (1, 2)
    ]
    files: Files = {questions: {"questions": asked}, name: None}
    if every:
        files[every] = {"questions": [*asked, {**asked[0], "question_id": 3}]}
    if annotations:
        given = [{"answer": word, "answer_id": n} for n, word in enumerate(TEN)]
        files[annotations] = {
            "annotations": [
                {
                    "question_id": n,
                    "answers": given,
                    "answer_type": "other",
                    "question_type": "what",
                }
                for n in (2, 1)
            ]
        }
    return files


def vizwiz(split: str) -> Files:
    given = {"answers": [{"answer": word} for word in TEN], "answer_type": "other"}
    rows = [
        {
            "image": f"VizWiz_{n}.jpg",
            "question": "What is this?",
            **(given if split == "val" else {}),
        }
        for n in (0, 1)
    ]
    return {f"Annotations/{split}.json": rows, **{f"{split}/VizWiz_{n}.jpg": None for n in (0, 1)}}


def textvqa() -> Files:
    row = {"image_id": "im0", "question": "What does it say?", "question_id": 5, "answers": TEN}
    return {
        "TextVQA_0.5.1_val.json": {"data": [row, {**row, "question_id": 6, "question": "Which?"}]},
        "TextVQA_Rosetta_OCR_v0.2_val.json": {
            "data": [{"image_id": "im0", "ocr_tokens": ["STOP", "GO"]}]
        },
        "train_images/im0.jpg": None,
    }


def scienceqa() -> Files:
    row = {"question": "Which?", "choices": ["one", "two"], "answer": 1, "subject": "biology"}
    return {
        "problems.json": {"4": {**row, "image": "image.png", "hint": "Look."}, "9": row},
        "pid_splits.json": {"test": ["4", "9"], "train": []},
        "images/test/4/image.png": None,
    }


def pope() -> Files:
    row = {"question_id": 1, "image": "p.jpg", "text": "Is there a dog in the image?"}
    rows = lines({**row, "label": "yes"}, {**row, "question_id": 2, "label": "no"})
    names = ("random", "popular", "adversarial")
    return {"val2014/p.jpg": None, **{f"coco/coco_pope_{name}.json": rows for name in names}}


def mme() -> Files:
    said = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
    return {
        "existence/0001.txt": said,
        "existence/0001.jpg": None,
        "artwork/questions_answers_YN/0002.txt": said,
        "artwork/images/0002.jpg": None,
        "code_reasoning/0003.txt": said,
        "code_reasoning/0003.png": None,
    }


def mmbench(name: str) -> Files:
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    shown = base64.b64encode(buffer.getvalue()).decode()
    header = "index question hint A B C D answer category image source l2-category comment split"
    rows = [
        ["1", "Which?", "", "red", "blue", "", "", "B", "colour", shown, "s", "fine", "", "dev"],
        ["2", "What?", "Look.", "a", "b", "c", "", "A", "shape", shown, "s", "coarse", "", "dev"],
    ]
    return {name: "".join("\t".join(row) + "\n" for row in [header.split(), *rows])}


def seed() -> Files:
    row = {f"choice_{letter}": letter * 2 for letter in "abcd"}
    asked = [
        {**row, "question": "Who?", "question_id": "1", "data_type": "image", "data_id": "x.png"},
        {**row, "question": "Doing?", "question_id": "2", "data_type": "video", "data_id": "v.mp4"},
    ]
    for number, (one, answer) in enumerate(zip(asked, "BD", strict=True), start=1):
        one |= {"answer": answer, "question_type_id": number}
    return {
        "SEED-Bench.json": {"question_type": {"Scene": 1, "Action": 2}, "questions": asked},
        "SEED-Bench-image/x.png": None,
        "SEED-Bench-video-image/2.png": None,
    }


def chartqa(kind: str) -> Files:
    rows = [
        {"imgname": "1.png", "query": "How many?", "label": "40"},
        {"imgname": "1.png", "query": "Which is it?", "label": "Spain"},
    ]
    return {f"test/test_{kind}.json": rows, "test/png/1.png": None}


def documents(name: str, key: str, folder: str) -> Files:
    row = {"questionId": 11, "question": "Total?", key: f"{folder}1.png", "answers": ["12", "12.0"]}
    if "test" in name:
        del row["answers"]
    place = "documents/1.png" if folder else "images/1.png"
    return {name: {"data": [row, {**row, "questionId": 12}]}, place: None}


def captions(name: str, shown: str) -> Files:
    said = [
        [{"raw": "a red circle on a white table"}, {"raw": "one red circle lies on a table"}],
        [{"raw": "two dogs run over green grass"}, {"raw": "dogs are running in a field"}],
        [{"raw": "not this one"}],
    ]
    rows = [
        {
            "cocoid": n,
            "imgid": n,
            "filepath": "val2014",
            "filename": f"{n}.jpg",
            "split": "test" if n < 2 else "train",
            "sentences": sentences,
        }
        for n, sentences in enumerate(said)
    ]
    return {name: {"images": rows}, **{f"{shown}/{n}.jpg": None for n in range(2)}}


def video(name: str) -> Files:
    head = ["video_name", "question_id", "question", *FIVE, "answer", "question_type"]
    row = ["clip", "7", "What does she do?", *FIVE.values(), "eats", "CW"]
    return {f"{name}.csv": ",".join(head) + "\n" + ",".join(row) + "\n"}


def open_video(name: str) -> Files:
    rows = "clip,7,what is she doing,eating\nclip,8,where is she,kitchen\n"
    return {f"{name}.csv": "video_name,question_id,question,answer\n" + rows}


def gaokao(keyword: str, answer: list[str]) -> Files:
    row = {"index": 0, "year": "2012", "question": "下列", "picture": ["p.png"], "answer": answer}
    return {f"Data/{keyword}.json": {"example": [row]}, "p.png": None}


def diagrams() -> Files:
    row = {"answerTexts": ["sun", "moon"], "correctAnswer": 1, "questionId": "0.png-0"}
    found = {"imageName": "0.png", "questions": {"Which is it?": {**row, "abcLabel": False}}}
    other = {"imageName": "1.png", "questions": {}}
    return {
        "questions/0.png.json": found,
        "questions/1.png.json": other,
        "ai2d_test_ids.csv": "0\n",
        "images/0.png": None,
    }


def covers() -> Files:
    row = {
        "imageURL": "http://x/y.jpg",
        "questions": ["Who?", "Genre?"],
        "answers": ["A. B.", "Art"],
    }
    files = {"11": {**row, "split": 3, "genre": "Art"}, "12": {**row, "split": 1}}
    return {"dataset.json": files, "images/11.jpg": None}


def refer(by: str, split: str) -> Files:
    said = [{"sent_id": n, "sent": words} for n, words in enumerate(["red bar", "left one"])]
    row = {"ref_id": 3, "image_id": 7, "ann_id": 5, "sentences": said}
    rows = [{**row, "split": split}, {**row, "ref_id": 4, "split": "train"}]
    box = {"id": 5, "bbox": [2.0, 3.0, 12.0, 11.0], "image_id": 7}
    return {
        f"refs({by}).p": pickle.dumps(rows, protocol=2),
        "instances.json": {"images": [{"id": 7, "width": 40, "height": 30}], "annotations": [box]},
        "train2014/COCO_train2014_000000000007.jpg": None,
    }


def wild() -> Files:
    asked = [
        {"question_id": n, "image": "1.jpg", "text": f"Tell of {n}.", "category": kind}
        for n, kind in enumerate(("conv", "detail"))
    ]
    rule = {"role": "Assistant", "prompt": "Two scores on the first line, please."}
    return {
        "questions.jsonl": lines(*asked),
        "context.jsonl": lines({"id": "1", "image": "1.jpg", "caption": "A red bar."}),
        "answers_gpt4.jsonl": lines(*({"question_id": n, "text": f"T{n}."} for n in (0, 1))),
        "rule.json": {f"llava_bench_{kind}": rule for kind in ("conv", "detail")},
        "images/1.jpg": None,
    }


COCO = "val2014/COCO_val2014_000000000007.jpg"
LAYOUTS: dict[str, tuple[str, Callable[[], Files]]] = {
    "vqav2": (
        "vqav2",
        lambda: vqa(
            "v2_OpenEnded_mscoco_test-dev2015_questions.json",
            None,
            "test2015/COCO_test2015_000000000007.jpg",
            every="v2_OpenEnded_mscoco_test2015_questions.json",
        ),
    ),
    "vqav2-val": (
        "vqav2",
        lambda: vqa(
            "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", COCO
        ),
    ),
    "okvqa": (
        "okvqa",
        lambda: vqa(
            "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", COCO
        ),
    ),
    "vizwiz": ("vizwiz", lambda: vizwiz("test")),
    "vizwiz-val": ("vizwiz", lambda: vizwiz("val")),
    "textvqa": ("textvqa", textvqa),
    "textvqa-plain": ("textvqa", textvqa),
    "gqa": (
        "gqa",
        lambda: {
            "testdev_balanced_questions.json": {
                "201": {"imageId": "n5", "question": "Is it red?", "answer": "yes"},
                "202": {"imageId": "n5", "question": "Where is it?", "answer": "left"},
            },
            "images/n5.jpg": None,
        },
    ),
    "scienceqa": ("scienceqa", scienceqa),
    "scienceqa-img": ("scienceqa", scienceqa),
    "pope": ("pope", pope),
    "mme": ("MME_Benchmark_release_version", mme),
    "mmbench": ("mmbench", lambda: mmbench("mmbench_dev_20230712.tsv")),
    "mmbench-circular": ("mmbench", lambda: mmbench("mmbench_dev_20230712.tsv")),
    "mmbench-cn": ("mmbench_cn", lambda: mmbench("mmbench_dev_cn_20231003.tsv")),
    "seed": ("seed_bench", seed),
    "seed-image": ("seed_bench", seed),
    "mmvet": (
        "mm-vet",
        lambda: {
            "mm-vet.json": {
                "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5"}
            },
            "images/v1_0.png": None,
        },
    ),
    "docvqa": ("docvqa", lambda: documents("val_v1.0.json", "image", "documents/")),
    "docvqa-test": ("docvqa", lambda: documents("test_v1.0.json", "image", "documents/")),
    "infovqa-test": (
        "infovqa",
        lambda: documents("infographicsVQA_test_v1.0.json", "image_local_name", ""),
    ),
    "hateful-memes": ("hateful_memes", memes),
    "imagenet": ("imagenet", imagenet),
    "mmmu": ("mmmu", lambda: mmmu("validation")),
    "mmmu-test": ("mmmu", lambda: mmmu("test")),
    "tinyworld": ("data", tinyworld),
    "infovqa": (
        "infovqa",
        lambda: documents("infographicsVQA_val_v1.0.json", "image_local_name", ""),
    ),
    "chartqa": ("chartqa", lambda: {**chartqa("human"), **chartqa("augmented")}),
    "chartqa-human": ("chartqa", lambda: chartqa("human")),
    "chartqa-augmented": ("chartqa", lambda: chartqa("augmented")),
    "ai2d": ("ai2d", diagrams),
    "ocrvqa": ("ocrvqa", covers),
    "vsr": (
        "vsr",
        lambda: {
            "test.jsonl": lines(
                {"image": "1.jpg", "caption": "The cup is on it.", "label": 1, "relation": "on"},
                {
                    "image": "1.jpg",
                    "caption": "The cup is under it.",
                    "label": 0,
                    "relation": "under",
                },
            ),
            "images/1.jpg": None,
        },
    ),
    "qbench": (
        "qbench",
        lambda: {
            "llvisionqa_dev.json": [
                {
                    "img_path": "1.jpg",
                    "question": "Is it sharp?",
                    "candidates": ["Yes", "No"],
                    "correct_ans": "No",
                    "type": 0,
                    "concern": 1,
                }
            ],
            "images/1.jpg": None,
        },
    ),
    "coco-captions": ("coco", lambda: captions("dataset_coco.json", "val2014")),
    "flickr30k": ("flickr30k", lambda: captions("dataset_flickr30k.json", "flickr30k-images")),
    "nextqa": ("nextqa", lambda: video("NExT_QA")),
    "intentqa": ("intentqa", lambda: video("IntentQA")),
    "egoschema": ("egoschema", lambda: video("EgoSchema")),
    **{
        f"{name.replace('+', '-plus')}-{split}": (name, partial(refer, by, split))
        for name, by, splits in (
            ("refcoco", "unc", ("val", "testA", "testB")),
            ("refcoco+", "unc", ("val", "testA", "testB")),
            ("refcocog", "umd", ("val", "test")),
        )
        for split in splits
    },
    "msvd": ("msvd", lambda: open_video("MSVD_QA")),
    "msrvtt": ("msrvtt", lambda: open_video("MSRVTT_QA")),
    "activitynet": ("activitynet", lambda: open_video("ActivityNet_QA")),
    "llava-bench": ("llava-bench-in-the-wild", wild),
    "gaokao-mm": ("gaokao-mm", lambda: gaokao("2010-2023_Math_MCQs", ["B"])),
    "gaokao-mm-several": ("gaokao-mm", lambda: gaokao("2010-2023_Physics_MCQs", ["AB"])),
}
"""Task -> (folder of its files, what they are)."""


def miniature(name: str, root: Path) -> Path:
    """Write the files of a benchmark below `root`; returns their folder."""
    folder, files = LAYOUTS[name]
    for path, content in files().items():
        place = root / folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            picture(1).save(place)
        elif isinstance(content, bytes):
            place.write_bytes(content)
        else:
            place.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return root / folder
