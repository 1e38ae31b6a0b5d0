"""The command line: one short function per verb. Results go to stdout, progress to stderr."""

import errno
import logging
import sys
import traceback
from typing import Annotated

import typer

from sst_merge.allocator import keep_freed_memory
from sst_merge.cli import listings, results, runs
from sst_merge.errors import ConfigError, InvalidResultError, RunFolderError, SSTMergeError

app = typer.Typer(
    name="sst-merge",
    help="Merge a utility LoRA and a safety LoRA, and measure honestly what that gained and what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED, CLOSED_PIPE = 130, 141  # exit codes as shells have them: 128 and the number of the signal

for verb in (
    runs.demo,
    runs.run,
    runs.check,
    runs.plan,
    runs.calibrate,
    runs.merge,
    runs.evaluate,
    runs.report,
    runs.train,
    results.experiment,
    listings.methods,
    listings.tasks,
    listings.data,
    listings.models,
    results.audit,
    results.compare,
):
    app.command()(verb)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from sst_merge import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: a user's mistake ends in one message, a bug in a traceback."""
    keep_freed_memory()
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a warning of a kernel nobody asked for
    try:
        app()
    except SystemExit as end:
        _say_what_ended(end)
        raise
    except SSTMergeError as error:
        if error.__cause__ is not None and isinstance(error, InvalidResultError):
            traceback.print_exception(error.__cause__)  # what broke a merge may be a mistake of ours
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            typer.echo(f"ConfigError: this is no path, it is too long: {error.filename}", err=True)
            sys.exit(ConfigError.exit_code)
        if not _is_full_disk(error):
            raise
        filename = getattr(error, "filename", None)
        where = f" while writing {filename}" if filename else ""
        typer.echo(
            f"RunFolderError: no space left on the disk{where}. Free some space and run the same command again.",
            err=True,
        )
        sys.exit(RunFolderError.exit_code)


def _say_what_ended(end: SystemExit) -> None:
    """An interruption gets a sentence; a reader that went away (``| head``) is no mistake of the input.

    Raises:
        SystemExit: With 141, as of a process that wrote into a closed pipe.
    """
    if end.code == INTERRUPTED:
        typer.echo(
            "\nInterrupted. What is finished is kept: the same command goes on from there (a training begins anew).",
            err=True,
        )
    elif isinstance(end.__context__, OSError) and end.__context__.errno == errno.EPIPE:
        raise SystemExit(CLOSED_PIPE) from None


def _is_full_disk(error: Exception) -> bool:
    """Whether a write found no space; safetensors says so in the text of an error of its own."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return type(error).__name__ == "SafetensorError" and f"(os error {errno.ENOSPC})" in str(error)
