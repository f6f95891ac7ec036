"""ModelZoo's preprocessing: every array, path and count of the HDF5 files that it writes."""

import json

import numpy as np
import pytest
import yaml
from cases import cases, compared
from safetensors.numpy import load_file
from test_mz_models import SYSTEM

from retinue.core.errors import DataError
from retinue.data.prepare.run import prepare
from retinue.data.prepare.spec import parse_spec

h5py = pytest.importorskip("h5py")


def run(case, folder, **options):
    given = yaml.safe_load((case / "config.yaml").read_text("utf-8"))
    out = folder / "out"
    local = {**given, "setup": {**given["setup"], "output_dir": str(out)}}
    spec = parse_spec(local, where="case")
    own = case / "case_hooks.py"
    hooks = own if own.exists() else None
    return prepare(spec, root=case, given=given, hooks=hooks, **options)


@pytest.mark.parametrize("case", cases(SYSTEM, "h5_*"), ids=lambda case: case.name)
def test_prepare(case, tmp_path):
    expected = json.loads((case / "expected.json").read_text("utf-8"))
    if not expected["files"]:
        with pytest.raises(DataError):
            run(case, tmp_path, exact=True)
        assert not list((tmp_path / "out").glob("*.h5"))
        compared(case)
        return
    made = run(case, tmp_path, exact=True)
    assert {path.name for path in made.files} == set(expected["files"])
    arrays = load_file(case / "arrays.safetensors")
    for name, facts in expected["files"].items():
        with h5py.File(made.folder / name) as file:
            assert dict(file.attrs) == facts["attrs"]
            assert set(file) == set(facts["datasets"])
            for key, told in facts["datasets"].items():
                data = file[key]
                assert list(data.shape) == told["shape"], key
                assert list(data.chunks) == told["chunks"], key
                assert list(data.maxshape) == told["maxshape"], key
                assert data.compression == told["compression"]
                assert str(data.dtype) == told["dtype"], key
                if "values" in told:
                    assert data.asstr()[()].tolist() == told["values"]
                else:
                    found = data[()]
                    wanted = arrays[f"{name}/{key}"]
                    np.testing.assert_array_equal(found.astype(wanted.dtype), wanted, err_msg=key)
    report = json.loads((case / "out" / "data_params.json").read_text("utf-8"))
    assert made.report["features"] == report["features"]
    assert made.report["dataset"] == report["dataset"]
    assert made.report["processing"] == report["processing"]
    assert made.report["post-process"] == report["post-process"]
    compared(case)
