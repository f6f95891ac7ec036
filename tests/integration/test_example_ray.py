"""examples/ray: a replica answers behind its door, and the deployment names what is there."""

import ast
import importlib.util
from pathlib import Path

import yaml

from loopback_app import listening
from retinue.hub.save import save
from retinue.serve.engine import EngineSpec
from retinue.serve.service import ServeSpec
from serve_client import GREEDY, call, turn
from tiny import tiny_model

FOLDER = Path(__file__).parents[2] / "examples" / "ray"


def test_a_replica_answers_behind_its_door(tmp_path):
    spec = importlib.util.spec_from_file_location("replica", FOLDER / "replica.py")
    replica = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replica)
    save(*tiny_model(seed=5), tmp_path / "model")
    service = replica.open_door(
        str(tmp_path / "model"), name="m", engine={"rows": 4}, limits={"requests": 4}
    )
    with listening(replica.DOOR) as address:
        assert call(address, "/health") == (200, {"status": "ok"})
        body = {"model": "m", "messages": turn("what?"), **GREEDY}
        assert call(address, "/v1/chat/completions", body)[0] == 200
    service.engine.check_integrity()


def test_the_configuration_fits():
    (application,) = yaml.safe_load((FOLDER / "deployment.yaml").read_text())["applications"]
    module, _, builder = application["import_path"].partition(":")
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert {builder, *(one["name"] for one in application["deployments"])} <= names
    arguments = application["args"]
    EngineSpec.parse(arguments["engine"])
    ServeSpec.parse(arguments["limits"])
    assert set(arguments) == {"path", "name", "engine", "limits"}
