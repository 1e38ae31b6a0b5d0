"""What the terminal shows of a plan and of a report."""

from typing import Any

from rich.table import Table

from sst_merge.rendering.cells import estimate_cell


def plan_sentence(description: dict[str, Any]) -> str:
    """A plan in a sentence."""
    samples = sum(description["evaluation_samples"].values())
    samples_of, prompts_of = description["calibration_samples"], description["calibration_prompts"]
    parts = [f"{description['method']['name']} on {len(description['modules'])} modules"]
    if description["statistics_required"]:
        parts.append(
            f"calibration on {samples_of['safety']} safety samples of {prompts_of['safety']} prompts and "
            f"{samples_of['utility']} utility samples of {prompts_of['utility']} "
            f"({description['statistics_bytes'] / 1e6:.0f} MB of statistics)"
        )
    parts.append(f"adapter of {description['adapter_parameters'] / 1e6:.1f} M parameters")
    if samples:
        parts.append(f"{samples} samples to evaluate per arm")
    sentence = "; ".join(parts) + "."
    detectable = [
        f"{task} {'none' if share is None else f'{100 * share:.0f} points'}"
        for task, share in description["detectable_differences"].items()
    ]
    if detectable:
        sentence += f" Detectable with 80 % power, if a tenth of the answers change: {', '.join(detectable)}."
    return sentence


def rates_table(results: dict[str, Any]) -> Table:
    """Arms by tasks: the primary measure with its 95 % interval."""
    table = Table(title=f"{results['title']}, 95 % intervals", title_justify="left")
    table.add_column("arm")
    columns = []
    for task in results["tasks"]:
        measure = next(measure for measure in task["measures"] if measure["primary"])
        unit = "%" if measure["unit"] == "pp" else measure["unit"]
        table.add_column(f"{task['title']}\n{measure['title']}, {unit} (n = {task['n']})")
        columns.append((task["name"], measure))
    found = {(e["arm"], e["task"], e["measure"]): e for e in results["estimates"]}
    for arm in results["arms"]:
        cells = []
        for task, measure in columns:
            estimate = found[arm["name"], task, measure["name"]]
            cell = estimate_cell(estimate, measure["unit"])
            value, _, _ = cell.text.partition(" ")  # its unit is in the head
            reason = f"({estimate['reason']})" if estimate["reason"] else ""
            cells.append(" ".join(part for part in (value, cell.interval, reason) if part))
        table.add_row(arm["label"], *cells)
    return table
