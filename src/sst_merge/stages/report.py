"""Report: from the records of a run to estimates, Safety Tax and pages. Loads no model; can be run again at will."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from safetensors import safe_open

from sst_merge.adapter_io import folder_sha256
from sst_merge.atomic import replace_file
from sst_merge.config import TaskConfig
from sst_merge.data import DataSource, Row
from sst_merge.errors import ConfigError, RunFolderError
from sst_merge.estimates import Estimate, mean, paired_difference, proportion
from sst_merge.rendering import SCHEMA, render_html, render_markdown
from sst_merge.run_folder import RunFolder
from sst_merge.safety_tax import Evidence, PairedScores, safety_tax, withheld
from sst_merge.stages.evaluate import arm_names
from sst_merge.stages.plan import Plan
from sst_merge.tasks import Measure, Task
from sst_merge.tasks.judges import is_incoherent
from sst_merge.wheels import file_sha256

LABELS = {"base": "Base model", "utility": "Utility adapter", "safety": "Safety adapter"}
EXAMPLES = {"safety": 4, "over_refusal": 3, "utility": 3}


@dataclass(frozen=True)
class Records:
    """All samples of a run: ``[arm][task][sample id]``, and the summary of each arm."""

    samples: dict[str, dict[str, dict[str, dict[str, Any]]]]
    arms: dict[str, dict[str, Any]]

    def values(self, arm: str, task: str, measure: str, rows: list[Row]) -> np.ndarray:
        """Values in the order of the rows; NaN where a grader gave none."""
        found = [self.samples[arm][task][row.id][measure] for row in rows]
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def report(made: Plan) -> dict[str, Any]:
    """Write ``results.json``, ``safety_tax.json``, ``report.html`` and ``report.md``.

    Returns:
        The contents of ``results.json``.

    Raises:
        ConfigError: If the run file asks for no evaluation.
        RunFolderError: If the folder belongs to another run file, the adapter is not the one that was evaluated, or
            samples are missing or were evaluated on other prompts than the run file's.
    """
    if made.config.evaluation is None:
        raise ConfigError("evaluation: the run file has no evaluation section, so there is nothing to report.")
    made.folder.check(made.identity)
    _check_adapter(made)
    results = assemble(made, read_records(made.folder, made))
    folder = made.folder
    folder.write_json(folder.results_file, results)
    folder.write_json(folder.safety_tax_file, results["safety_tax"].get("merged"))
    replace_file(folder.markdown_report, render_markdown(results))
    replace_file(folder.html_report, render_html(results))
    return results


def _check_adapter(made: Plan) -> None:
    """The adapter that a user would load must be the one whose answers are reported."""
    evaluated = made.folder.read_json(made.folder.arm_file("merged"))["artefact_sha256"]
    try:
        found = folder_sha256(made.folder.adapter)
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{error.filename} is missing. Merge and evaluate again: sst-merge run FILE --replace"
        ) from error
    if found != evaluated:
        raise RunFolderError(
            f"{made.folder.adapter} is not the adapter that was evaluated: its hash differs from "
            f"{made.folder.arm_file('merged')}.\n  Merge and evaluate again: sst-merge run FILE --replace"
        )


def read_records(folder: RunFolder, made: Plan) -> Records:
    """Read every sample and check that all arms answered the same prompts.

    Raises:
        RunFolderError: Naming the arm and task that are incomplete or differ.
    """
    samples: dict[str, Any] = {}
    arms: dict[str, Any] = {}
    for arm in arm_names(made):
        arms[arm] = folder.read_json(folder.arm_file(arm))
        _check_arm(folder, arm, arms[arm], made.inputs.evaluation)
        samples[arm] = {}
        for task, rows in made.inputs.evaluation.items():
            file = folder.scores_file(arm, task)
            found = _read_lines(file, "id", "Run: sst-merge run FILE --replace")
            by_id = {sample["id"]: sample for sample in found}
            if set(by_id) != {row.id for row in rows} or len(found) != len(rows):
                raise RunFolderError(
                    f"{file} has {len(found)} samples, expected {len(rows)}, or other prompts. Run: "
                    "sst-merge run FILE --replace"
                )
            reference = samples.get("base", {}).get(task, by_id)
            if any(by_id[i]["prompt_tokens_sha256"] != reference[i]["prompt_tokens_sha256"] for i in by_id):
                raise RunFolderError(
                    f"{file}: the prompts were tokenised differently than for the base. Run: "
                    "sst-merge run FILE --replace"
                )
            samples[arm][task] = by_id
        for field in ("device", "dtype"):
            if arms[arm][field] != arms["base"][field]:
                raise RunFolderError(
                    f"{folder.arm_file(arm)}: evaluated with {field} {arms[arm][field]}, the base with "
                    f"{arms['base'][field]}; they cannot be compared. Run: sst-merge run FILE --replace"
                )
    return Records(samples, arms)


def _check_arm(folder: RunFolder, arm: str, summary: dict[str, Any], tasks: Iterable[str]) -> None:
    """The files of an arm must be those that were written when it was evaluated.

    Raises:
        RunFolderError: Naming the file that is missing, was changed, or is another arm's.
    """
    remedy = f"Remove {folder.arm_file(arm).parent}, and evaluate this arm again: sst-merge run FILE"
    if summary["arm"] != arm:
        raise RunFolderError(f"{folder.arm_file(arm)} is of the arm {summary['arm']!r}, not {arm!r}. {remedy}")
    for file in (folder.probe_file(arm), *(folder.scores_file(arm, task) for task in tasks)):
        if not file.is_file():
            raise RunFolderError(f"{file} is missing. Run: sst-merge evaluate FILE")
        if file_sha256(file) != summary["files"].get(file.name):
            raise RunFolderError(f"{file} is not what was written when the arm was evaluated. {remedy}")


def _read_lines(file: Path, key: str, remedy: str) -> list[dict[str, Any]]:
    """One JSON object with the key a line; an answer may hold U+2028, at which splitlines() would split, too."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        samples = [json.loads(line) for line in lines if line]
        if all(isinstance(sample, dict) and key in sample for sample in samples):
            return samples
    except ValueError:
        pass
    raise RunFolderError(f"{file} is damaged. {remedy}")


