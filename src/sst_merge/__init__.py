"""SST-Merge: merge a utility LoRA and a safety LoRA, and measure honestly what that gained and what it cost.

From Python as from the command line::

    from sst_merge import RunConfig, load_config, run

    config = load_config(RunConfig, Path("mine.yaml"), ["method.strength=1.5"])
    results = run(config)                          # results.json; until="merge" ends with the adapter
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sst_merge.adapter_io import read_adapter, write_adapter
    from sst_merge.config import RunConfig, TrainConfig
    from sst_merge.methods import METHODS
    from sst_merge.run_file import load_config, validate
    from sst_merge.stages.run import run
    from sst_merge.stages.train import train

__version__ = version("sst-merge")
__all__ = [
    "METHODS",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "read_adapter",
    "run",
    "train",
    "validate",
    "write_adapter",
]

_HOMES = {
    "METHODS": "methods",
    "RunConfig": "config",
    "TrainConfig": "config",
    "load_config": "run_file",
    "read_adapter": "adapter_io",
    "run": "stages.run",
    "train": "stages.train",
    "validate": "run_file",
    "write_adapter": "adapter_io",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: ``sst-merge --help`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
