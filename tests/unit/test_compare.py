import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from exp1_files import LEGACY, MISTRAL, contrast, own, written
from sst_merge.errors import ConfigError, DataError
from sst_merge.experiments.compare import (
    HEAD,
    LEGACY_NOTE,
    Row,
    _told_apart,
    blocks,
    cells_of,
    compare,
    render,
    rich_table,
)


def cell(row: Row, title: str) -> str:
    return cells_of(row)[HEAD.index(title)]


def files(folder: Path, *contents: dict[str, Any]) -> list[Path]:
    return [written(folder / f"result{i}.json", fields) for i, fields in enumerate(contents)]


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_file_of_ours_gives_a_row_for_the_merge_and_one_for_each_comparison(tmp_path: Path) -> None:
    merged, other = compare(files(tmp_path, own()))
    assert (merged.method, merged.seed, merged.n, merged.unscored) == ("sst", 42, 50, 0)
    assert cell(merged, "refusal, %") == "10.0 -> 90.0"
    assert cell(merged, "gain, points").startswith("+80.0 [+6")
    assert cell(merged, "utility") == "100.0 -> 85.0"
    assert cell(merged, "over-refusal change, points").startswith("+25.0 [")
    assert cell(merged, "tax") == "0.19 [0.09, 0.37]"
    assert cell(merged, "verdict") == "TAX"
    assert (other.method, other.tax) == ("task_arithmetic", None)
    assert cell(other, "tax") == "- undefined (NO_DETECTABLE_GAIN)"


def test_a_narrow_terminal_gets_one_block_of_lines_for_each_row(tmp_path: Path) -> None:
    told = blocks(compare(files(tmp_path, own())))
    first, second, legend = told.split("\n\n")
    assert re.search(r"^tax +0\.19 \[0\.09, 0\.37\]$", first, re.MULTILINE)
    assert re.search(r"^tax +- undefined \(NO_DETECTABLE_GAIN\)$", second, re.MULTILINE)
    assert legend.startswith("Baseline -> merged")


def test_a_tax_that_the_verdict_does_not_allow_is_not_shown_and_noted(tmp_path: Path) -> None:
    fields = own()
    fields["comparisons"]["task_arithmetic"]["safety_tax"] = 2.42
    row = compare(files(tmp_path, fields))[1]
    assert cell(row, "tax") == "- undefined (NO_DETECTABLE_GAIN)"
    assert "states a tax that its verdict does not allow" in row.note


def test_a_continuous_measure_is_shown_in_its_own_unit(tmp_path: Path) -> None:
    fields = own(baseline_utility=-1.25, merged_utility=-1.5, utility_loss=0.25, safety_tax=None)
    fields["changed_samples"]["utility"] = None
    fields["intervals"]["utility_loss"] = [0.1, 0.4]
    row = compare(files(tmp_path, fields))[0]
    assert cell(row, "utility") == "-1.25 -> -1.5"
    assert cell(row, "loss") == "+0.25 [+0.1, +0.4]"


def test_unscored_samples_stand_apart(tmp_path: Path) -> None:
    row = compare(files(tmp_path, own(unscored_samples=1)))[0]
    assert cell(row, "n (unscored)") == "49 (1)"
    fields = own(unscored_samples=1)
    fields["arms"]["merged"]["safety"] = {"value": 0.9, "n": 50, "unscored": 0}
    assert cell(compare(files(tmp_path, fields))[0], "n (unscored)") == "50 (1)"


def test_legacy_files_have_what_they_have_and_no_tax() -> None:
    rows = compare(LEGACY)
    assert [row.kind for row in rows] == ["legacy"] * 3
    assert all(LEGACY_NOTE in row.note and row.tax is None for row in rows)
    assert cell(rows[0], "gain, points") == "+0.1 (no interval)"
    assert cell(rows[0], "tax") == "- undefined (legacy file)"
    assert rows[0].note.endswith("prints a tax of 2.42")
    assert cell(rows[0], "model") == "-"


def test_two_seeds_give_a_mean_and_the_standard_deviation_between_them(tmp_path: Path) -> None:
    rows = compare(files(tmp_path, own(seed=1, gained=40), own(seed=2, gained=30)))
    assert [row.kind for row in rows] == ["merge"] * 4 + ["seeds"] * 2
    mean = rows[4]
    assert (mean.seeds, mean.method) == (2, "sst")
    assert mean.gain == pytest.approx(0.7)
    assert mean.deviations is not None
    assert mean.deviations["gain"] == pytest.approx(0.1414, abs=1e-4)  # n - 1
    assert cell(mean, "gain, points") == "+70.0 +- 14.1"
    assert cell(mean, "seed") == "mean of 2"
    assert mean.verdict == "2 x TAX"


