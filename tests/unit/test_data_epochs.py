"""Epochs of a number of samples, dataset configs, and pictures that fill an example up."""

import json
from collections import Counter

import pytest
import torch

import retinue
import tiny
import tiny_recipe
from fake_processor import FakeProcessor
from retinue.core.errors import ConfigError, DataError
from retinue.data.dataset import open_dataset
from retinue.data.draw import EpochSpec, counts_of, drawn
from retinue.data.fill import BlackFill
from retinue.data.formats import detect_format, open_format
from retinue.data.spec import DataSpec
from retinue.hub.build import build
from retinue.text.train import train_bpe
from retinue.types import Media, Message, Sample, Text


@pytest.mark.parametrize(("share", "wanted"), [("ratio", [1, 1, 2, 6]), ("sqrt", [1, 2, 3, 4])])
def test_shares_of_an_epoch(share, wanted):
    spec = EpochSpec(samples=10, share=share)
    assert counts_of([1, 4, 9, 16], [1, 1, 2, 6], spec=spec) == wanted
    assert sum(counts_of([3, 3, 3], [1, 1, 1], spec=EpochSpec(samples=100))) == 100
    assert counts_of([0, 5], [9, 1], spec=spec) == [0, 10]


@pytest.mark.parametrize("count", [3, 10, 27])
def test_no_sample_comes_twice_before_all_others(count):
    spec = EpochSpec(samples=count)
    seen = Counter()
    for epoch in range(20):
        found = drawn(10, count, epoch=epoch, spec=spec, seed=3, number=1)
        assert len(found) == count
        assert found == drawn(10, count, epoch=epoch, spec=spec, seed=3, number=1)
        seen.update(found)
        assert max(seen.values()) - min(seen[k] for k in range(10)) <= 1


def test_with_replacement_each_is_drawn_anew():
    spec = EpochSpec(samples=200, replace=True)
    one = drawn(10, 200, epoch=0, spec=spec, seed=0, number=0)
    assert len(set(Counter(one).values())) > 1
    assert one != drawn(10, 200, epoch=1, spec=spec, seed=0, number=0)
    assert one == drawn(10, 200, epoch=0, spec=spec, seed=0, number=0)


@pytest.fixture
def config(tmp_path):
    entries = []
    for name, size, ratio in (("large", 16, 1), ("small", 4, 3)):
        rows = [
            {"id": f"{name}{k}", "input": f"q {k}", "output": f"{name} {k}"} for k in range(size)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), "utf-8")
        entries.append(
            {"dataset_name": name, "json_path": f"{name}.json", "img_dir": "", "ratio": ratio}
        )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(entries), "utf-8")
    return path


def opened(config, **changes):
    source = {"path": config.name, **changes.pop("source", {})}
    spec = DataSpec.parse({"sources": [source], **changes})
    return open_dataset(spec, FakeProcessor(), root=config.parent)


def visits(data, epoch=0):
    chosen = data.train.epoch(epoch, seed=0, spec=data.spec.epoch)
    return Counter(data.train.id(k).rstrip("0123456789") for k in chosen)


def test_a_dataset_config_is_several_sources(config):
    assert detect_format(config) == "collection"
    assert visits(opened(config)) == {"large": 16, "small": 4}  # all once, as without sampling
    assert visits(opened(config, epoch={"samples": 40})) == {"large": 10, "small": 30}
    assert visits(opened(config, epoch={"samples": 30, "share": "sqrt"})) == {
        "large": 20,
        "small": 10,
    }
    data = opened(config, epoch={"samples": 8})
    batch = next(iter(data.loader(data.schedule(global_batch=8, micro_batch=8))))
    assert sorted(batch.kinds) == ["large"] * 2 + ["small"] * 6
    assert data.train.sources[1].format.where(17).endswith("small.json:1")


