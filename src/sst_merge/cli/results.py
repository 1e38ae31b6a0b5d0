"""Commands of experiment 1, and of what runs and result files say."""

import json
import os
import sys
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sst_merge.cli.options import AsJson, Set, command, reporter, repository
from sst_merge.errors import ConfigError

ResultFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Run folders, or result files (JSON).", show_default=False)
]

TABLE_WIDTH = 280  # characters of a table that does not go to a terminal
NARROW_WIDTH = 160  # characters below which the table of compare would be unreadable


def experiment(
    name: Annotated[str, typer.Argument(help="exp1: safety gained and utility lost, on one model or several.")],
    model: Annotated[
        str,
        typer.Option(help="smollm2-135m, mistral-7b, llama-3.1-8b, qwen-2.5-14b, all, a hub id or a folder."),
    ] = "smollm2-135m",
    mode: Annotated[str, typer.Option(help="minimal or full.")] = "minimal",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; one result for each.")] = "42",
    use_adapters: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--use-adapters",
            metavar="UTILITY SAFETY",
            help="PEFT folders; trained here when left out.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=PATH",
            help="Local copy of beavertails or mmlu; harmful, harmless: prompts; utility: prompts with answers.",
        ),
    ] = None,
    utility: Annotated[
        str | None, typer.Option(help="Utility task instead of the preset's: lm_eval:NAME or exact_match.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="model or plain (for base models without a template), instead of the preset's.")
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option("--allow-code-execution", help="Let tasks such as lm_eval:humaneval run code the model wrote."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, how long it takes here and what is missing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--replace", help="Go on with a run that is there, or throw it away.")
    ] = True,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Folder of the result files.")] = Path("results"),
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Train or take adapters, calibrate, merge, evaluate, and write result files and their comparison."""
    from sst_merge.experiments.exp1 import MODES, Exp1
    from sst_merge.experiments.presets import ALL, preset

    if name != "exp1":
        raise ConfigError(f"unknown experiment '{name}'. Known: exp1.")
    if mode not in MODES:
        raise ConfigError(f"--mode {mode}: unknown mode. Known: {', '.join(MODES)}.")
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise ConfigError(f"--seeds {seeds}: expected whole numbers separated by commas, such as 42,123,456.")
    sources = dict(_named(entry) for entry in data or [])
    planned = [
        Exp1(
            preset=preset(one, chat_template=chat_template),
            mode=mode,
            seed=int(seed),
            adapters=use_adapters,
            data=sources,
            utility=utility,
            allow_code_execution=allow_code_execution,
            overrides=tuple(overrides or ()),
            runs=runs,
            results=results,
            repository=repository() if one == "smollm2-135m" else None,
        )
        for one in (ALL if model == "all" else (model,))
        for seed in seeds.split(",")
    ]
    if dry_run:
        _print_forecasts(planned, as_json)
        return
    _run_experiments(planned, replace=not resume, as_json=as_json)


def _named(entry: str) -> tuple[str, str]:
    """``NAME=PATH`` as a pair."""
    name, separator, path = entry.partition("=")
    if not (separator and name and path):
        raise ConfigError(f"--data {entry}: expected NAME=PATH, such as --data mmlu=mmlu_copy.")
    return name, path


def _print_forecasts(planned: list[Any], as_json: bool) -> None:
    """What each experiment would do and what is missing."""
    from sst_merge.experiments.dry_run import forecast, measure_speed, told

    speed = measure_speed()
    found = [forecast(one, speed) for one in planned]
    typer.echo(json.dumps([one.to_dict() for one in found], indent=1) if as_json else "\n".join(map(told, found)))


def _run_experiments(planned: list[Any], *, replace: bool, as_json: bool) -> None:
    """Run one experiment after the other; the result files, and the table that compares them."""
    from sst_merge.atomic import replace_file
    from sst_merge.experiments.compare import compare as compare_files
    from sst_merge.experiments.compare import render
    from sst_merge.experiments.exp1 import run_exp1
    from sst_merge.rendering.terminal import rates_table
    from sst_merge.run_folder import RunFolder

    done = [run_exp1(one, reporter=reporter(), command=command(), replace=replace) for one in planned]
    table = done[0][0].parent / "comparison.md"
    replace_file(table, render(compare_files([file for file, _ in done]), "markdown"))
    if as_json:
        typer.echo(json.dumps([result for _, result in done], indent=1))
        return
    for file, result in done:
        results = json.loads(RunFolder(Path(result["run"])).results_file.read_text(encoding="utf-8"))
        title = f"{result['model']}, {result['mode']}, seed {result['seed']}"
        Console().print(rates_table({**results, "title": title}))
        for name, tax in results["safety_tax"].items():
            typer.echo(f"{name}: {tax['verdict']['code']}. {tax['verdict']['text']}")
        typer.echo(f"result: {file}   report: {result['run']}/report.html")
    typer.echo(f"comparison: {table}")


def audit(
    files: ResultFiles,
    seed: Annotated[int, typer.Option(help="Of the simulation for files of the prototype.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of text.")] = False,
) -> None:
    """What runs, and result files of experiment 1, support, in plain words; the prototype's, too."""
    from sst_merge.experiments import statements
    from sst_merge.experiments.audit import audit_files

    if as_json and as_markdown:
        raise ConfigError("give --json or --markdown, not both.")
    audits = audit_files(files, seed)
    if as_json:
        typer.echo(json.dumps([found.to_dict() for found in audits], indent=1, allow_nan=False))
    else:
        typer.echo(statements.as_markdown(audits) if as_markdown else statements.as_text(audits))


def compare(
    files: ResultFiles,
    style: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table, markdown, csv, html or json.")
    ] = "table",
    output: Annotated[Path | None, typer.Option("--output", help="File to write, instead of the terminal.")] = None,
) -> None:
    """One table over runs, and result files of experiment 1: gain, loss, tax or why there is none."""
    from sst_merge.atomic import replace_file
    from sst_merge.experiments import compare as comparison

    rows = comparison.compare(files)
    if style == "table":
        with StringIO() as text:
            to_terminal = output is None and sys.stdout.isatty()
            columns = os.environ.get("COLUMNS", "")
            width = min(int(columns), TABLE_WIDTH) if columns.isdecimal() and int(columns) else TABLE_WIDTH
            console = Console() if to_terminal else Console(file=text, width=width)
            if console.width < NARROW_WIDTH:
                console.print(comparison.blocks(rows), markup=False, highlight=False)
            else:
                console.print(comparison.rich_table(rows))
            result = text.getvalue().rstrip("\n")
        if to_terminal:
            return
    else:
        result = comparison.render(rows, style)
    if output is None:
        typer.echo(result)
        return
    if not output.is_file() and (output.exists() or not output.parent.is_dir()):
        raise ConfigError(f"--output {output} is no file in a folder that is there. Give a file to write.")
    try:
        replace_file(output.resolve(), f"{result}\n")
    except PermissionError as error:
        raise ConfigError(f"--output {output} cannot be written ({error.strerror}). Give a file to write.") from None
    typer.echo(f"{len(rows)} rows -> {output}")
