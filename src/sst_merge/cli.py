"""The command line: one short function per verb. Results go to stdout, progress to stderr."""

import errno
import json
import logging
import sys
import traceback
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sst_merge.allocator import keep_freed_memory
from sst_merge.catalogue import method_entry, task_entry, wheel
from sst_merge.errors import ConfigError, InvalidResultError, RunFolderError, SSTMergeError

app = typer.Typer(
    name="sst-merge",
    help="Merge a utility LoRA and a safety LoRA, and measure honestly what that gained and what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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

ResultFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Run folders, or result files (JSON).", show_default=False)
]

TABLE_WIDTH = 280  # characters of a table that does not go to a terminal
INTERRUPTED, CLOSED_PIPE = 130, 141  # exit codes as shells have them: 128 and the number of the signal
NARROW_WIDTH = 160  # characters below which the table of compare would be unreadable


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", help="Run folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
    replace: Replace = False,
) -> None:
    """The whole flow on a real 135M chat model: no hub, no GPU, no account."""
    from sst_merge.stages.run import run as run_stages

    root = _repository()
    config = _load(root / "configs" / "demo.yaml", [f"output={json.dumps(str(output))}"])
    _print_report(
        run_stages(config, root=root, reporter=_reporter(), command=_command(), replace=replace), config, as_json
    )


@app.command()
def run(
    file: File, overrides: Set = None, output: Output = None, as_json: AsJson = False, replace: Replace = False
) -> None:
    """Plan, calibrate, merge, evaluate and report; resumes an interrupted run."""
    results, config = _stage("report", file, overrides, output, replace=replace)
    _print_report(results, config, as_json)


@app.command()
def check(file: File, overrides: Set = None, output: Output = None) -> None:
    """Every problem in a run or training file, its adapters, data and output; loads no weights, writes nothing."""
    from sst_merge.run_file import is_training_file

    if is_training_file(file):
        _check_training(file, overrides, output)
    else:
        _check_run(file, overrides, output)


def _check_training(file: Path, overrides: list[str] | None, output: Path | None) -> None:
    from sst_merge.config import TrainConfig
    from sst_merge.run_file import load_config
    from sst_merge.stages.run import fetch_model
    from sst_merge.stages.train import check_targets, prepare

    config = load_config(TrainConfig, file, _changes(overrides, output))
    made = prepare(config, root=Path())
    fetch_model(config.base_model, _reporter())
    check_targets(config)
    counts = f"{len(made.learn)} rows to learn, {len(made.validation)} that decide when to stop"
    held_out = "".join(f", {len(rows)} of {task}" for task, rows in made.held_out.items())
    typer.echo(f"{file}: no problems found. {counts}{held_out}.")


def _check_run(file: Path, overrides: list[str] | None, output: Path | None) -> None:
    from sst_merge.rendering.terminal import plan_sentence
    from sst_merge.stages.plan import describe, problems
    from sst_merge.stages.plan import plan as make_plan
    from sst_merge.stages.run import fetch_model

    try:
        config = _load(file, overrides, output)
    except ConfigError as error:
        raise ConfigError(f"{error}\nAdapters and data are looked at when this is mended.") from None
    fetch_model(config.base_model, _reporter())
    try:
        made = make_plan(config, root=Path())
        made.folder.refuse_foreign(made.identity)
    except SSTMergeError as error:
        *others, last = problems(config, error, root=Path())
        for problem in others:
            typer.echo(f"{type(problem).__name__}: {problem}", err=True)
        raise last from None
    description = describe(made)
    for note in description["notes"]:
        _reporter().say(f"note: {note}")
    typer.echo(f"{file}: no problems found. {plan_sentence(description)}")


@app.command()
def plan(
    file: File, overrides: Set = None, output: Output = None, as_json: AsJson = False, replace: Replace = False
) -> None:
    """What a run will measure and how large it gets; writes plan.json."""
    from sst_merge.rendering.terminal import plan_sentence

    description, config = _stage("plan", file, overrides, output, replace=replace)
    typer.echo(json.dumps(description, indent=1) if as_json else f"{config.output}: {plan_sentence(description)}")


