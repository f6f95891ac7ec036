"""Replicas of our server under Ray Serve; docs/scaling.md counts how many.

pip install 'ray[serve]' 'retinue[serve]'
cd examples/ray && serve run deployment.yaml
"""

from __future__ import annotations

from typing import Any

import replica
from ray import serve


@serve.deployment
@serve.ingress(replica.DOOR)
class Retinue:
    """One replica. Arguments: a path, and keywords of `replica.open_door`."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        import replica  # this process's own door

        self.service = replica.open_door(path, **options)

    def check_health(self) -> None:
        """Ray replaces a replica that raises."""
        if self.service.background.broken is not None:
            raise RuntimeError("the engine has failed") from self.service.background.broken


def app(arguments: dict[str, Any]) -> Any:
    """What Ray builds. path: of the model; the rest goes to `replica.open_door`."""
    options = dict(arguments)
    return Retinue.bind(options.pop("path"), options)
