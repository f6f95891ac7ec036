"""`--tp N`: processes that share the layers of one language model, one of which is the command."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from retinue.cli.launch import PARENT, replicas
from retinue.core.errors import ConfigError
from retinue.parallel.launch import launch_of

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from retinue.model.retinue import Retinue
    from retinue.parallel.tensor_channel import Channel

TensorParallel = Annotated[
    int | None,
    typer.Option(
        "--tp",
        min=1,
        metavar="N",
        help="Processes that divide the language model's layers, each on a GPU of its own; started "
        "here, or by torchrun or srun beforehand.",
    ),
]
"""Type of a verb's `tp` argument; give it the default None."""


class Shared:
    """This process among those that share a model. `channel`: once the model is taken."""

    def __init__(self) -> None:
        launch = launch_of(os.environ)
        self.size, self.follows = launch.size, launch.rank > 0
        self.channel: Channel | None = None
        self._model: Retinue | None = None

    def meet(self, device: torch.device) -> tuple[torch.device, DeviceMesh | None]:
        """Where this process computes, and the mesh of all; no mesh where it is alone."""
        if self.size == 1:
            return device, None
        if self.follows:
            quiet()
        from retinue.parallel.tensor_channel import meet

        mesh, own = meet(device)
        return own, mesh

    def take(self, model: Retinue) -> None:
        """Lead with a divided model, or follow until the leader is done and then typer.Exit."""
        from retinue.parallel.mesh import leave
        from retinue.parallel.tensor_channel import Channel
        from retinue.parallel.tensor_lead import follow, lead

        self.channel = Channel(model.device)
        if not self.follows:
            lead(model, self.channel)
            self._model = model
            return
        follow(model, self.channel)
        leave()
        raise typer.Exit()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a server runs: if the processes part it is told to stop, and the error comes."""
        found: list[Exception] = []

        def part(error: Exception) -> None:
            if not found:
                os.kill(os.getpid(), signal.SIGTERM)
            found.append(error)

        if self.channel is not None:
            self.channel.on_loss = part
        yield
        if found:
            raise found[0]

    def end(self) -> None:
        """Let the followers go."""
        from retinue.parallel.tensor_lead import dismiss

        if self._model is not None:
            dismiss(self._model)
            self._model = None


@contextmanager
def sharing(tp: int | None) -> Iterator[Shared]:
    """Inside: `tp` processes, the others running this same command; those of a launch as they are.

    Raises ConfigError where a launch has another number of processes.
    """
    size = launch_of(os.environ).size
    if size > 1 and tp not in (None, size):
        raise ConfigError(
            f"--tp {tp} in a launch of {size} processes",
            rule="they all share one model",
            fix="leave --tp out, or start as many processes",
        )
    count = 1 if size > 1 else tp or 1
    with replicas(count, arguments(), again="run the same command again"):
        shared = Shared()
        yield shared
        shared.end()
        if shared.channel is not None and size > 1:
            from retinue.parallel.mesh import leave

            leave()


def arguments() -> list[str]:
    """The command line of the verb that runs."""
    import click

    context = click.get_current_context(silent=True)
    found = None if context is None else context.find_root().obj
    return list(sys.argv[1:] if found is None else found)


def quiet() -> None:
    """The first process speaks for all, and decides when they stop."""
    import transformers

    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  until the process ends
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if PARENT in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