@app.command()
def calibrate(file: File, overrides: Set = None, output: Output = None, replace: Replace = False) -> None:
    """Measure the statistics that the method reads."""
    done, _ = _stage("calibrate", file, overrides, output, replace=replace)
    typer.echo(done["statistics"] or "this method reads no statistics")


@app.command()
def merge(
    file: Annotated[
        Path | None, typer.Argument(help="Run file; or give --base, --utility, --safety.", show_default=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a known name, a folder or a hub id; the utility adapter's when left out."),
    ] = None,
    utility: Annotated[
        list[Path] | None,
        typer.Option(metavar="<path>", help="PEFT folder of the utility adapter; several are added up."),
    ] = None,
    safety: Annotated[
        list[Path] | None,
        typer.Option(metavar="<path>", help="PEFT folder of the safety adapter; several are added up."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Merge method, sst when left out; see sst-merge methods.")] = None,
    calibration_utility: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<data>", help="Data for the utility Fisher: prompts with answers (methods that read statistics)."
        ),
    ] = None,
    calibration_safety: Annotated[
        list[str] | None,
        typer.Option(metavar="<data>", help="Data for the safety Fisher: harmful prompts with refusals."),
    ] = None,
    calibration_harmless: Annotated[
        list[str] | None, typer.Option(metavar="<data>", help="Prompts that must not be refused; answers are not read.")
    ] = None,
    overrides: Set = None,
    output: Output = None,
    as_json: AsJson = False,
    replace: Replace = False,
) -> None:
    """Merge two adapters into one PEFT adapter, from a run file or from options.

    Adapters and data may be given several times. Everything else is set by its key: --set method.strength=0.8.
    """
    if file is None:
        data = {"utility": calibration_utility, "safety": calibration_safety, "harmless": calibration_harmless}
        values = _merge_values(base, utility, safety, method or "sst", data, output)
        config = _validate(values, overrides)
        if config.calibration is not None and not config.requests():
            raise ConfigError(f"method '{config.method.name}' reads no calibration data; leave --calibration-... out.")
        diagnostics = _run(config, "merge", replace=replace)
    elif any(
        value is not None
        for value in (base, utility, safety, method, calibration_utility, calibration_safety, calibration_harmless)
    ):
        raise ConfigError(
            "give a run file, or --base, --utility, --safety, --method and --calibration-...; not both. To change the "
            "method of a run file: --set 'method={name: ties}'."
        )
    else:
        diagnostics, config = _stage("merge", file, overrides, output, replace=replace)
    if as_json:
        typer.echo(json.dumps(diagnostics, indent=1))
        return
    total = diagnostics["total"]
    kept = ", ".join(
        f"{name.removesuffix('_kept').replace('_', ' ')} {value:.0%}"
        for name, value in total.items()
        if value is not None
    )
    typer.echo(f"{diagnostics['modules_merged']} modules merged -> {config.output / 'adapter'}")
    if kept:
        typer.echo(
            f"kept of the safety update: {kept}" + (" (the less, the cheaper)" if total["utility_energy_kept"] else "")
        )
    if (diagnostics["written_relative_error"] or 0.0) > 1e-6:  # None for a merge of zeros
        typer.echo(
            f"written adapter differs from the exact merge by {diagnostics['written_relative_error']:.2%} of its norm"
        )


@app.command()
def evaluate(file: File, overrides: Set = None, output: Output = None, replace: Replace = False) -> None:
    """Evaluate every arm on the same samples."""
    config = _load(file, overrides, output)
    if config.evaluation is None:
        raise ConfigError(f"{file} has no evaluation section, so there is nothing to evaluate.")
    typer.echo(_run(config, "evaluate", replace=replace)["scores"])


@app.command()
def report(file: File, overrides: Set = None, output: Output = None, as_json: AsJson = False) -> None:
    """Make the report from the samples of a finished evaluation; loads no model."""
    from sst_merge.stages.plan import plan as make_plan
    from sst_merge.stages.report import report as make_report

    config = _load(file, overrides, output)
    _print_report(make_report(make_plan(config, root=Path())), config, as_json)


@app.command()
def train(file: File, overrides: Set = None, output: Output = None) -> None:
    """Train a utility, safety or harmful LoRA adapter (needs the extra: pip install 'sst-merge[train]')."""
    from sst_merge.config import TrainConfig
    from sst_merge.run_file import load_config
    from sst_merge.stages.train import train as train_adapter

    config = load_config(TrainConfig, file, _changes(overrides, output))
    typer.echo(train_adapter(config, root=Path(), reporter=_reporter()))


@app.command()
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
            repository=_repository() if one == "smollm2-135m" else None,
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
    from sst_merge.experiments.compare import compare as compare_files
    from sst_merge.experiments.compare import render
    from sst_merge.experiments.exp1 import run_exp1
    from sst_merge.rendering.terminal import rates_table
    from sst_merge.run_folder import RunFolder
    from sst_merge.wheels import replace_file

    done = [run_exp1(one, reporter=_reporter(), command=_command(), replace=replace) for one in planned]
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


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Method to describe.")] = None, as_json: AsJson = False
) -> None:
    """Merge methods: what there is, parameters, source, what they need."""
    from sst_merge.methods import METHODS

    _list(METHODS, name, as_json, method_entry)


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="Task to describe.")] = None, as_json: AsJson = False
) -> None:
    """Evaluation tasks: what there is, what they measure, source; lm_eval:NAME for one of lm-eval's."""
    from sst_merge.tasks import TASKS, is_lm_eval, lm_eval_entry

    if name is not None and is_lm_eval(name):
        _list({name: name}, name, as_json, lm_eval_entry)
        return
    _list(TASKS, name, as_json, task_entry)


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="Data set to describe.")] = None, as_json: AsJson = False
) -> None:
    """Known data sets that pinned wheels ship; any local file or hub: id works as well."""
    from sst_merge.data import KNOWN

    _list(
        KNOWN,
        name,
        as_json,
        lambda known: {"about": known.about, "wheel": wheel(known.member), "licence": known.member.licence},
    )


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Model to describe.")] = None, as_json: AsJson = False
) -> None:
    """Known models that pinned wheels ship; any local folder or hub id works as well."""
    from sst_merge.models import KNOWN_MODELS

    _list(KNOWN_MODELS, name, as_json, lambda member: {"wheel": wheel(member), "licence": member.licence})


