"""Key rules are invertible: every name that a map writes, it reads back, and the reverse."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.convert.hf import hf_keys
from retinue.convert.keymap import Coverage, KeyMap, Op, Rule
from retinue.convert.llava import llava_keys, projector_keys
from retinue.model.spec import as_config

WORD = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)
PLACE = st.one_of(WORD, st.integers(0, 99).map(str))
REST = st.lists(PLACE, min_size=1, max_size=5).map(".".join)
OURS = st.one_of(
    REST.map("encoders.clip.net.{}".format),
    REST.map("connector.net.{}".format),
    st.just("layout.newline"),
    REST.map("lm.model.{}".format),
    st.just("lm.lm_head.weight"),
)
MAPS = {
    "llava": llava_keys(),
    "llava, bare tower": llava_keys(vision_model=False),
    "hf": hf_keys(as_config({"model_type": "llama"})),
}
HF_PROJECTOR = ("connector.net.0.", "connector.net.2.")


@pytest.mark.parametrize("name", MAPS)
@settings(deadline=None)
@given(OURS)
def test_our_names_come_back(name: str, ours: str) -> None:
    keys = MAPS[name]
    if name == "hf" and ours.startswith("connector.") and not ours.startswith(HF_PROJECTOR):
        return
    foreign = keys.from_retinue(ours)
    assert foreign is not None
    if not (name == "llava, bare tower" and ours.startswith("encoders.clip.net.vision_model.")):
        assert keys.to_retinue(foreign) == ours


@settings(deadline=None)
@given(REST, st.integers(0, 40), WORD)
def test_a_rule_reads_in_both_directions(rest: str, number: int, word: str) -> None:
    rule = Rule("a.{n:int}.{rest}", "b.{rest}.c.{n:int}")
    ours = rule.forward(f"a.{number}.{rest}")
    assert ours == f"b.{rest}.c.{number}"
    assert rule.backward(ours) == f"a.{number}.{rest}"
    assert rule.forward(f"a.{word}.{rest}") is None


def test_both_spellings_of_a_tower_are_read_and_one_is_written() -> None:
    keys = llava_keys()
    stem = "model.vision_tower.vision_tower."
    ours = "encoders.clip.net.pre_layrnorm.weight"
    assert keys.to_retinue(f"{stem}vision_model.pre_layrnorm.weight") == ours
    assert keys.to_retinue(f"{stem}pre_layrnorm.weight") == ours
    assert keys.from_retinue(ours) == f"{stem}vision_model.pre_layrnorm.weight"
    assert llava_keys(vision_model=False).from_retinue(ours) == f"{stem}pre_layrnorm.weight"


@pytest.mark.parametrize(
    "stem", ["model.mm_projector.", "mm_projector.", "base_model.model.model.mm_projector."]
)
def test_projector_files_count_by_what_follows_the_name(stem: str) -> None:
    assert projector_keys().to_retinue(f"{stem}2.bias") == "connector.net.2.bias"
    assert projector_keys().to_retinue("model.layers.0.mlp.up_proj.weight") is None


def test_a_rule_that_loses_or_invents_a_hole_is_refused() -> None:
    with pytest.raises(AssertionError):
        Rule("{a}.{b}", "{a}")
    with pytest.raises(AssertionError):
        Rule("{a}", "{a}.{b}")
    assert Rule("{a}.{b}", "{a}", written=False).backward("x") is None


def test_ignorable_keys_and_ops() -> None:
    keys = KeyMap([Rule("w.{n:int}", "v.{n:int}", Op(lambda t: t + 1, lambda t: t - 1))])
    found = keys.match("w.3")
    assert found is not None
    assert found[0] == "v.3"
    assert found[1].op is not None
    assert found[1].op.invert(found[1].op.apply(5)) == 5
    assert keys.match("w.x") is None
    assert keys.ignores("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert keys.ignores("vision_model.embeddings.position_ids")
    assert not keys.ignores("model.norm.weight")


def test_a_coverage_says_what_is_odd() -> None:
    cover = Coverage(used=["a"], unused=[f"u{n}" for n in range(20)], missing=["m"])
    text = str(cover)
    assert not cover.complete
    assert "1 used, 20 unused, 1 missing" in text
    assert "unused  u0" in text
    assert "and 8 more" in text
    assert "missing m" in text
    assert Coverage(used=["a"]).complete