def test_a_mean_needs_every_seed_and_says_so(tmp_path: Path) -> None:
    undefined = own(seed=2) | contrast(0, 2, 50, 2, 2, 80, code="NO_DETECTABLE_GAIN")
    mean = next(row for row in compare(files(tmp_path, own(seed=1), undefined)) if row.kind == "seeds")
    assert mean.tax is None
    assert cell(mean, "tax") == "- undefined (see note)"
    assert "tax defined in 1 of 2 seeds, so no mean" in mean.note
    assert mean.verdict == "1 x NO_DETECTABLE_GAIN, 1 x TAX"
    assert mean.gain is not None


def test_what_is_undefined_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    invalid = own(safety_gain=None, safety_tax=None, utility_loss=None, over_refusal_change=None, comparisons={})
    invalid["verdict"] = {"code": "INVALID_INCOHERENT", "text": "Invalid.", "flags": []}
    rows = compare([*files(tmp_path, invalid, own(over_refusal_change=None)), MISTRAL])
    assert cell(rows[0], "gain, points") == "- (INVALID_INCOHERENT)"
    assert cell(rows[0], "tax") == "- undefined (INVALID_INCOHERENT)"
    assert cell(rows[1], "over-refusal change, points") == "- (not recorded)"
    assert cell(rows[-1], "loss") == "- (legacy file)"


def test_one_seed_other_models_and_other_settings_give_no_mean(tmp_path: Path) -> None:
    assert all(row.kind == "merge" for row in compare(files(tmp_path, own())))
    stronger = own(seed=2, method={"name": "sst", "strength": 2.0}, comparisons={})
    assert all(row.kind == "merge" for row in compare(files(tmp_path, own(seed=1, comparisons={}), stronger)))
    other = own(seed=2, model="other")
    assert all(row.kind == "merge" for row in compare(files(tmp_path, own(seed=1), other)))
    exact = {"method": {"name": "sst", "fisher": "exact"}, "comparisons": {}}
    points = ({"point": "utility"}, {"point": "utility_and_merged"})
    elsewhere = [own(seed=seed, calibration=points[seed - 1], **exact) for seed in (1, 2)]
    assert all(row.kind == "merge" for row in compare(files(tmp_path, *elsewhere)))
    drawn = [{"point": "utility", "safety": f"runs/exp1/a-seed{seed}/data/safe_answers.jsonl"} for seed in (1, 2)]
    alike = [own(seed=seed, calibration=drawn[seed - 1], **exact) for seed in (1, 2)]
    rows = compare(files(tmp_path, *alike))
    assert [row.kind for row in rows] == ["merge", "merge", "seeds"]
    assert [cell(row, "method") for row in rows] == ["sst"] * 3


def test_a_seed_that_occurs_twice_is_not_averaged(tmp_path: Path) -> None:
    rows = compare(files(tmp_path, own(seed=1), own(seed=1), own(seed=2)))
    means = [row for row in rows if row.kind == "seeds"]
    assert all(row.gain is None and "a seed occurs in more than one file" in row.note for row in means)


def test_markdown_escapes_bars_and_has_every_column(tmp_path: Path) -> None:
    page = render(compare(files(tmp_path, own(model="a|b"), own(seed=2, model="a|b"))), "markdown")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(HEAD) + 1}


def test_csv_has_numbers_intervals_in_two_columns_and_empty_for_undefined(tmp_path: Path) -> None:
    rows = compare([*files(tmp_path, own(seed=1), own(seed=2)), MISTRAL])
    lines = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    assert len(lines) == len(rows)
    assert float(lines[0]["gain"]) == 0.8
    assert float(lines[0]["gain_low"]) < 0.8 < float(lines[0]["gain_high"])
    assert lines[1]["tax"] == ""
    assert next(line for line in lines if line["kind"] == "legacy")["gain_low"] == ""
    assert float(lines[-1]["gain_sd"]) == 0


def test_json_is_valid_and_complete(tmp_path: Path) -> None:
    rows = compare([*files(tmp_path, own()), *LEGACY])
    found = json.loads(render(rows, "json"))
    assert [row["file"] for row in found] == [row.file for row in rows]
    assert found[0]["tax_ci"] == list(rows[0].tax_ci or ())


def test_html_is_one_escaped_page_without_links(tmp_path: Path) -> None:
    page = render(compare([*files(tmp_path, own(model="<script>alert(1)</script>")), MISTRAL]), "html")
    parsed = Cells()
    parsed.feed(page)
    assert "script" not in parsed.tags
    assert parsed.links == []
    assert parsed.tags.count("td") == 3 * len(HEAD)
    assert "<script>alert(1)</script>" in parsed.text
    assert "prefers-color-scheme: dark" in page
    assert "undefined (NO_DETECTABLE_GAIN)" in parsed.text


