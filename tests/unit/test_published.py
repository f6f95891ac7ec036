"""Converters of published data sets on small files in the sets' own layouts."""

import base64
import io
import json
from random import Random

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from retinue.cli.main import run
from retinue.core.errors import ConfigError, DataError, MediaError
from retinue.data.formats import open_format
from retinue.data.published import PUBLISHED, Raw
from retinue.data.published.raw import TAG, prompts


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(data, list) and path.suffix == ".jsonl"
    text = "\n".join(map(json.dumps, data)) if lines else json.dumps(data)
    path.write_text(text, "utf-8")
    return path


def rows(name, path, **given):
    return list(PUBLISHED.get(name)(Raw(path=path, **given)))


def picture(path, colour=(200, 10, 10), size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def pictures(row):
    return row["input"].split(TAG)[1::2]


def size_of(path):
    with Image.open(path) as found:
        return found.size


TURNS = [
    {"from": "human", "value": "<image>\nwhat?"},
    {"from": "gpt", "value": "a dog"},
    {"from": "human", "value": "big?"},
    {"from": "gpt", "value": "yes"},
]
HISTORY = "what?\n\n### Assistant: a dog\n\n### Human: big?"


@pytest.mark.parametrize(
    ("name", "record", "row"),
    [
        (
            "dynosaur",
            {"instruction": "Do", "input": "it", "output": "ok"},
            {"input": "Do it", "output": "ok"},
        ),
        ("lamini", {"instruction": "q", "response": "a"}, {"input": "q", "output": "a"}),
        ("longform", {"input": "q", "output": "a"}, {"input": "q", "output": "a"}),
        (
            "orca",
            {"id": 1, "system_prompt": "s", "question": "q", "response": "a"},
            {"input": "q", "output": "a"},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json"])
def test_pairs(tmp_path, name, record, row, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        write(path, [record])
    assert rows(name, path) == [row]
    with pytest.raises(DataError, match="missing"):
        rows(name, write(tmp_path / "odd.json", [{"a": 1}]))


def test_sharegpt(tmp_path):
    told = {"from": "gpt", "value": "before any question"}
    path = write(tmp_path / "x.json", [{"id": "1", "conversations": [told, *TURNS]}])
    found = rows("sharegpt", path)
    assert [row["output"] for row in found] == ["a dog", "yes"]
    assert found[1]["input"] == HISTORY.replace("what?", "<image>\nwhat?", 1)


def test_llavar_takes_rows_whose_picture_is_there(tmp_path):
    picture(tmp_path / "images/a.jpg")
    data = [{"image": f"{name}.jpg", "conversations": TURNS} for name in "ab"]
    path = write(tmp_path / "x.json", data)
    found = rows("llavar", path, images=str(tmp_path / "images"))
    shown = f"<img_path>{tmp_path}/images/a.jpg<img_path>"
    assert found == [
        {"input": f"{shown}what?", "output": "a dog"},
        {"input": shown + HISTORY, "output": "yes"},
    ]
    with pytest.raises(ConfigError, match="--images"):
        rows("llavar", path)


def test_lamm_leaves_broken_bamboo_out(tmp_path):
    names = ["coco/1.jpg", "bamboo/1.jpg", "bamboo/2.jpg"]
    picture(tmp_path / "bamboo/2.jpg")
    data = [{"image": name, "conversations": TURNS[:2]} for name in names]
    found = rows("lamm", write(tmp_path / "x.json", data), images=str(tmp_path))
    assert [pictures(row)[0].removeprefix(f"{tmp_path}/") for row in found] == [names[0], names[2]]


def test_toolbench(tmp_path):
    system = "You are AutoGPT.\nYou have access of the following tools:\n1.memes"
    turns = [("system", system), ("user", "go"), ("assistant", "call"), ("function", "done")]
    turns += [("assistant", "end")]
    data = [{"id": "1", "conversations": [{"from": a, "value": b} for a, b in turns]}]
    for name in ("x.json", "x.jsonl"):
        first, second = rows("toolbench", write(tmp_path / name, data))
        assert first["input"].startswith("Toolbench System Message -- You have access")
        assert "AutoGPT" not in first["input"]
        assert first["input"].endswith("1.memes\ngo")
        assert first["output"] == "call"
        assert second["input"].endswith("### Assistant: call\n\n### Human: done")


MESSAGES = [
    {"message_id": "a", "parent_id": None, "text": "hi", "role": "prompter", "lang": "en"},
    {"message_id": "b", "parent_id": "a", "text": "worse", "role": "assistant", "rank": 1},
    {"message_id": "c", "parent_id": "a", "text": "hello", "role": "assistant", "rank": 0},
    {"message_id": "d", "parent_id": "c", "text": "more", "role": "prompter", "rank": None},
    {"message_id": "e", "parent_id": "d", "text": "here", "role": "assistant", "rank": None},
    {"message_id": "f", "parent_id": None, "text": "hola", "role": "prompter", "lang": "es"},
    {"message_id": "g", "parent_id": "f", "text": "si", "role": "assistant"},
]


def test_oasst1(tmp_path):
    path = write(tmp_path / "x.jsonl", MESSAGES)
    found = rows("oasst1", path, split="en")
    assert [row["output"] for row in found] == ["hello", "here"]
    assert found[1]["input"] == "hi\n\n### Assistant: hello\n\n### Human: more"
    assert len(rows("oasst1", path)) == 3
    replies = [{"text": "hello", "rank": 0}, {"text": "worse", "rank": 1}]
    tree = {"prompt": {"text": "hi", "lang": "en", "replies": replies}}
    assert rows("oasst1", write(tmp_path / "t.jsonl", [tree])) == [
        {"input": "hi", "output": "hello"}
    ]
    table = tmp_path / "x.parquet"
    whole = [{"rank": None, "lang": None, **one} for one in MESSAGES]
    pq.write_table(pa.Table.from_pylist(whole), table)
    assert rows("oasst1", table, split="en") == found


def test_img2p(tmp_path):
    url = "https://x/VG_100K_2/{}.jpg"
    said = [
        {"image_id": n, "url": url.format(n), "paragraph": "a dog.  it runs. far"} for n in (1, 2)
    ]
    write(tmp_path / "paragraphs_v1.json", said)
    (row,) = rows("img2p", write(tmp_path / "train_split.json", [2]))
    request, picture_path, rest = row["input"].split(TAG)
    assert request.removesuffix(". ") in prompts("long_captions")
    assert (picture_path, rest) == ("VG_100K_2/2.jpg", "")
    assert row["output"] == "A dog. It runs. Far"


def test_levir_cc_concat(tmp_path):
    one = {
        "split": "train",
        "filename": "1.png",
        "sentences": [{"raw": " a road . "}, {"raw": " a long road is built . "}],
    }
    for folder in "AB":
        picture(tmp_path / f"images/train/{folder}/1.png")
    path = write(tmp_path / "x.json", {"images": [one, {**one, "split": "val"}]})
    sizes = set()
    for seed in range(8):
        made = tmp_path / f"made{seed}"
        (row,) = rows(
            "levir_cc_concat", path, images=str(tmp_path / "images"), made=made, shown_as="made",
            split="train", rng=Random(seed),
        )  # fmt: skip
        assert row["output"] == "A long road is built."
        assert pictures(row) == ["made/train/concat/1.png"]
        sizes.add(size_of(made / "train/concat/1.png"))
    assert sizes == {(16, 6), (8, 12)}
    with pytest.raises(DataError, match="no split"):
        rows("levir_cc_concat", path, split="dev")


def test_grid_3d(tmp_path):
    picture(tmp_path / "imgs/7.png")
    asked = {"img_idx": 7, "question": ["is", "it", "red", "?"]}
    write(tmp_path / "questions.json", [{**asked, "answer": a} for a in ("True", "False", "3")])
    path = write(tmp_path / "train_idxs.json", [0, 1, 2])
    yes, no, three = rows("grid_3d", path)
    assert pictures(yes) == ["imgs/7.png"]
    assert "is it red?" in yes["input"]
    assert (yes["output"] in prompts("yes"), no["output"] in prompts("no")) == (True, True)
    assert three["output"] in [form.replace("{}", "3") for form in prompts("answers")]


def test_websrc(tmp_path):
    site = tmp_path / "data/auto/08"
    (site / "processed_data").mkdir(parents=True)
    (site / "processed_data/0800001.html").write_text("<p>page</p>", "utf-8")
    lines = ["id,question,answer"]
    lines += [f"au08000010000{n},what is {n}?,{a}" for n, a in enumerate(["two", "a b."])]
    (site / "dataset.csv").write_text("\n".join(lines), "utf-8")
    write(tmp_path / "data/dataset_split_release.json", {"train": ["au08"], "dev": []})
    first, second = rows("websrc", tmp_path / "data", split="train")
    assert (first["output"], second["output"]) == ("Two.", "A b.")
    assert pictures(first) == ["auto/08/processed_data/0800001.png"]
    assert rows("websrc", tmp_path / "data", split="dev") == []
    found = [
        row for n in range(40) for row in rows("websrc_html", tmp_path / "data", rng=Random(n))
    ]
    assert 0 < len(found) < 40
    assert {row["output"] for row in found} == {"<p>page</p>"}


@pytest.mark.parametrize("label", ["True", "False"])
def test_nlvr2(tmp_path, label):
    one = {"identifier": "train-10-0-1", "directory": 5, "sentence": "All red.", "label": label}
    path = write(tmp_path / "train.jsonl", [one] * 20)
    found = rows("nlvr2", path)
    answers = {(form[1] if label == "True" else form[2]) for form in prompts("statements")}
    for row in found:
        assert pictures(row) == ["5/train-10-0-img0.png", "5/train-10-0-img1.png"]
        assert row["output"] in answers
        assert "All red" in row["input"]
    assert len({row["input"] for row in found}) > 10
    dev = write(tmp_path / "dev.json", [{**one, "identifier": "dev-1-0-0"}])
    assert pictures(rows("nlvr2", dev)[0])[0] == "dev-1-0-img0.png"


def test_refcocog_and_its_crops(tmp_path):
    picture(tmp_path / "train2014/COCO_train2014_000000000009.jpg", size=(40, 30))
    boxes = [{"id": 5, "bbox": [4, 2, 10, 8]}]
    write(tmp_path / "instances_train2014.json", {"annotations": boxes})
    said = {
        "annotations": [{"annotation_id": 5, "image_id": 9, "refexp_ids": [1, 2]}],
        "refexps": [{"refexp_id": 1, "raw": "dog."}, {"refexp_id": 2, "raw": "The brown dog"}],
    }
    path = write(tmp_path / "google_refexp_train_201511.json", said)
    (row,) = rows("refcocog", path, images="")
    assert (
        "{'bbox x axis': 4, 'bbox y axis': 2, 'bbox width': 10, 'bbox height': 8}" in row["input"]
    )
    assert row["output"] == "The brown dog."
    first = write(tmp_path / "step1.json", [row])
    given = {"images": str(tmp_path), "made": tmp_path / "made", "shown_as": "made"}
    (cut,) = rows("refcocog_crops", first, **given)
    assert pictures(cut)[1] == "made/region_0.jpg"
    assert "bbox" not in cut["input"]
    assert size_of(tmp_path / "made/region_0.jpg") == (10, 8)
    with pytest.raises(ConfigError, match="--made"):
        rows("refcocog_crops", first, images=str(tmp_path))


def test_vcr(tmp_path):
    picture(tmp_path / "v/1.jpg", size=(40, 30))
    write(tmp_path / "v/1.json", {"boxes": [[0, 0, 9, 9, 1.0], [5, 5, 25, 15, 0.9]]})
    one = {
        "objects": ["person", "dog"],
        "img_fn": "v/1.jpg",
        "metadata_fn": "v/1.json",
        "question": ["why", "does", [0], "smile", "?"],
        "answer_choices": [[[0], "likes", [0, 1], "."], ["no", "."]],
        "answer_label": 0,
        "rationale_choices": [["it", "is", "fun", "."]],
        "rationale_label": 0,
    }
    path = write(tmp_path / "train.jsonl", [one])
    (row,) = rows("vcr", path, images=str(tmp_path), made=tmp_path / "m", shown_as="m")
    assert row["output"] == "Person-a likes person-a, and dog-b. It is fun."
    assert pictures(row)[1:] == ["m/1.jpg-person-a.jpg", "m/1.jpg-dog-b.jpg"]
    assert row["input"].endswith("dog-b: <img_path>m/1.jpg-dog-b.jpg<img_path>\n")
    assert size_of(tmp_path / "m/1.jpg-dog-b.jpg") == (20, 10)


def test_mimic_it_pictures_and_missing_ones(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "PNG")
    path = write(tmp_path / "VST.json", {"a": base64.b64encode(buffer.getvalue()).decode()})
    (row,) = rows("mimic_it_images", path, made=tmp_path / "images", shown_as="images")
    assert pictures(row) == ["images/a.png"]
    assert size_of(tmp_path / "images/a.png") == (672, 336)
    data = {
        f"i{n}": {"instruction": "tell", "answer": "x", "image_ids": [n]} for n in ("a", "gone")
    }
    told = write(tmp_path / "VST_instructions.json", {"data": data})
    assert len(rows("mimic_it", told)) == 2
    assert len(rows("mimic_it", told, images=str(tmp_path / "images"))) == 1
    with pytest.raises(MediaError):
        rows("mimic_it_images", write(tmp_path / "b.json", {"a": "AAAA"}), made=tmp_path)


def test_funqa(tmp_path):
    with av.open(str(tmp_path / "H_1.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for level in range(20):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 16), (level * 10,) * 3))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    one = {"task": "H2", "visual_input": "H_1.mp4", "instruction": "why?", "output": "fun"}
    path = write(tmp_path / "x.json", [one, {**one, "task": "H1"}])
    (row,) = rows("funqa", path, images=str(tmp_path), made=tmp_path / "m", shown_as="m")
    assert len(pictures(row)) == 8
    assert "0.0s: <img_path>m/H_1/0.jpg<img_path>\n" in row["input"]
    assert "1.9s: " in row["input"]
    assert size_of(tmp_path / pictures(row)[0]) == (336, 336)


def test_clean_ups(tmp_path):
    data = [
        {"input": "a\n\n### Human: b", "output": "fine_day"},
        {"input": "c", "output": "[0.1, 0.2]"},
    ]
    path = write(tmp_path / "x.json", data)
    assert rows("lamm_clean", path) == [{"input": "a\n### Human: b", "output": "fine_day"}]
    assert rows("artemis", path)[0]["output"] == "fine day"


def test_nsfw(tmp_path):
    picture(tmp_path / "bad/1.png")
    data = [{"input": "<img_path>x.jpg<img_path>what?", "output": "a"}] * 30
    data.append({"input": "no picture", "output": "b"})
    path = write(tmp_path / "x.json", data)
    found = rows("nsfw", path, images=str(tmp_path / "bad"))
    assert len(found) == 30
    assert all(pictures(row) == [str(tmp_path / "bad/1.png")] for row in found)
    assert {row["output"] for row in found} == {"Clever Flamingo Warning: NSFW content detected!"}
    assert 15 < sum(row["input"].endswith("what?") for row in found) < 30
    with pytest.raises(ConfigError, match="warn"):
        rows("nsfw", path)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_columns_by_hand(tmp_path, kind):
    record = {"nr": 3, "file": "a.png", "q": "what?", "a": "a dog"}
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        lines = [mark.join(map(str, line)) for line in (record.keys(), record.values())]
        path.write_text("\n".join(lines), "utf-8")
    else:
        write(path, [record])
    out = tmp_path / "out.json"
    words = ["data", "convert", str(path), str(out), "--from", "map", "--images", "pics"]
    assert run([*words, "--map", "id=nr,image=file,question=q,answer=a"]) == 0
    wanted = {"id": "3", "input": "<img_path>pics/a.png<img_path>what?", "output": "a dog"}
    assert json.loads(out.read_text("utf-8")) == [wanted]
    sample = open_format(out)[0]
    assert (sample.id, sample.media[0].name) == ("3", "pics/a.png")
    assert run([*words, "--map", "image=file,question=q"]) == 2
    assert run([*words, "--map", "question"]) == 2
    assert run([*words, "--map", "question=q,answer=none"]) == 3


def test_columns_within_objects_and_lists(tmp_path):
    record = {"images": ["a.png", "b.png"], "turns": [{"q": "x", "a": 3}]}
    path = write(tmp_path / "x.json", [record])
    named = {"image": "images", "question": "turns.0.q", "answer": "turns.0.a"}
    (row,) = rows("map", path, columns=named)
    assert (pictures(row), row["output"]) == (["a.png", "b.png"], "3")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_file_of_another_kind_ends_in_one_line(tmp_path, name, capsys):
    path = write(tmp_path / "x.json", [{"some": "thing"}])
    words = ["data", "convert", str(path), str(tmp_path / "out.json"), "--from", name]
    assert run([*words, "--made", str(tmp_path / "made")]) in (2, 3)
    assert "Traceback" not in capsys.readouterr().err


def test_folders_of_classes_become_conversations(tmp_path, capsys):
    """SPHINX's tuning data to the letter, and readable as Accessory's own."""
    root = tmp_path / "train"
    for name in ("n02/b.JPEG", "n01/c.png", "n02/a.jpg"):
        picture(root / name.replace("JPEG", "jpeg"))
    (root / "n01" / "notes.txt").write_text("no picture", "utf-8")
    lines = tmp_path / "names.txt"
    lines.write_text("n01 tench, Tinca tinca\nn02 great white shark\nn03 unused\n", "utf-8")
    words = ["data", "convert", str(root), str(tmp_path / "out.json"), "--from", "imagefolder"]
    assert run([*words, "--names", str(lines)]) == 0
    made = json.loads((tmp_path / "out.json").read_text("utf-8"))

    def row(image, called):
        turns = [("human", "Classify the image."), ("gpt", f"This is a {called}")]
        return {"image": image, "conversations": [{"from": a, "value": b} for a, b in turns]}

    assert made == [
        row("n01/c.png", "tench"),
        row("n02/a.jpg", "great white shark"),
        row("n02/b.jpeg", "great white shark"),
    ]
    meta = tmp_path / "data_config.yaml"
    meta.write_text(f"META:\n  - {{path: {tmp_path}/out.json, type: image, root: {root}}}\n")
    found = open_format(meta, format="accessory")
    assert len(found) == 3
    assert found[0].media[0].source == str(root / "n01/c.png")
    write(tmp_path / "index.json", {"0": ["n01", "tench"], "1": ["n02", "shark"]})
    assert run([*words, "--names", str(tmp_path / "index.json")]) == 0
    lines.write_text("n01 tench\n", "utf-8")
    assert run([*words, "--names", str(lines)]) == 3
    assert "1 folders have no name, n02 the first" in capsys.readouterr().err