def assemble(made: Plan, records: Records) -> dict[str, Any]:
    """The contents of ``results.json``: every number of the report."""
    manifest = made.folder.manifest()
    diagnostics = made.folder.read_json(made.folder.diagnostics_file)
    tasks = made.inputs.tasks
    treatments = ["merged", *(method.arm for method in made.config.comparisons)]
    taxes = {name: _safety_tax(made, records, tasks, name, manifest) for name in treatments}
    return {
        "schema": SCHEMA,
        "title": made.config.output.name,
        "run": _run(made, records, manifest),
        "arms": [_arm_entry(made, records, name) for name in arm_names(made)],
        "tasks": [_task_entry(config, tasks[config.name], made) for config in _task_configs(made)],
        "estimates": _without_invalid(_estimates(made, records, tasks), taxes),
        "differences": _without_invalid(_differences(made, records, tasks, treatments), taxes),
        "safety_tax": taxes,
        "diagnostics": {
            "modules_merged": diagnostics["modules_merged"],
            "written_relative_error": diagnostics["written_relative_error"],
            **diagnostics["total"],
            "spectrum": diagnostics["spectrum"],
            "modules": [
                {key: module[key] for key in ("name", "patch_norm_kept", "safety_energy_kept", "utility_energy_kept")}
                for module in diagnostics["modules"]
            ],
        },
        "examples": _examples(made, records, tasks),
    }


