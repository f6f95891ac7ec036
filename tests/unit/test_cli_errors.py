"""What the command line makes of failures: one line on stderr and a code by kind."""

import errno
import json
import sys

import pytest
import typer

from retinue.cli import main
from retinue.core.compose import compose
from retinue.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EnvError,
    MediaError,
    RequestError,
    RetinueError,
)


@pytest.fixture
def failing(monkeypatch):
    """A function that puts a verb `fail` into the table which raises the given error."""

    def install(error):
        module = type("Verb", (), {"app": typer.Typer(add_completion=False)})

        def fail() -> None:
            raise error

        module.app.command()(fail)
        monkeypatch.setitem(main.VERBS, "fail", "fail")
        real = main.importlib.import_module

        def imported(name: str, package: str | None = None):
            return module if name.endswith("fail") else real(name, package)

        monkeypatch.setattr(main.importlib, "import_module", imported)

    return install


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (CheckpointError, 2),
        (RequestError, 2),
        (DataError, 3),
        (MediaError, 3),
        (EnvError, 4),
        (RetinueError, 1),
    ],
)
def test_user_errors_are_one_line_with_a_code_by_kind(failing, capsys, kind, code):
    failing(kind("is broken", where="x.json:3", rule="must be whole", fix="mend it"))
    assert main.run(["fail"]) == code
    out = capsys.readouterr()
    assert out.err == "retinue: x.json:3: is broken (must be whole); mend it\n"
    assert out.out == ""


def test_bugs_show_a_traceback_and_end_with_1(failing, capsys):
    failing(KeyError("depth"))
    assert main.run(["fail"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "KeyError: 'depth'" in err


def test_interruption_is_130(failing, capsys):
    failing(KeyboardInterrupt())
    assert main.run(["fail"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_full_disk_is_an_error_of_the_machine(failing, capsys):
    failing(OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"))
    assert main.run(["fail"]) == 4
    assert "out/model.safetensors: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["ls", "--nosuch"], ["nosuch"], ["cp"], ["doctor", "--device", "tpu"]]
)
def test_wrong_command_lines_are_2_without_traceback(capsys, arguments):
    assert main.run(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "--nosuch" in err or "nosuch" in err or "Missing" in err or "tpu" in err


def test_ls_lists_names_with_their_first_line(capsys):
    assert main.run(["ls", "encoders", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert "clip" in names
    assert all(line.endswith(".") for line in names.values())


def test_ls_of_an_unknown_family_names_the_nearest(capsys):
    assert main.run(["ls", "encoder"]) == 2
    assert "did you mean 'encoders'?" in capsys.readouterr().err


def test_cp_copies_a_recipe_and_does_not_overwrite(tmp_path, capsys):
    assert main.run(["cp", "llava15-7b/sft", str(tmp_path)]) == 0
    copy = tmp_path / "sft.yaml"
    assert copy.read_text("utf-8").startswith("# LLaVA-1.5")
    assert compose(copy).data == compose("llava15-7b/sft").data
    copy.write_text("mine", "utf-8")
    assert main.run(["cp", "llava15-7b/sft", str(tmp_path)]) == 2
    assert copy.read_text("utf-8") == "mine"
    assert "--force" in capsys.readouterr().err


def test_doctor_reports_machine_readable(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "cache"))
    code = main.run(["doctor", "--json"])
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    assert code == 0
    assert {"python", "torch", "device", "torchvision", "disk", "cache"} <= set(rows)
    assert "for --device auto" in rows["device"]["detail"]
    assert rows["cache"]["state"] == "ok"


def test_doctor_names_usable_quants(monkeypatch):
    from retinue.cli.doctor import quants

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = quants()
    assert found.detail.startswith("int4, int8; bnb4: bitsandbytes")


def test_doctor_reports_a_broken_package(tmp_path, monkeypatch):
    from retinue.cli.doctor import package, torchvision

    (tmp_path / "simplejpeg.py").write_text("raise RuntimeError('no libjpeg')", "utf-8")
    (tmp_path / "torchvision.py").write_text("", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "simplejpeg", raising=False)
    found = package("simplejpeg", extra="fast")
    assert found.state == "broken"
    assert "no libjpeg" in found.detail
    assert torchvision().state == "warning"
    assert package("no_such_package", extra="fast").state == "absent"
    assert package("no_such_package").state == "broken"
