"""Bookkeeping of golden runs: a case that no test compared fails the run.

Active when a run collects the whole folder (`pytest tests/golden`, `pytest tests`), also under
xdist: the controller names a ledger file in RETINUE_GOLDEN_LEDGER, `cases.compared` appends to it.
`unread.txt` names cases that are not read yet, one `glob  reason` a line.
"""

import fnmatch
import os
import tempfile
from pathlib import Path

import cases
import pytest

ENV = "RETINUE_GOLDEN_LEDGER"
PROBLEMS = pytest.StashKey()


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return
    config.stash[PROBLEMS] = []
    handle, name = tempfile.mkstemp(prefix="golden-ledger-")
    os.close(handle)
    os.environ[ENV] = name
    config.add_cleanup(lambda: forget(name))


def forget(name):
    Path(name).unlink(missing_ok=True)
    if os.environ.get(ENV) == name:
        del os.environ[ENV]


def pytest_collection_modifyitems(items):
    for item in items:
        if cases.HERE in item.path.parents:
            item.add_marker("golden")


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput") or not whole_folder(session.config):
        return
    if session.shouldfail or session.shouldstop:  # `-x` or an interruption: a failed run already
        return
    with open(os.environ[ENV], encoding="utf-8") as ledger:
        seen = set(ledger.read().splitlines())
    problems = unread(seen, read_list(cases.HERE / "unread.txt"))
    session.config.stash[PROBLEMS] += problems
    if problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    problems = config.stash.get(PROBLEMS, [])
    if problems:
        terminalreporter.section("golden cases", sep="=", red=True)
        for line in problems:
            terminalreporter.line(line)


def whole_folder(config):
    """Whether this run was meant to collect every golden test."""
    options = config.option
    narrowed = options.keyword or options.collectonly or options.deselect
    if narrowed or getattr(options, "lf", False) or options.markexpr not in ("", "not gpu"):
        return False
    start = config.invocation_params.dir
    paths = [(start / str(arg).partition("::")[0]).resolve() for arg in config.args]
    whole = [path for path, arg in zip(paths, config.args, strict=True) if "::" not in str(arg)]
    return any(path == cases.HERE or path in cases.HERE.parents for path in whole)


def read_list(path):
    """(glob, reason) of each line; a line without a reason has an empty one."""
    if not path.exists():
        return []
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    parts = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(glob, reason.strip()) for glob, _, reason in parts]


def unread(seen, listed):
    """What is wrong with a run that compared the case folders `seen`: one line each."""
    found = [(system, case) for system in cases.systems() for case in cases.all_cases(system)]
    if not found:
        only = os.environ.get("RETINUE_GOLDEN_SYSTEM")
        return [f"no case found in {cases.ROOT}" + (f" for system {only!r}" if only else "")]
    problems = [f"unread.txt: {glob}: give a reason" for glob, reason in listed if not reason]
    for system, case in found:
        name = f"{system}/{case.name}"
        if str(case.resolve()) in seen:
            continue
        if not any(fnmatch.fnmatch(name, glob) for glob, _ in listed):
            problems.append(f"{name}: no test compared an output of this case")
    return problems
