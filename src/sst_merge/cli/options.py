"""What the commands have in common: arguments, and what they make of them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sst_merge.errors import ConfigError

File = Annotated[Path, typer.Argument(help="Run file (YAML).", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run file, e.g. method.strength=0.8."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Throw an existing run in the output folder away; statistics that fit stay.")
]
Output = Annotated[Path | None, typer.Option("--output", help="Run folder, instead of the run file's.")]


def repository() -> Path:
    """The checkout that holds configs/ and examples/."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "configs" / "demo.yaml").is_file():
        raise ConfigError(
            "the demo's adapters and run file are in the repository, not in the package: clone it and run make demo."
        )
    return root


def command() -> str:
    """What the user typed."""
    return " ".join(["sst-merge", *sys.argv[1:]])


def reporter() -> Any:
    """Progress and notes on stderr."""
    from sst_merge.progress import TerminalReporter

    return TerminalReporter()


def changes(overrides: list[str] | None, output: Path | None) -> list[str]:
    """``--set`` and ``--output`` as ``--set`` has it."""
    return [*(overrides or []), *([f"output={json.dumps(str(output))}"] if output else [])]


def load(file: Path, overrides: list[str] | None, output: Path | None = None) -> Any:
    """A run file with its changes."""
    from sst_merge.config import RunConfig
    from sst_merge.run_file import load_config

    return load_config(RunConfig, file, changes(overrides, output))
