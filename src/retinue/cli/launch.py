"""Several processes on this machine: the same command again, with torchrun's variables.

Whatever process fails, one line says so: the others report to the first, which speaks, and none
outlives it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from retinue.core.errors import ConfigError, RetinueError
from retinue.parallel.launch import launch_of, peers_lost

if TYPE_CHECKING:
    from retinue.parallel.spec import ParallelSpec

PATIENCE_S = 30.0
"""How long the other processes may take to end once this one is done."""
GRACE_S = 15.0
"""How long this one may take to notice that another is gone."""
STOPPED = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of processes that ended as they were asked to."""
RESUME = "run the same command again to go on from the last checkpoint"
"""What a user is told to do when a process has gone without a word."""
TOLD, PARENT = "RETINUE_TOLD", "RETINUE_PARENT"
"""In the other processes: the folder for their last words, and the process they belong to."""


@contextmanager
def replicas(count: int, arguments: Sequence[str], *, again: str = RESUME) -> Iterator[None]:
    """Inside: this process is rank 0 of `count`; the others run `retinue ARGUMENTS`.

    The cores are shared out. When this process fails, the others are ended; when another fails, its
    error is raised here. Raises ConfigError within a launch of torchrun or SLURM.
    """
    if count < 2:
        yield
        return
    size = launch_of(os.environ).size
    if size > 1:
        raise ConfigError(
            f"{count} processes asked for in one of {size} that were started together",
            where="--processes",
            rule="torchrun or srun say how many there are",
            fix="leave the option out",
        )
    from retinue.ops.backend import default_threads

    with tempfile.TemporaryDirectory(prefix="retinue-") as told:
        launch = {
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": str(max(1, default_threads() // count)),
        }
        before = {name: os.environ.get(name) for name in (*launch, "RANK", "LOCAL_RANK")}
        others = Others(count, arguments, {**os.environ, **launch}, Path(told), again=again)
        os.environ.update({**launch, "RANK": "0", "LOCAL_RANK": "0"})
        done = False
        try:
            yield
            done = True
        except Exception as error:
            if peers_lost(error) and (failure := others.failure(patience_s=GRACE_S)):
                raise failure from None
            raise
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            others.end(patience_s=PATIENCE_S if done else 0.0)


def declared(spec: ParallelSpec) -> int:
    """Processes that a `parallel` section asks for, unless they have been started already."""
    if launch_of(os.environ).size > 1:
        return 1
    return spec.tensor * (1 if spec.data == "auto" else spec.data)


class Others:
    """The processes that this one has started, watched until `end`."""

    def __init__(
        self,
        count: int,
        arguments: Sequence[str],
        environment: dict[str, str],
        told: Path,
        *,
        again: str = RESUME,
    ) -> None:
        self.told, self.again = told, again
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            own |= {TOLD: str(told), PARENT: str(os.getpid())}
            self.processes[rank] = subprocess.Popen(
                [sys.executable, "-m", "retinue", *arguments], env={**environment, **own}
            )
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def failure(self, *, patience_s: float = 0.0) -> RetinueError | None:
        """The error of the first that ended without being asked to."""
        late = time.monotonic() + patience_s
        while True:
            for rank, process in self.processes.items():
                if (code := process.poll()) is not None and code not in STOPPED:
                    return self._failure(rank, code)
            if time.monotonic() > late:
                return None
            time.sleep(0.1)

    def _failure(self, rank: int, code: int) -> RetinueError:
        try:
            words = (self.told / str(rank)).read_text("utf-8")
        except OSError:
            words = ""
        if words and words != LOST:
            error = RetinueError(words)
            error.exit_code = code
            return error
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        error = RetinueError(
            f"process {rank} of {len(self.processes) + 1} has ended ({how})",
            fix=self.again,
        )
        error.exit_code = 4
        return error

    def _watch(self) -> None:
        """Where this process hangs in a collective that another has left, end it."""
        while not self._over.wait(0.5):
            if self.failure() is not None and not self._over.wait(GRACE_S):
                error = self.failure()
                print(f"retinue: {error}", file=sys.stderr, flush=True)
                for process in self.processes.values():
                    process.kill()
                os._exit(4 if error is None else error.exit_code)

    def end(self, *, patience_s: float) -> None:
        """Wait for the processes to finish, then insist."""
        self._over.set()
        if "torch" in sys.modules:
            from retinue.parallel.mesh import leave

            leave()
        for process in self.processes.values():
            try:
                process.wait(timeout=patience_s or 0.1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


LOST = "lost"
"""The last word of a process that ends because another did."""


def last_words(error: Exception) -> bool:
    """In a process that another has started: leave it the error instead of saying it.

    False where this process speaks for itself.
    """
    folder = os.environ.get(TOLD)
    if folder is None:
        return False
    try:
        words = LOST if peers_lost(error) else str(error)
        (Path(folder) / os.environ["RANK"]).write_text(words, "utf-8")
    except OSError:  # the folder goes with the one that would read it
        pass
    return True


def follow_parent() -> None:
    """In a process that another has started: end when that one has, however it did."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os._exit(4)

    threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