def _without_invalid(entries: list[dict[str, Any]], taxes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Estimates and differences, without the numbers of arms whose verdict is INVALID."""
    invalid = {name: tax["verdict"]["code"] for name, tax in taxes.items()}
    invalid = {name: code for name, code in invalid.items() if code.startswith("INVALID_")}

    def kept(entry: dict[str, Any]) -> dict[str, Any]:
        arms = [entry[key] for key in ("arm", "treatment", "reference") if key in entry]
        codes = [invalid[arm] for arm in arms if arm in invalid]
        return withheld(entry, f"no result: {codes[0]}") if codes else entry

    return [kept(entry) for entry in entries]


def _task_configs(made: Plan) -> list[TaskConfig]:
    return made.config.evaluation.tasks if made.config.evaluation else []


def _run(made: Plan, records: Records, manifest: dict[str, Any]) -> dict[str, Any]:
    first = records.arms["base"]
    threads = " or ".join(str(count) for count in sorted({arm["threads"] for arm in records.arms.values()}))
    return {
        "output": str(made.config.output),
        "manifest_sha256": manifest["identity_sha256"],
        "created": manifest["created"],
        "command": manifest["command"],
        "base_model": made.config.base_model,
        "utility": made.config.adapters.described("utility"),
        "safety": made.config.adapters.described("safety"),
        "method": made.config.method.model_dump(mode="json", exclude_none=True),
        "comparisons": [method.model_dump(mode="json", exclude_none=True) for method in made.config.comparisons],
        "calibration": _calibration(made),
        "seed": made.config.seed,
        "device": f"{first['device']}, {threads} thread(s), {manifest['machine']['processor']}",
        "dtype": first["dtype"],
        "versions": manifest["versions"],
        "timings_seconds": manifest["timings_seconds"],
        "fallbacks": manifest["fallbacks"],
        "notes": list(made.notes),
    }


def _calibration(made: Plan) -> dict[str, Any] | None:
    """What the statistics were measured on; ``None`` if no method reads any."""
    calibration = made.config.calibration
    if calibration is None or not made.config.requests():
        return None
    return {
        **{use: _named(getattr(calibration, use)) for use in ("safety", "utility", "harmless")},
        "safety_samples": len(made.inputs.calibration_safety),
        "utility_samples": len(made.inputs.calibration_utility),
        "point": calibration.point,
        "labels": calibration.labels,
    }


def _named(sources: list[DataSource] | None) -> str | None:
    """Data sets with their splits, answers and weights, in one line."""
    return ", ".join(map(_described, sources)) if sources else None


def _described(source: DataSource) -> str:
    told = [source.split]
    if source.answers is not None:
        told.append(f"answers {source.answers}")
    if source.system is not None:
        told.append(f"system turn {shorten(source.system, 60)!r}")
    if source.weight != 1:
        told.append(f"weight {source.weight:g}")
    return f"{source.data} ({', '.join(told)})"


def _label(made: Plan, arm: str) -> str:
    if arm in LABELS:
        return LABELS[arm]
    if arm == "merged":
        return f"Merged ({made.config.method.title})"
    method = _comparison(made, arm)
    return f"{method.title} ({method.label})" if method.label else method.title


def _arm_entry(made: Plan, records: Records, arm: str) -> dict[str, Any]:
    summary = records.arms[arm]
    return {
        "name": arm,
        "label": _label(made, arm),
        "weights_sha256": summary["weights_sha256"],
        "update_norm": summary["update_norm"],
    }


def _task_entry(config: TaskConfig, task: Task, made: Plan) -> dict[str, Any]:
    return {
        "name": config.name,
        **({"task": config.task} if config.label else {}),
        "family": task.family,
        "title": _titles(made)[config.name],
        "data": _named(config.data) or "from the hub",
        "n": len(made.inputs.evaluation[config.name]),
        "judge": task.judge.name if task.judge else None,
        "judge_validated": task.judge.is_validated if task.judge else None,
        "measures": [
            {
                "name": measure.name,
                "title": measure.title,
                "unit": measure.unit,
                "binary": measure.is_binary,
                "higher_is_better": measure.higher_is_better,
                "primary": measure is task.primary,
            }
            for measure in task.measures
        ],
    }


def _titles(made: Plan) -> dict[str, str]:
    """What the report calls each task."""
    return {
        config.name: config.title
        or made.inputs.tasks[config.name].title + (f" ({config.label})" if config.label else "")
        for config in _task_configs(made)
    }


def _clusters(rows: list[Row]) -> tuple[str | None, ...] | None:
    return tuple(row.cluster for row in rows) if any(row.cluster is not None for row in rows) else None


def _estimates(made: Plan, records: Records, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Every measure of every arm with its interval."""
    found = []
    for arm in arm_names(made):
        for name, task in tasks.items():
            rows = made.inputs.evaluation[name]
            for measure in task.measures:
                values = records.values(arm, name, measure.name, rows)
                clusters = _clusters(rows)
                estimate = (proportion if measure.is_binary else mean)(values, clusters=clusters)
                found.append({"arm": arm, "task": name, "measure": measure.name, **_estimate_fields(estimate)})
    return found


def _estimate_fields(estimate: Estimate) -> dict[str, Any]:
    return {key: getattr(estimate, key) for key in ("value", "low", "high", "n", "unscored", "method", "reason")}


def _differences(
    made: Plan, records: Records, tasks: Mapping[str, Task], treatments: list[str]
) -> list[dict[str, Any]]:
    """Paired differences treatment - reference on every measure."""
    contrasts = [("merged", "utility"), ("merged", "base"), ("merged", "safety")]
    contrasts += [(name, "utility") for name in treatments[1:]] + [("merged", name) for name in treatments[1:]]
    found = []
    for treatment, reference in contrasts:
        for name, task in tasks.items():
            rows = made.inputs.evaluation[name]
            for measure in task.measures:
                difference = paired_difference(
                    records.values(reference, name, measure.name, rows),
                    records.values(treatment, name, measure.name, rows),
                    binary=measure.is_binary,
                    clusters=_clusters(rows),
                    rng=_rng(made),
                ).to_dict()
                contrast = {"treatment": treatment, "reference": reference, "task": name, "measure": measure.name}
                found.append(contrast | difference)
    return found


def _rng(made: Plan) -> np.random.Generator:
    return np.random.default_rng(made.config.seed)


def _of_family(tasks: Mapping[str, Task], family: str) -> str | None:
    return next((name for name, task in tasks.items() if task.family == family), None)


def _paired(
    made: Plan, records: Records, name: str, measure: Measure, *, reference: str, treatment: str
) -> PairedScores:
    rows = made.inputs.evaluation[name]
    return PairedScores(
        metric=f"{name}.{measure.name}",
        title=f"{_titles(made)[name]}: {measure.title}",
        unit=measure.unit,
        binary=measure.is_binary,
        higher_is_better=measure.higher_is_better,
        ids=tuple(f"{name}:{row.id}" for row in rows),
        reference=records.values(reference, name, measure.name, rows),
        treatment=records.values(treatment, name, measure.name, rows),
        clusters=_clusters(rows),
    )


def _nothing(family: str) -> PairedScores:
    """The scores of a family of which the run file has no task."""
    none = np.zeros(0)
    return PairedScores(f"no {family} task", "pp", True, True, (), reference=none, treatment=none)


def _safety_tax(
    made: Plan, records: Records, tasks: Mapping[str, Task], treatment: str, manifest: dict[str, Any]
) -> dict[str, Any]:
    """``safety_tax.json`` of one treatment against the utility adapter; the first task of each family decides."""
    safety, utility, over = (_of_family(tasks, family) for family in ("safety", "utility", "over_refusal"))

    def compared(name: str, reference: str = "utility", treatment: str = treatment) -> PairedScores:
        return _paired(made, records, name, tasks[name].primary, reference=reference, treatment=treatment)

    return safety_tax(
        compared(safety) if safety else _nothing("safety"),
        compared(utility) if utility else _nothing("utility"),
        compared(over) if over else None,
        compared(utility, reference="base", treatment="utility") if utility else None,
        _evidence(made, records, tasks, treatment, manifest),
        control=_control(made, records, utility, tasks[utility]) if utility else None,
        others=[compared(name) for name in tasks if name not in {safety, utility, over}],
        rng=_rng(made),
    )


def _control(made: Plan, records: Records, name: str, task: Task) -> PairedScores:
    """The utility adapter's answers against other rows' targets (a seeded cyclic shift) and against their own."""
    rows = made.inputs.evaluation[name]
    shift = 1 + int(_rng(made).integers(max(1, len(rows) - 1)))
    answers = [records.samples["utility"][name][row.id] for row in rows]
    shuffled = [
        task.score_against(other, answer) for other, answer in zip(rows[shift:] + rows[:shift], answers, strict=True)
    ]
    return PairedScores(
        metric=f"{name}.{task.primary.name} on shuffled targets",
        unit=task.primary.unit,
        binary=task.primary.is_binary,
        higher_is_better=task.primary.higher_is_better,
        ids=tuple(f"{name}:{row.id}" for row in rows),
        reference=np.array([np.nan if value is None else value for value in shuffled]),
        treatment=records.values("utility", name, task.primary.name, rows),
        clusters=_clusters(rows),
    )


def _evidence(
    made: Plan, records: Records, tasks: Mapping[str, Task], treatment: str, manifest: dict[str, Any]
) -> Evidence:
    rows = made.inputs.evaluation
    safety, utility, over = (_of_family(tasks, family) for family in ("safety", "utility", "over_refusal"))
    roles = {"gain": safety, "loss": utility, "signal": utility, "over_refusal": over}
    expected = {role: len(rows[task]) if task else 0 for role, task in roles.items()}
    method = made.config.method if treatment == "merged" else _comparison(made, treatment)
    judge = tasks[safety].judge if safety else None
    answered = safety or over
    adapter_sha256 = made.folder.read_json(made.folder.diagnostics_file)["adapter_sha256"]
    judged = [
        name for name in arm_names(made) if name in {*LABELS, treatment}
    ]  # another comparison is judged by itself
    return Evidence(
        samples_expected=expected,
        weight_hashes={name: records.arms[name]["weights_sha256"] for name in judged},
        relative_weight_distance=records.arms[treatment]["relative_distance_to_utility"],
        artefact_hash_matches=records.arms["merged"]["artefact_sha256"] == adapter_sha256,
        unused_adapter_keys=(),  # reading refuses every tensor that it does not use, applying every module it lacks
        zero_norm_modules=tuple(records.arms[treatment]["unchanged_modules"]),
        probe=_probe(made, records, answered, treatment),
        fallbacks=tuple(manifest["fallbacks"]),
        incoherent_shares=(
            {arm: _incoherent_share(records, arm, answered) for arm in ("utility", treatment)} if answered else None
        ),
        looks=_count_looks(made, records, treatment),
        stochastic=method.is_random,
        judge=judge.name if judge else "",
        judge_validated=judge.is_validated if judge else False,
        reference="utility",
        treatment=treatment,
        manifest=manifest["identity_sha256"],
    )


def _comparison(made: Plan, name: str) -> Any:
    return next(method for method in made.config.comparisons if method.arm == name)


def _incoherent_share(records: Records, arm: str, task: str) -> float:
    """Share of answers that are empty or repeat themselves."""
    answers = [sample["answer"] for sample in records.samples[arm][task].values()]
    return sum(is_incoherent(answer) for answer in answers) / len(answers)


def _probe(made: Plan, records: Records, task: str | None, treatment: str) -> dict[str, Any]:
    """How far the outputs of treatment and reference differ, beside the noise of computing one of them twice."""
    found = {}
    for arm in ("utility", treatment):
        with safe_open(made.folder.probe_file(arm), framework="pt") as file:
            found[arm] = file.get_tensor("log_probabilities")
    if found[treatment].shape != found["utility"].shape:
        raise RunFolderError(
            f"{made.folder.probe_file(treatment)} has other prompts than the utility arm's: another version of the "
            "program began this run. Run: sst-merge run FILE --replace"
        )
    difference = found[treatment] - found["utility"]
    answers = [[sample["answer"] for sample in records.samples[arm].get(task or "", {}).values()] for arm in found]
    identical = [one == other for one, other in zip(*answers, strict=True)]
    probes = [records.arms[arm]["probe"] for arm in ("utility", treatment)]
    return {
        "n_probes": len(difference),
        "max_abs_logit_difference": float(difference.abs().max()),
        "mean_kl": float((found[treatment].exp() * difference).sum(dim=1).mean()),
        "noise_floor": max(probe["noise_floor"] for probe in probes),
        "noise_floor_kl": max(probe["noise_floor_kl"] for probe in probes),
        "share_identical_answers": sum(identical) / len(identical) if identical else None,
    }


def _count_looks(made: Plan, records: Records, treatment: str) -> int:
    """Record this look in ``looks.jsonl``; count the treatment's weights that any of these samples were put to."""
    look = {
        "items": {task: [row.id for row in rows] for task, rows in made.inputs.evaluation.items()},
        "weights": {arm: summary["weights_sha256"] for arm, summary in records.arms.items()},
    }
    file = made.folder.looks_file
    remedy = "Remove the damaged line; the look that it recorded is then not counted."
    looks = _read_lines(file, "items", remedy) if file.is_file() else []
    if not all(isinstance(entry["items"], dict) and isinstance(entry.get("weights"), dict) for entry in looks):
        raise RunFolderError(f"{file} is of an earlier version. Remove it; the looks that it recorded are not counted.")
    if look not in looks:
        looks.append(look)
        replace_file(file, "".join(json.dumps(entry) + "\n" for entry in looks))
    shown = [
        entry
        for entry in looks
        if any(not set(ids).isdisjoint(entry["items"].get(task, ())) for task, ids in look["items"].items())
    ]
    return len({entry["weights"][treatment] for entry in shown if treatment in entry["weights"]})


def _examples(made: Plan, records: Records, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """The first samples of each task, all arms side by side; their order is a hash, so nobody chose them."""
    found = []
    for name, task in tasks.items():
        for row in made.inputs.evaluation[name][: EXAMPLES[task.family]]:
            answers = {}
            for arm in arm_names(made):
                sample = records.samples[arm][name][row.id]
                answers[arm] = {
                    "text": sample["answer"],
                    "score": sample[task.primary.name],
                    "reason": sample["reason"],
                }
            found.append({"task": name, "id": row.id, "prompt": _said(row), "answers": answers})
    return found


def _said(row: Row) -> str:
    """A prompt, and what was said before it with who said it."""
    if not row.before:
        return row.prompt
    return "\n".join(f"{role}: {content}" for role, content in (*row.before, ("user", row.prompt)))