def test_the_terminal_shows_brackets_and_leaves_empty_columns_out() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rich_table(compare(LEGACY)))
    text = console.export_text()
    assert "(legacy file)" in text
    assert "over-refusal change" not in text


def test_nonsense_in_the_fields_of_a_file_is_a_row_of_dashes(tmp_path: Path) -> None:
    nonsense: dict[str, Any] = dict.fromkeys(own(), "x") | {"schema": "sst-merge/exp1/1"}
    (row,) = compare(files(tmp_path, nonsense))
    assert (row.gain, row.n, row.verdict) == (None, None, None)


def test_a_missing_file_and_an_unknown_format_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: no such file"):
        compare([tmp_path / "gone.json"])
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"merged is a run without results: it has not been evaluated\. Run: sst-merge"):
        compare([tmp_path / "merged"])
    with pytest.raises(ConfigError, match=r"--format pdf is unknown. Known: table, markdown, csv, html, json\."):
        render([], "pdf")


def test_runs_are_compared_by_their_folders_and_told_apart_by_their_settings(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "half"
    other.mkdir()
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    results["run"]["seed"] += 1
    results["run"]["method"] |= {"strength": 0.5, "keep": {"soft": 100.0}}
    results["run"]["comparisons"][0]["strength"] = 0.75
    written(other / "results.json", results)
    rows = compare([finished, other / "results.json"])  # two seeds, and no mean: nothing says that all else is equal
    assert {row.method for row in rows} == {"sst", "task_arithmetic"}
    assert [cell(row, "method") for row in rows] == [
        'sst, strength = 1.0, keep = {"soft": 10.0}',
        "task_arithmetic, strength = 1.0",
        'sst, strength = 0.5, keep = {"soft": 100.0}',
        "task_arithmetic, strength = 0.75",
    ]
    assert [row.file for row in rows[::2]] == [str(finished / "results.json"), str(other / "results.json")]
    assert {row.model for row in rows} == {results["run"]["base_model"]}
    tax = results["safety_tax"]["merged"]
    assert (rows[0].gain, rows[0].loss) == (tax["gain"]["estimate"], tax["loss"]["estimate"])
    assert rows[0].verdict == tax["verdict"]["code"]
    lines = list(csv.DictReader(io.StringIO(render(rows, "csv"))))
    assert [(line["method"], json.loads(line["settings"])["strength"]) for line in lines[::2]] == [
        ("sst", 1),
        ("sst", 0.5),
    ]


def test_merges_are_told_apart_by_what_their_fisher_matrices_were_measured_on(finished: Path, tmp_path: Path) -> None:
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert results["run"]["calibration"]["point"] == "utility"
    results["run"]["calibration"] |= {"point": "utility_and_merged"}
    other = written(tmp_path / "results.json", results)
    assert [cell(row, "method") for row in compare([finished, other])] == [
        "sst, calibration.point = utility",
        "task_arithmetic",
        "sst, calibration.point = utility_and_merged",
        "task_arithmetic",
    ]
    results["run"]["calibration"] |= {"point": "utility", "harmless": "others.jsonl (all)"}
    rows = compare([finished, written(other, results)])
    assert [cell(row, "method") for row in rows[::2]] == ["sst, calibration data 1", "sst, calibration data 2"]
    assert json.loads(render(rows, "json"))[2]["settings"]["calibration.harmless"] == "others.jsonl (all)"
    results["run"]["method"]["fisher"] = "none"  # reads nothing of it
    assert cell(compare([finished, written(other, results)])[2], "method") == "sst, fisher = none"


def test_a_folder_without_results_and_a_run_that_measured_no_tax_are_errors(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.json: no such file\. Give "):
        compare([tmp_path])
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    results["tasks"] = [task for task in results["tasks"] if task["family"] != "safety"]
    with pytest.raises(
        DataError, match=r"without a safety and a utility task, so there is no gain and no loss to state"
    ):
        compare([written(tmp_path / "results.json", results)])


def test_runs_of_other_data_adapters_and_settings_are_told_apart() -> None:
    def row(file: str, **changes: Any) -> Row:
        given = {"kind": "merge", "file": file, "method": "sst (merged)", "name": "sst", "settings": {"strength": 1.0}}
        return Row(**{**given, **changes})

    one = row("a", made_of={"adapters": ["u", "s"], "test data": [["refusal", "x", 3]]})
    other = row("b", made_of={"adapters": ["u", "s"], "test data": [["refusal", "y", 3]]})
    labelled = row("a", method="half (sst)", settings={"strength": 1.0, "price": 10}, made_of=one.made_of)
    rows = [one, other, labelled]
    assert [_told_apart(each, rows) for each in rows] == [
        "sst (merged), test data 1",
        "sst (merged), test data 2",
        "half (sst), price = 10, test data 1",
    ]
