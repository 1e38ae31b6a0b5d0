"""exp1 from raw rows to result files, on small models of the three families."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from families import write_family
from mmlu_copy import write_beavertails, write_csv_copy
from sst_merge.errors import DataError, InvalidResultError
from sst_merge.experiments.exp1 import Exp1, run_exp1
from sst_merge.experiments.presets import Preset
from sst_merge.methods.sst import Sst
from sst_merge.models import load_base
from sst_merge.progress import SilentReporter
from tiny import FAMILIES, Family, write_peft_adapter

LEGACY_FIELDS = ("baseline_safety", "merged_safety", "safety_gain", "safety_tax", "total_samples")


def experiment(folder: Path, family: Family, **changes: Any) -> Exp1:
    """exp1 minimal on a small model, with local copies of the data."""
    if not (folder / "base").is_dir():
        write_family(folder / "base", family)
        write_beavertails(folder / "beavertails.jsonl")
        write_csv_copy(folder / "mmlu", {"dev": 4, "val": 60, "test": 16})
    template = "plain" if family == "mistral" else "model"
    settings: dict[str, Any] = {
        "preset": Preset(family, str(folder / "base"), chat_template=template, lora_rank=4),
        "mode": "minimal",
        "seed": 42,
        "data": {"beavertails": str(folder / "beavertails.jsonl"), "mmlu": str(folder / "mmlu")},
        "runs": folder / "runs",
        "results": folder / "results",
    }
    return Exp1(**(settings | changes))


@pytest.fixture(scope="module", params=FAMILIES)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exp1, Path, dict[str, Any]]:
    """One finished experiment of each family: trained, merged, evaluated."""
    planned = experiment(tmp_path_factory.mktemp(request.param), request.param)
    file, result = run_exp1(planned, reporter=SilentReporter(), command="sst-merge experiment exp1")
    return planned, file, result


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_the_result_has_the_five_known_fields_and_what_they_mean(done) -> None:
    _, file, result = done
    assert json.loads(file.read_text(encoding="utf-8")) == result
    assert file.parent.name == "exp1_safety_utility"
    assert file.name.startswith("exp1_results_2")
    assert [field for field in LEGACY_FIELDS if field not in result] == []
    assert (result["baseline"], result["merge_method_applied"], result["fallbacks"]) == ("utility", "sst", [])
    assert result["safety_gain"] == pytest.approx(result["merged_safety"] - result["baseline_safety"])
    assert result["utility_loss"] == pytest.approx(result["baseline_utility"] - result["merged_utility"])
    assert (result["safety_tax"] is None) is not result["verdict"]["code"].startswith("TAX")
    assert result["total_samples"] == result["data"]["samples"]["harmful prompts"]["used"] > 0
    assert result["utility_samples"] == 2 * 16
    assert (result["utility_task"], result["unscored_samples"]) == ("lm_eval:mmlu", 0)
    hashes = [arm["weights_sha256"] for arm in result["arms"].values()]
    assert list(result["arms"]) == ["base", "utility", "safety", "merged", "task_arithmetic"]
    assert len(set(hashes)) == 5


def test_samples_are_kept_one_by_one_and_paired(done) -> None:
    planned, _, result = done
    scores = Path(result["run"]) / "scores"
    by_arm = [rows_of(scores / arm / "lm_eval-mmlu.jsonl") for arm in result["arms"]]
    assert {tuple(sample["id"] for sample in samples) for samples in by_arm} == {tuple(s["id"] for s in by_arm[0])}
    for arm, samples in zip(result["arms"].values(), by_arm, strict=True):
        assert arm["utility"]["value"] == pytest.approx(sum(sample["acc"] for sample in samples) / len(samples))
    changed = result["changed_samples"]["utility"]
    before, after = (
        {s["id"]: s["acc"] for s in rows_of(scores / arm / "lm_eval-mmlu.jsonl")} for arm in ("utility", "merged")
    )
    assert changed == {
        "lost": sum(before[i] > after[i] for i in before),
        "gained": sum(before[i] < after[i] for i in before),
    }
    assert planned.preset.chat_template == result["chat_template"]


def test_no_harmful_answer_is_learnt_and_no_row_is_used_twice(done) -> None:
    planned, _, result = done
    unsafe = {row["response"] for row in rows_of(Path(planned.data["beavertails"])) if not row["is_safe"]}
    prepared = planned.folder / "data"
    answers = {row["answer"] for name in ("safe_answers", "harmless") for row in rows_of(prepared / f"{name}.jsonl")}
    assert unsafe
    assert answers.isdisjoint(unsafe)
    run = Path(result["run"])
    evaluated = {
        row["id"]
        for task in ("refusal", "over_refusal", "lm_eval-mmlu")
        for row in rows_of(run / f"scores/base/{task}.jsonl")
    }
    learnt = {
        row_id
        for role in ("utility", "safety")
        for row_id in json.loads((planned.folder / f"adapters/{role}/training_rows.json").read_text())["ids"]
    }
    assert learnt
    assert evaluated.isdisjoint(learnt)
    counts = result["data"]["beavertails"]
    assert (counts["rows"], counts["harmful prompts"], counts["harmless prompts"]) == (480, 120, 120)
    assert counts["answers labelled unsafe, never used"] == 120


def test_the_same_command_again_does_nothing_and_says_the_same(done, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, file, result = done

    def not_again(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished experiment loads no model")

    monkeypatch.setattr("sst_merge.stages.run.load_base", not_again)
    monkeypatch.setattr("sst_merge.stages.train.load_base", not_again)
    before = file.read_bytes()
    again, same = run_exp1(planned, reporter=SilentReporter(), command="sst-merge experiment exp1")
    assert (again, same) == (file, result)
    assert file.read_bytes() == before


def test_audit_finds_no_disagreement_in_it(done, sst: Callable[..., Any]) -> None:
    _, file, result = done
    ended = sst("audit", file, "--json")
    assert ended.code == 0, ended.err
    (found,) = json.loads(ended.out)
    assert found["supported"] is True, found
    table = sst("compare", file, "--format", "markdown")
    assert result["verdict"]["code"] in table.out


@pytest.mark.parametrize("broken", ["an exception", "not a number"])
def test_a_broken_merge_is_exit_code_3_and_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sst: Callable[..., Any], broken: str
) -> None:
    planned = experiment(tmp_path, "llama")
    base = load_base(planned.preset.reference)
    folders = [write_peft_adapter(tmp_path / role, base, seed=seed) for seed, role in enumerate(("utility", "safety"))]
    real = Sst.merge_module

    def fails(self: Sst, module: Any, state: Any, rng: Any) -> Any:
        if broken == "an exception":
            raise KeyError("input_ids")
        result = real(self, module, state, rng)
        result.update.b.fill_(float("nan"))
        return result

    monkeypatch.setattr(Sst, "merge_module", fails)
    ended = sst(
        *("experiment", "exp1", "--model", planned.preset.reference, "--use-adapters", *folders),
        *("--data", f"beavertails={planned.data['beavertails']}", "--data", f"mmlu={planned.data['mmlu']}"),
        *("--runs", planned.runs, "--results", planned.results),
    )
    assert ended.code == 3
    assert "the merge failed" in ended.err
    assert ("KeyError: 'input_ids'" if broken == "an exception" else "NaN") in ended.err
    assert "There is no fallback" in ended.err
    assert list(tmp_path.rglob("exp1_results_*")) == []
    assert list(tmp_path.rglob("scores")) == []


def test_rows_that_lack_a_column_list_those_found(tmp_path: Path) -> None:
    planned = experiment(tmp_path, "llama")
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"question": "How?", "response": "So.", "is_safe": true}\n', encoding="utf-8")
    planned = experiment(tmp_path, "llama", data={**planned.data, "beavertails": str(odd)})
    with pytest.raises(DataError, match=r"no column prompt\. Columns found: is_safe, question, response"):
        run_exp1(planned, reporter=SilentReporter(), command="")


def test_an_invalid_verdict_leaves_no_result_file(tmp_path: Path) -> None:
    planned = experiment(tmp_path, "llama")
    base = load_base(planned.preset.reference)
    folder = write_peft_adapter(tmp_path / "adapter", base)
    planned = experiment(tmp_path, "llama", adapters=(folder, folder))
    with pytest.raises(InvalidResultError, match="identical weights"):
        run_exp1(planned, reporter=SilentReporter(), command="")
    assert list(tmp_path.rglob("exp1_results_*")) == []


def test_every_seed_draws_other_rows_into_another_file(tmp_path: Path, sst: Callable[..., Any]) -> None:
    planned = experiment(tmp_path, "llama")
    base = load_base(planned.preset.reference)
    folders = [write_peft_adapter(tmp_path / role, base, seed=seed) for seed, role in enumerate(("utility", "safety"))]
    ended = sst(
        *("experiment", "exp1", "--model", planned.preset.reference, "--use-adapters", *folders, "--seeds", "1,2"),
        *("--data", f"beavertails={planned.data['beavertails']}", "--data", f"mmlu={planned.data['mmlu']}"),
        *("--runs", planned.runs, "--results", planned.results, "--set", "method.name=task_arithmetic", "--json"),
    )
    assert ended.code == 0, ended.err
    first, second = json.loads(ended.out)
    assert (first["seed"], second["seed"], first["merge_method_applied"]) == (1, 2, "task_arithmetic")
    assert first["comparisons"] == {}
    assert not [what for what in first["data"]["samples"] if "(train)" in what]  # adapters were given
    assert first["data"]["samples"]["subjects of MMLU"] == {"asked": 2, "used": 2}
    assert "mmlu_anatomy has 16 questions, 100 were asked for; all are used" in first["notes"]
    assert first["data"]["sha256"]["evaluation.refusal"] != second["data"]["sha256"]["evaluation.refusal"]
    written = sorted(file.name for file in (planned.results / "exp1_safety_utility").iterdir())
    assert (len(written), written[0]) == (3, "comparison.md")
