"""Composition of recipes: includes, overrides, provenance, errors with their place."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retinue.core.compose import Tree, compose, diff, flow, join_path, leaves, split_path
from retinue.core.errors import ConfigError
from retinue.core.yamlio import parse_value

BASE = """
model:
  connector: {kind: mlp, depth: 2, of: {kind: take, encoder: clip}}
  template: vicuna
train:
  stages:
    - {name: align, optim: {lr: 1e-3}}
    - name: sft
      optim:
        lr: 2e-5
data:
  sources:
    - {path: a.json, ratio: 1}
    - {path: b.json, ratio: 3}
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE, "utf-8")
    return path


def write(base, name, text):
    path = base.parent / name
    path.write_text(text, "utf-8")
    return path


def test_a_file_alone_with_lines(base):
    tree = compose(base)
    assert tree.data["train"]["stages"][1]["optim"]["lr"] == 2e-5
    assert str(tree.origin("model.template")) == "file base.yaml:4"
    assert str(tree.origin("train.stages.1.optim.lr")) == "file base.yaml:10"
    assert str(tree.origin("train.stages.sft.optim.lr")) == "file base.yaml:10"
    assert str(tree.origin("model.nothing")) == "default"


def test_include_is_below_file_is_below_override(base):
    mine = write(base, "mine.yaml", "include: base.yaml\nmodel:\n  template: plain\n")
    tree = compose(mine, ["model.template=llama3"])
    assert tree.data["model"]["template"] == "llama3"
    assert str(tree.origin("model.template")) == "override model.template=llama3"
    assert str(compose(mine).origin("model.template")) == "file mine.yaml:3"
    assert str(tree.origin("model.connector.depth")) == "include base.yaml:3"
    assert "include" not in tree.data


def test_include_chain_and_order(base):
    write(base, "two.yaml", "model: {template: two, extra: 2}\n")
    write(base, "mine.yaml", "include: [base.yaml, two.yaml]\n")
    outer = write(base, "outer.yaml", "include: mine.yaml\nmodel: {extra: 5}\n")
    data = compose(outer).data
    assert data["model"]["template"] == "two"
    assert data["model"]["extra"] == 5
    assert len(data["data"]["sources"]) == 2


def test_include_of_a_packaged_recipe(base):
    mine = write(base, "mine.yaml", "include: recipe:llava15-7b/sft\nseed: 7\n")
    tree = compose(mine)
    assert tree.data["seed"] == 7
    assert "model" in tree.data


def test_another_kind_replaces_the_whole_mapping(base):
    mine = write(
        base,
        "mine.yaml",
        "include: base.yaml\nmodel: {connector: {kind: linear, of: {kind: take, encoder: x}}}\n",
    )
    assert "depth" not in compose(mine).data["model"]["connector"]
    same = write(base, "same.yaml", "include: base.yaml\nmodel: {connector: {depth: 3}}\n")
    assert compose(same).data["model"]["connector"]["kind"] == "mlp"
    assert compose(same).data["model"]["connector"]["depth"] == 3


def test_a_mapping_over_named_items_addresses_them(base):
    mine = write(
        base, "mine.yaml", "include: base.yaml\ntrain: {stages: {sft: {optim: {lr: 1e-6}}}}\n"
    )
    tree = compose(mine)
    assert [s["optim"]["lr"] for s in tree.data["train"]["stages"]] == [1e-3, 1e-6]
    assert str(tree.origin("train.stages.sft.optim.lr")) == "file mine.yaml:2"


