"""SPHINX's Python interface: the original's snippets run with only the import line changed.

    from retinue.compat.sphinx import SPHINXModel

Prompts, stop rules and random draws are those of the original; `retinue.load` and its chat are what
new programs should use. Reference: Alpha-VLLM/LLaMA2-Accessory.
"""

from retinue.compat.sphinx.meta import MetaModel
from retinue.compat.sphinx.model import SPHINXModel
from retinue.compat.sphinx.tokenizer import SphinxTokenizer

__all__ = ["MetaModel", "SPHINXModel", "SphinxTokenizer"]
