"""Commands of runs, stage by stage, and of training."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sst_merge.cli.options import AsJson, File, Output, Replace, Set, changes, command, load, reporter, repository
from sst_merge.errors import ConfigError, InvalidResultError, SSTMergeError


def demo(
    output: Annotated[Path, typer.Option("--output", help="Run folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
    replace: Replace = False,
) -> None:
    """The whole flow on a real 135M chat model: no hub, no GPU, no account."""
    from sst_merge.stages.run import run as run_stages

    root = repository()
    config = load(root / "configs" / "demo.yaml", [f"output={json.dumps(str(output))}"])
    _print_report(
        run_stages(config, root=root, reporter=reporter(), command=command(), replace=replace), config, as_json
    )


def run(
    file: File, overrides: Set = None, output: Output = None, as_json: AsJson = False, replace: Replace = False
) -> None:
    """Plan, calibrate, merge, evaluate and report; resumes an interrupted run."""
    results, config = _stage("report", file, overrides, output, replace=replace)
    _print_report(results, config, as_json)


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
    from sst_merge.stages.train import check_base, prepare

    config = load_config(TrainConfig, file, changes(overrides, output))
    made = prepare(config, root=Path())
    fetch_model(config.base_model, reporter())
    for note in check_base(config, made):
        reporter().say(f"note: {note}")
    counts = f"{len(made.learn)} rows to learn, {len(made.validation)} that decide when to stop"
    held_out = "".join(f", {len(rows)} of {task}" for task, rows in made.held_out.items())
    typer.echo(f"{file}: no problems found. {counts}{held_out}.")


def _check_run(file: Path, overrides: list[str] | None, output: Path | None) -> None:
    from sst_merge.rendering.terminal import plan_sentence
    from sst_merge.stages.plan import describe, problems
    from sst_merge.stages.plan import plan as make_plan
    from sst_merge.stages.run import fetch_model

    try:
        config = load(file, overrides, output)
    except ConfigError as error:
        raise ConfigError(f"{error}\nAdapters and data are looked at when this is mended.") from None
    fetch_model(config.base_model, reporter())
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
        reporter().say(f"note: {note}")
    typer.echo(f"{file}: no problems found. {plan_sentence(description)}")


def plan(
    file: File, overrides: Set = None, output: Output = None, as_json: AsJson = False, replace: Replace = False
) -> None:
    """What a run will measure and how large it gets; writes plan.json."""
    from sst_merge.rendering.terminal import plan_sentence

    description, config = _stage("plan", file, overrides, output, replace=replace)
    typer.echo(json.dumps(description, indent=1) if as_json else f"{config.output}: {plan_sentence(description)}")


def calibrate(file: File, overrides: Set = None, output: Output = None, replace: Replace = False) -> None:
    """Measure the statistics that the method reads."""
    done, _ = _stage("calibrate", file, overrides, output, replace=replace)
    typer.echo(done["statistics"] or "this method reads no statistics")


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


def evaluate(file: File, overrides: Set = None, output: Output = None, replace: Replace = False) -> None:
    """Evaluate every arm on the same samples."""
    config = load(file, overrides, output)
    if config.evaluation is None:
        raise ConfigError(f"{file} has no evaluation section, so there is nothing to evaluate.")
    typer.echo(_run(config, "evaluate", replace=replace)["scores"])


def report(
    file: Annotated[Path, typer.Argument(help="Run file (YAML), or run folder.", show_default=False)],
    overrides: Set = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Make the report from the samples of a finished evaluation; loads no model."""
    from sst_merge.run_folder import RunFolder
    from sst_merge.stages.plan import plan as make_plan
    from sst_merge.stages.report import report as make_report

    if file.is_dir():
        if overrides or output:
            raise ConfigError(f"{file} is a run folder: its settings are its own. Leave --set and --output out.")
        config = _validate({**RunFolder(file).manifest()["config"], "output": str(file)}, None)
    else:
        config = load(file, overrides, output)
    _print_report(make_report(make_plan(config, root=Path())), config, as_json)


def train(file: File, overrides: Set = None, output: Output = None) -> None:
    """Train a utility, safety or harmful LoRA adapter (needs the extra: pip install 'sst-merge[train]')."""
    from sst_merge.config import TrainConfig
    from sst_merge.run_file import load_config
    from sst_merge.stages.train import train as train_adapter

    config = load_config(TrainConfig, file, changes(overrides, output))
    typer.echo(train_adapter(config, root=Path(), reporter=reporter()))


def _stage(
    until: str, file: Path, overrides: list[str] | None, output: Path | None, *, replace: bool
) -> tuple[dict[str, Any], Any]:
    """Run a file up to a stage; what the stage wrote, and the configuration."""
    config = load(file, overrides, output)
    return _run(config, until, replace=replace), config


def _run(config: Any, until: str, *, replace: bool) -> dict[str, Any]:
    from sst_merge.stages.run import run as run_stages

    return run_stages(config, root=Path(), reporter=reporter(), command=command(), until=until, replace=replace)


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
    if data := {name: list(value) for name, value in calibration.items() if value}:
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
        InvalidResultError: If the verdict on the merged arm is INVALID; that on a comparison is printed.
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
    if (verdict := verdicts.get("merged", {"code": ""}))["code"].startswith("INVALID"):
        raise InvalidResultError(f"merged: {verdict['text']}")
