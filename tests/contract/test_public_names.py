"""`import retinue`: lazy names, and registration with transformers in every import order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import retinue


def test_names_are_sorted_and_resolve():
    assert list(retinue.__all__) == sorted(retinue.__all__)
    for name in retinue.__all__:
        assert getattr(retinue, name) is not None
    with pytest.raises(AttributeError, match="'lod'"):
        retinue.lod  # noqa: B018


def test_lazy_table_type_hints_and_all_agree():
    lazy = set(retinue._NAMES)
    tree = ast.parse(Path(retinue.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    hinted = {alias.name for node in block.body for alias in node.names}
    assert lazy == hinted == set(retinue.__all__) - {"__version__"}


def test_no_name_is_a_package_of_ours():
    """Importing a subpackage sets an attribute of its name, which would hide the function."""
    modules = {path.stem for path in Path(retinue.__file__).parent.iterdir()}
    assert not modules & set(retinue.__all__)


def test_version_is_the_package_s():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    assert f'version = "{retinue.__version__}"' in text


CHECK = """
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from retinue.model.spec import RetinueConfig
assert CONFIG_MAPPING["retinue"] is RetinueConfig
assert MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[RetinueConfig].__name__ == "Retinue"
assert PROCESSOR_MAPPING[RetinueConfig].__name__ == "Processor"
from retinue import _register
assert not _register._waiting and _register._finder not in sys.meta_path
"""


@pytest.mark.parametrize(
    "first",
    [
        "import sys, retinue; assert not {'torch', 'transformers'} & set(sys.modules)",
        "import sys; from transformers import AutoModelForImageTextToText; import retinue",
        # The auto module is loaded from the middle of transformers.generation here.
        "import sys, retinue; from transformers import LlamaForCausalLM",
        "import sys, retinue.processor",
    ],
    ids=["retinue first", "auto classes first", "from within transformers", "from within retinue"],
)
def test_auto_classes_know_us(first):
    result = subprocess.run(
        [sys.executable, "-c", f"{first}\n{CHECK}"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
