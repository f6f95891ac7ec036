"""The golden ledger, on a copy of it with cases of its own, run by pytest in a subprocess."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
TEST = """
import cases, pytest

@pytest.mark.parametrize("case", cases.cases("a", "read*"), ids=lambda path: path.name)
def test_reads(case):
    cases.compared(case)

def test_other():
    assert True
"""


@pytest.fixture
def project(tmp_path):
    """A project with two systems: a/{read_1,read_2,images} and b/{later}."""
    golden = tmp_path / "tests" / "golden"
    for name in ("a/read_1", "a/read_2", "a/images", "b/later"):
        (golden / name).mkdir(parents=True)
    for name in ("ledger.py", "cases.py"):
        shutil.copy(GOLDEN / name, golden / name)
    (golden / "test_a.py").write_text(TEST, "utf-8")
    (golden / "unread.txt").write_text("# list\nb/*  not built yet\n", "utf-8")
    (tmp_path / "tests" / "conftest.py").write_text('pytest_plugins = ["ledger"]\n', "utf-8")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\ntestpaths = ["tests"]\naddopts = "--import-mode=importlib"\n'
        'pythonpath = ["tests", "tests/golden"]\nmarkers = ["golden", "gpu"]\n',
        "utf-8",
    )
    return tmp_path


def run(project, *arguments, **env):
    base = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "PYTEST_"))}
    env = {**base, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    options = ["-q", "-p", "no:cacheprovider", "-p", "xdist"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    return subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("arguments", [["tests/golden"], ["tests"], [], ["-n", "2", "tests"]])
def test_all_compared_or_listed_passes(project, arguments):
    result = run(project, *arguments)
    assert result.returncode == 0, result.stdout
    assert "golden cases" not in result.stdout


@pytest.mark.parametrize("arguments", [["tests/golden"], ["-n", "2", "tests"]])
def test_an_uncompared_case_fails_the_run(project, arguments):
    (project / "tests/golden/a/new").mkdir()
    result = run(project, *arguments)
    assert result.returncode == 1
    assert "a/new: no test compared an output of this case" in result.stdout
    assert "a/images" not in result.stdout
    assert "b/later" not in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [["tests/golden/test_a.py"], ["tests/golden", "-k", "reads"], ["tests/golden", "-m", "golden"]],
)
def test_a_part_of_the_tests_is_not_judged(project, arguments):
    (project / "tests/golden/a/new").mkdir()
    assert run(project, *arguments).returncode == 0


def test_another_root_and_one_system(project):
    root = project / "held-out"
    for name in ("a/read_9", "b/unlisted"):
        (root / name).mkdir(parents=True)
    (project / "tests/golden/unread.txt").write_text("", "utf-8")
    result = run(project, "tests/golden", RETINUE_GOLDEN=str(root))
    assert result.returncode == 1
    assert "b/unlisted" in result.stdout
    one = run(project, "tests/golden", RETINUE_GOLDEN=str(root), RETINUE_GOLDEN_SYSTEM="a")
    assert one.returncode == 0, one.stdout


def test_a_run_without_cases_fails(project):
    (project / "empty").mkdir()
    result = run(project, "tests/golden", RETINUE_GOLDEN=str(project / "empty"))
    assert result.returncode == 1
    assert "no case found" in result.stdout


def test_a_listed_case_needs_a_reason(project):
    (project / "tests/golden/unread.txt").write_text("b/*\n", "utf-8")
    result = run(project, "tests/golden")
    assert result.returncode == 1
    assert "give a reason" in result.stdout
