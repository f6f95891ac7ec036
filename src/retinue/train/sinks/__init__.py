"""Sink table: where the numbers of a run go while it runs."""

from retinue.core.registry import Registry

SINKS: Registry[type] = Registry(
    "sink",
    {
        "console": "retinue.train.sinks.console:ConsoleSink",
        "jsonl": "retinue.train.sinks.jsonl:JsonlSink",
        "tensorboard": "retinue.train.sinks.tensorboard:TensorBoardSink",
    },
)