def test_lists_replace(base):
    mine = write(base, "mine.yaml", "include: base.yaml\ndata: {sources: [{path: c.json}]}\n")
    tree = compose(mine)
    assert tree.data["data"]["sources"] == [{"path": "c.json"}]
    assert not [path for path in tree.origins if path[:3] == ("data", "sources", 1)]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("data.sources.0.ratio=2", ("data", "sources", 0, "ratio"), 2),
        ("data.sources.-1.ratio=2", ("data", "sources", 1, "ratio"), 2),
        ("model.connector.scales=[1,9]", ("model", "connector", "scales"), [1, 9]),
        ("train.stages.sft.optim.lr=1e-4", ("train", "stages", 1, "optim", "lr"), 1e-4),
        ("stages.align.optim.lr=1e-4", ("train", "stages", 0, "optim", "lr"), 1e-4),
        ("report.sinks=[console]", ("report", "sinks"), ["console"]),
        ("model.from=null", ("model", "from"), None),
        ("model.template=off", ("model", "template"), "off"),
        ("model.url=http://x/y?a=b", ("model", "url"), "http://x/y?a=b"),
        (
            'stages.sft.trainable."connector.**"=full',
            ("train", "stages", 1, "trainable", "connector.**"),
            "full",
        ),
        ("model.connector={kind: linear}", ("model", "connector"), {"kind": "linear"}),
    ],
)
def test_overrides(base, override, path, value):
    tree = compose(base, [override], aliases={"stages": "train.stages"})
    current = tree.data
    for key in path:
        current = current[key]
    assert current == value
    assert type(current) is type(value)
    assert tree.origin(join_path(path)).layer == "override"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.sources.2.ratio=1", ["there is no item 2", "the list has 2"]),
        ("train.stages.sfft.optim.lr=1", ["'sfft'", "did you mean 'sft'?"]),
        ("data.sources.first.ratio=1", ["no item is named 'first'", "none"]),
        ("model.template", ["is no override", "path=value"]),
        ("=3", ["is no override"]),
        ("model.x=[1,", ["bad YAML"]),
    ],
)
def test_bad_overrides_name_themselves(base, override, parts):
    with pytest.raises(ConfigError) as caught:
        compose(base, [override])
    for part in [override, *parts]:
        assert part in str(caught.value)


def test_bad_files_name_their_line(base, tmp_path):
    with pytest.raises(ConfigError, match=r"bad\.yaml:4:\d+: bad YAML"):
        compose(write(base, "bad.yaml", "a: 1\nb:\n  - [1, 2\nc: 3\n"))
    with pytest.raises(ConfigError, match=r"twice\.yaml:2: key 'a' stands twice"):
        compose(write(base, "twice.yaml", "a: 1\na: 2\n"))
    with pytest.raises(ConfigError, match="must be a mapping"):
        compose(write(base, "list.yaml", "- 1\n"))
    with pytest.raises(ConfigError, match=r"include: gone\.yaml does not exist"):
        compose(write(base, "inc.yaml", "include: gone.yaml\n"))
    with pytest.raises(ConfigError, match=r"circle.*loop\.yaml -> loop\.yaml"):
        compose(write(base, "loop.yaml", "include: loop.yaml\n"))
    with pytest.raises(ConfigError, match="did you mean 'llava15-7b/sft'"):
        compose("llava15-7b/stf")


def test_anchors_and_merges_work(base):
    tree = compose(write(base, "anchor.yaml", "a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  q: 3\n"))
    assert tree.data["b"] == {"p": 1, "q": 3}


def test_diff(base):
    changed = diff(compose(base), compose(base, ["model.template=plain", "seed=1"]))
    assert changed == [("model.template", "vicuna", "plain"), ("seed", "absent", 1)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1.", 1.0), ("on", "on"), ("no", "no"), ("true", True), ("1_000", 1000),
     ("", None), ("0.03", 0.03), (".5", 0.5), ("-1e3", -1000.0), ("1e3x", "1e3x"), ("v1", "v1"),
     (".inf", float("inf"))],
)  # fmt: skip
def test_scalars_are_what_people_expect(text, value):
    found = parse_value(text, where="x")
    assert found == value
    assert type(found) is type(value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab.*_", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), PLAIN, min_size=1, max_size=3))
def test_dump_composes_to_the_same_tree(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("dump") / "d.yaml"
    path.write_text(Tree(data=data).dump(), "utf-8")
    assert compose(path).data == {**data}


@given(PLAIN)
@example("0E0")
def test_flow_is_read_back(value):
    assert parse_value(flow(value), where="x") == value


@given(st.lists(st.text("ab.*", min_size=1), min_size=1, max_size=4))
def test_paths_round_trip(keys):
    assert split_path(join_path(keys)) == keys


def test_leaves_of_lists():
    assert dict(leaves({"a": [1, 2], "b": [{"c": 3}, 4], "d": {}})) == {
        ("a",): [1, 2], ("b", 0, "c"): 3, ("b", 1): 4, ("d",): {},
    }  # fmt: skip
