"""What a PATH argument means; where caches, runs and recipes lie."""

import pytest

from retinue.core.errors import CheckpointError
from retinue.core.paths import HubId, cache_dir, find_recipe, locate, recipes, run_dir


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("liuhaotian/llava-v1.5-7b", ("liuhaotian", "llava-v1.5-7b", None, None)),
        ("a/b@main", ("a", "b", "main", None)),
        ("a/b@refs/pr/3:sub", ("a", "b", "refs/pr/3", "sub")),
        ("a/b:deep/er", ("a", "b", None, "deep/er")),
        ("a/b:deep/", ("a", "b", None, "deep")),
        ("A_1/b.c-d", ("A_1", "b.c-d", None, None)),
    ],
)
def test_hub_ids(text, parts):
    found = HubId.parse(text)
    assert (found.owner, found.name, found.revision, found.subfolder) == parts
    assert HubId.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "name", "./a/b", "/a/b", "~/b", "a/b/c", "../b", "a/..", "a/b:../c", "a/b:", "a/b@",
     "a b/c", "a/b:/etc", "http://x/y", "C:\\a\\b", "a//b"],
)  # fmt: skip
def test_no_hub_ids(text):
    assert HubId.parse(text) is None


def test_a_local_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("owner/model") == HubId(owner="owner", name="model")
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert locate("owner/model").is_dir()


def test_neither_folder_nor_hub_id(tmp_path):
    with pytest.raises(CheckpointError, match=r"does not exist.*subfolder"):
        locate(str(tmp_path / "gone"))


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("RETINUE_CACHE", "/somewhere")
    assert cache_dir("hub").as_posix() == "/somewhere/hub"
    monkeypatch.delenv("RETINUE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir().as_posix() == "/xdg/retinue"


def test_run_dir_keeps_names_tame():
    assert run_dir("llava 1.5/sft").as_posix() == "runs/llava-1.5-sft"
    assert run_dir("some/where/my.yaml").as_posix() == "runs/my"
    assert run_dir("..", root="out").as_posix() == "out"


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
    assert recipes()
    for name, path in recipes().items():
        assert find_recipe(name) == find_recipe(f"recipe:{name}") == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("{}", "utf-8")
    assert find_recipe("mine.yaml").is_file()