def test_turns_come_from_all_data_sets_as_often_as_their_ratios_say(config):
    data = opened(config, epoch={"samples": 8}, source={"turns": {"add": 30}})
    told = Counter()
    for k in range(len(data.train)):
        told.update(m.text.split()[0] for m in data.train[k].messages[3::2])
    assert told.total() == 20 * 30
    assert 0.68 < told["small"] / told.total() < 0.82


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ratio": 0}, "ratio 0"),
        ({"ratio": "x"}, "ratio 'x'"),
        ({"img_dir": None}, "no img_dir"),
        ({"json_path": "gone.json"}, "gone.json"),
    ],
)
def test_broken_configs(config, change, why):
    rows = json.loads(config.read_text("utf-8"))
    rows[1] = {k: v for k, v in {**rows[1], **change}.items() if v is not None}
    config.write_text(json.dumps(rows), "utf-8")
    with pytest.raises(DataError, match=why):
        open_format(config)


@pytest.fixture(scope="module")
def flamingo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flamingo")
    train_bpe(tiny.LINES, vocab_size=320, specials=["<image>"]).save(folder / "tokenizer")
    build(tiny_recipe.small_model(tiny_recipe.FLAMINGO, folder / "tokenizer"), folder / "base")
    model, processor = retinue.load(folder / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(0.7)
    return model.eval(), processor


def sample(pictures):
    media = [Media(source=tiny.picture(n)) for n in range(pictures)]
    asked = Message(role="user", parts=(*media, Text(text="what colour is the circle?")))
    return Sample(
        id=str(pictures), messages=(asked, Message(role="assistant", parts=(Text(text="red"),)))
    )


@torch.no_grad()
def test_pictures_that_fill_up_are_encoded_and_seen_by_no_word(flamingo):
    model, processor = flamingo
    examples = [processor.example(sample(k), train=True) for k in (2, 0, 1)]
    fill = BlackFill(count=3)
    filled = [fill.apply(one, processor=processor) for one in examples]
    assert [len(one.items) for one in filled] == [3, 3, 3]
    plain = processor.collate(examples, train=True)
    batch = processor.collate(filled, train=True)
    assert len(batch.visual.grids) == 9
    assert torch.equal(batch.tokens, plain.tokens)
    black = batch.visual.pixels["rgb"][2].float() / 255
    mean = torch.tensor(processor.spec.streams["rgb"].mean)[:, None, None]
    assert (black - mean).abs().max() < 1 / 255
    torch.testing.assert_close(model.run(batch).logits, model.run(plain).logits, atol=1e-5, rtol=0)
    fewer = BlackFill(count=1).apply(examples[0], processor=processor)
    assert (len(fewer.items), len(fewer.spans)) == (1, 1)
    assert fewer.tokens == examples[0].tokens


def test_a_recipe_fills_by_name(flamingo, tmp_path):
    _, processor = flamingo
    rows = [{"input": "a question", "output": "an answer"}] * 4
    (tmp_path / "x.json").write_text(json.dumps(rows), "utf-8")
    spec = {"sources": [{"path": "x.json"}]}

    def first(**changes):
        data = open_dataset(DataSpec.parse({**spec, **changes}), processor, root=tmp_path)
        return next(iter(data.loader(data.schedule(global_batch=2, micro_batch=2))))

    assert first().visual is None
    assert len(first(fill={"kind": "black", "count": 2}).visual.grids) == 4
    with pytest.raises(ConfigError, match="did you mean 'black'"):
        DataSpec.parse({**spec, "fill": {"kind": "blak"}})
    fill = {"kind": "black", "count": 2}
    with pytest.raises(ConfigError, match="set packing to none"):
        DataSpec.parse({**spec, "fill": fill, "packing": "step", "max_tokens": 64})


def test_pictures_among_the_words_cannot_be_filled_up(tmp_path):
    folder = tmp_path
    train_bpe(tiny.LINES, vocab_size=320, specials=["<image>"]).save(folder / "tokenizer")
    parts = {**tiny_recipe.FLAMINGO, "fusion": {"kind": "splice"}, "template": "plain"}
    parts["lm"] = {"config": tiny_recipe.LM}
    build(tiny_recipe.small_model(parts, folder / "tokenizer"), folder / "base")
    _, processor = retinue.load(folder / "base")
    example = processor.example(sample(1), train=True)
    with pytest.raises(ConfigError, match="cross-attention"):
        BlackFill(count=3).apply(example, processor=processor)
