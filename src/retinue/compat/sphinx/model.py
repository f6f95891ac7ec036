"""`SPHINXModel`: the class of the original's README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL.Image import Image

from retinue.compat.sphinx.meta import MetaModel
from retinue.convert.sphinx import Precision
from retinue.core.errors import RequestError
from retinue.hub.load import load_with_report
from retinue.hub.sphinx import open_sphinx
from retinue.ops.backend import pick_device
from retinue.types import Message, Text

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Turn = Sequence[str | None]


class SPHINXModel(MetaModel):
    """Questions about a picture, answered as the original does: same prompt, same seeds.

    `from_pretrained` finds variant, config and tokenizer in the last folder unless they are given.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_path: str | Path | Sequence[str | Path],
        llama_type: str | None = None,
        llama_config: str | Path | Sequence[str | Path] | None = None,
        tokenizer_path: str | Path | None = None,
        with_visual: bool = False,
        max_seq_len: int = 4096,
        mp_group: Any = None,
        dtype: torch.dtype = torch.bfloat16,
        device: str = "auto",
        quant: bool = False,
        precision: Precision = "original",
    ) -> Self:
        """A model of one folder or of several, later ones over earlier ones.

        with_visual: accepted without effect, the weights say what the model sees; mp_group: a
        process group whose ranks share the language model's layers; all of them load and ask
        together, and get the same answers; quant: 4 bits per weight, in one process; precision,
        ours: clean resamples pictures by Pillow's filters, without fp16.
        Raises CheckpointError naming a missing file and the argument that replaces it, ConfigError
        for a group among which the heads cannot be dealt out.
        """
        del with_visual
        files = [llama_config] if isinstance(llama_config, str | Path) else llama_config
        paths: list[str | Path] = (
            [pretrained_path] if isinstance(pretrained_path, str | Path) else list(pretrained_path)
        )
        opened = open_sphinx(
            [hub_path(path) for path in paths],
            llama_type=llama_type,
            llama_config=list(files or ()),
            tokenizer_path=tokenizer_path,
            precision=precision,
        )
        place = pick_device(device)[0]
        found = load_with_report(
            opened,
            device=place,
            dtype=dtype,
            quant="bnb4" if quant else None,
            mesh=mesh_of(mp_group, place),
        )
        return cls(found.model, found.processor, max_seq_len=max_seq_len)

    def generate_response(
        self,
        qas: Sequence[Turn],
        image: Image | None,
        max_gen_len: int = 512,
        temperature: float = 0.1,
        top_p: float = 0.5,
        seed: int = 0,
    ) -> str:
        """The answer to the last question of [[question, answer], ...], whose answer is None.

        The seed is set on every call, so the same question has the same answer.
        """
        answers = self.generate(
            prompts=[self._prompt(qas, seed)],
            images=None if image is None else [image.convert("RGB")],
            max_gen_len=max_gen_len,
            temperature=temperature,
            top_p=top_p,
            additional_stop_symbols=self.processor.template.stop,
        )
        return answers[0]

    def stream_response(
        self,
        qas: Sequence[Turn],
        image: Image | None,
        max_gen_len: int = 512,
        temperature: float = 0.1,
        top_p: float = 0.5,
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """As `generate_response`, piece by piece; see `stream_generate`."""
        return self.stream_generate(
            prompt=self._prompt(qas, seed),
            image=None if image is None else image.convert("RGB"),
            max_gen_len=max_gen_len,
            temperature=temperature,
            top_p=top_p,
            additional_stop_symbols=self.processor.template.stop,
        )

    def _prompt(self, qas: Sequence[Turn], seed: int) -> str:
        if not qas or qas[-1][1] is not None:
            raise RequestError(
                "the last question has an answer already",
                rule="qas is [[question, answer], ..., [question, None]]",
            )
        torch.manual_seed(seed)
        np.random.seed(seed)
        return prompt_of(self, qas)


def mesh_of(group: Any, device: torch.device) -> DeviceMesh | None:
    """The ranks of a process group as one line; None for no group, or one of a single rank."""
    if group is None or group.size() == 1:
        return None
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(group, device.type, mesh_dim_names=("tensor",))


def hub_path(path: str | Path) -> str | Path:
    """`hf://owner/repo/tree/main/sub/folder` as retinue writes it: `owner/repo@main:sub/folder`."""
    if not str(path).startswith("hf://"):
        return path
    owner, repo, *rest = str(path).removeprefix("hf://").strip("/").split("/")
    revision = f"@{rest[1]}" if rest[:1] == ["tree"] and len(rest) > 1 else ""
    inside = "/".join(rest[2:] if revision else rest)
    return f"{owner}/{repo}{revision}" + (f":{inside}" if inside else "")


def prompt_of(model: MetaModel, qas: Sequence[Turn]) -> str:
    """The text of a conversation that asks for its last answer."""
    messages = []
    for question, answer in qas:
        messages.append(Message(role="user", parts=(Text(text=str(question)),)))
        if answer is not None:
            messages.append(Message(role="assistant", parts=(Text(text=answer),)))
    return model.processor.template.text(messages, reply=qas[-1][1] is None)