@app.command()
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


@app.command()
def compare(
    files: ResultFiles,
    style: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table, markdown, csv, html or json.")
    ] = "table",
    output: Annotated[Path | None, typer.Option("--output", help="File to write, instead of the terminal.")] = None,
) -> None:
    """One table over runs, and result files of experiment 1: gain, loss, tax or why there is none."""
    from sst_merge.experiments import compare as comparison
    from sst_merge.wheels import replace_file

    rows = comparison.compare(files)
    if style == "table":
        with StringIO() as text:
            to_terminal = output is None and sys.stdout.isatty()
            console = Console() if to_terminal else Console(file=text, width=TABLE_WIDTH)
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


def _repository() -> Path:
    """The checkout that holds configs/ and examples/."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "configs" / "demo.yaml").is_file():
        raise ConfigError(
            "the demo's adapters and run file are in the repository, not in the package: clone it and run make demo."
        )
    return root


def _command() -> str:
    return " ".join(["sst-merge", *sys.argv[1:]])


def _reporter() -> Any:
    from sst_merge.progress import TerminalReporter

    return TerminalReporter()


def _changes(overrides: list[str] | None, output: Path | None) -> list[str]:
    """``--set`` and ``--output`` as ``--set`` has it."""
    return [*(overrides or []), *([f"output={json.dumps(str(output))}"] if output else [])]


def _load(file: Path, overrides: list[str] | None, output: Path | None = None) -> Any:
    from sst_merge.config import RunConfig
    from sst_merge.run_file import load_config

    return load_config(RunConfig, file, _changes(overrides, output))


def _stage(
    until: str, file: Path, overrides: list[str] | None, output: Path | None, *, replace: bool
) -> tuple[dict[str, Any], Any]:
    """Run a file up to a stage; what the stage wrote, and the configuration."""
    config = _load(file, overrides, output)
    return _run(config, until, replace=replace), config


def _run(config: Any, until: str, *, replace: bool) -> dict[str, Any]:
    from sst_merge.stages.run import run as run_stages

    return run_stages(config, root=Path(), reporter=_reporter(), command=_command(), until=until, replace=replace)


def _merge_values(
    base: str | None,
    utility: list[Path] | None,
    safety: list[Path] | None,
    method: str,
    calibration: dict[str, list[str] | None],
    output: Path | None,
) -> dict[str, Any]:
    """The run file that the options of ``merge`` stand for."""
    from sst_merge.adapter_config import read_config

    named = read_config(utility[0]) if utility and base is None else {}
    base = base or named.get("base_model_name_or_path")
    given = {"--base": base, "--utility": utility, "--safety": safety, "--output": output}
    if missing := [name for name, value in given.items() if not value]:
        raise ConfigError(f"merge without a run file needs {', '.join(missing)}.")
    values: dict[str, Any] = {
        "base_model": base,
        **({"revision": named["revision"]} if named.get("revision") else {}),
        "adapters": {"utility": _one_or_several(utility or []), "safety": _one_or_several(safety or [])},
        "method": {"name": method},
        "output": str(output),
    }
    if data := {name: value for name, value in calibration.items() if value}:
        values["calibration"] = data
    return values


def _one_or_several(folders: list[Path]) -> str | list[str]:
    return str(folders[0]) if len(folders) == 1 else [str(folder) for folder in folders]


def _validate(values: dict[str, Any], overrides: list[str] | None) -> Any:
    from sst_merge.config import RunConfig
    from sst_merge.run_file import apply_overrides, validate

    return validate(RunConfig, apply_overrides(values, overrides or []), "options")


def _print_report(results: dict[str, Any], config: Any, as_json: bool) -> None:
    """The short table, the verdict and where the report is.

    Raises:
        InvalidResultError: If the verdict is INVALID.
    """
    from sst_merge.rendering.terminal import rates_table

    if as_json:
        typer.echo(json.dumps(results.get("safety_tax", results), indent=1))
    elif "estimates" in results:
        Console().print(rates_table(results))
        for name, tax in results["safety_tax"].items():
            typer.echo(f"{name}: {tax['verdict']['code']}. {tax['verdict']['text']}")
        typer.echo(f"report: {config.output / 'report.html'}   adapter: {config.output / 'adapter'}")
    else:
        typer.echo(f"adapter: {config.output / 'adapter'} (no evaluation section, so nothing was measured)")
    verdicts = {name: tax["verdict"] for name, tax in results.get("safety_tax", {}).items()}
    for name, verdict in verdicts.items():
        if verdict["code"].startswith("INVALID"):
            raise InvalidResultError(f"{name}: {verdict['text']}")


def _list(known: dict[str, Any], name: str | None, as_json: bool, entry: Any) -> None:
    """Print one entry, or all of them."""
    if name is not None and name not in known:
        close = get_close_matches(name, known, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"unknown name {name!r}.{meant} Known: {', '.join(known)}.")
    entries = {key: entry(value) for key, value in known.items() if name in {None, key}}
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    for key, fields in entries.items():
        typer.echo(key)
        for field, value in fields.items():
            if isinstance(value, dict):
                typer.echo(f"  {field}:")
                for parameter, text in value.items():
                    typer.echo(f"    {parameter}: {text}")
            else:
                typer.echo(f"  {field}: {value}")


if __name__ == "__main__":
    main()
