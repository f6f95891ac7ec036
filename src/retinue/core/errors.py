"""Every error a user can cause, with the place, the rule and the fix in one line.

RetinueError            exit 1
├── ConfigError         exit 2   a recipe, an override, a spec, a command line
├── CheckpointError     exit 2   a folder that is no checkpoint, misfit or truncated weights
├── RequestError        exit 2   a chat or generate request that cannot be served
├── DataError           exit 3   a sample: placeholders, empty answers, malformed rows
│   └── MediaError      exit 3   an image or video: missing, broken, too large
└── EnvError            exit 4   the machine: a missing package, no network, a full disk
"""

from __future__ import annotations

import errno


class RetinueError(Exception):
    """A failure to tell the user about: what happened, where, which rule, how to mend it."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        rule: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.rule, self.fix = what, where, rule, fix
        line = f"{where}: {what}" if where else what
        if rule:
            line += f" ({rule})"
        if fix:
            line += f"; {fix}"
        super().__init__(line)


class ConfigError(RetinueError):
    exit_code = 2


class CheckpointError(RetinueError):
    exit_code = 2


class RequestError(RetinueError):
    exit_code = 2


class DataError(RetinueError):
    exit_code = 3


class MediaError(DataError):
    pass


class EnvError(RetinueError):
    exit_code = 4


WRONG_PATH = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def of_os(error: OSError, *, where: str | None = None) -> RetinueError:
    """What the user is told of a file that could not be written or read: EnvError, or ConfigError
    where the path itself is wrong."""
    where = where or (str(error.filename) if error.filename else None)
    reason = error.strerror or str(error)
    if isinstance(error, WRONG_PATH):
        return ConfigError("cannot be used", where=where, rule=reason, fix="check the path")
    if error.errno in NO_ROOM:
        return EnvError("the disk is full", where=where, rule=reason, fix="free some space")
    return EnvError("cannot be written or read", where=where, rule=reason)
