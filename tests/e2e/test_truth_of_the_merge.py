"""What is written, what is evaluated and what plain PEFT loads are the same model; what is not is called invalid."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sst_merge.adapter import Updates
from sst_merge.adapter_io import read_adapter
from sst_merge.errors import AdapterError, ConfigError, RunFolderError
from sst_merge.experiments.compare import compare
from sst_merge.inference import Completion, ReadPrompts, encode, next_token_log_probabilities
from sst_merge.methods.sst import Sst
from sst_merge.methods.task_arithmetic import TaskArithmetic
from sst_merge.models import Base, linear_modules
from sst_merge.stages import evaluate as evaluate_stage
from sst_merge.weights import Applied
from sst_merge.wheels import file_sha256
from tiny import load_with_peft, write_peft_adapter
from tiny_run import ARMS, TASKS, artefacts, copied, numbers, run_config, run_tiny, run_values, write_rows


def verdict(output: Path) -> dict[str, Any]:
    return json.loads((output / "safety_tax.json").read_text(encoding="utf-8"))


def set_factors(folder: Path, factor: float) -> None:
    """Scale lora_B of an adapter on disk."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: v * factor if "lora_B" in k else v for k, v in tensors.items()}, file, metadata={"format": "pt"})


def by_hand(base: Base, *adapters: Path) -> dict[str, torch.Tensor]:
    """W plus every adapter's alpha/r B A, from the files alone, in float64."""
    weights = {name: module.weight.detach().double() for name, module in base.modules.items()}
    for folder in adapters:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = {k: v.double() for k, v in load_file(folder / "adapter_model.safetensors").items()}
        for name, weight in weights.items():
            key = f"base_model.model.{name}.lora_"
            b, a = tensors[f"{key}B.weight"], tensors[f"{key}A.weight"]
            weights[name] = weight + config["lora_alpha"] / config["r"] * (b @ a)
    return weights


def test_plain_peft_gives_the_logits_of_the_arm_that_was_evaluated(finished: Path, base: Base) -> None:
    rows = {}
    for task in ("refusal", "over_refusal", "exact_match"):
        lines = (finished / "scores" / "merged" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        rows |= {json.loads(line)["prompt"]: task for line in lines}
    loaded = replace(base, model=load_with_peft(base, finished / "adapter"))
    found = next_token_log_probabilities(loaded, [encode(base, prompt) for prompt in rows])
    probe = load_file(finished / "scores" / "merged" / "probe.safetensors")["log_probabilities"]
    assert len(probe) == 16  # of 18 rows: the first ones of every task
    distances = (probe[:, None] - found[None]).abs().amax(dim=2).amin(dim=1)  # the order of the rows is a hash
    assert float(distances.max()) < 1e-4
    others = load_file(finished / "scores" / "utility" / "probe.safetensors")["log_probabilities"]
    assert float((probe - others).abs().max()) > 0.1


def test_merging_with_peft_gives_the_weights_that_were_evaluated(finished: Path, base: Base) -> None:
    merged = load_with_peft(base, finished / "adapter").merge_and_unload()
    updates = read_adapter(finished / "adapter").updates
    with evaluate_stage.applied(base, updates, "merged") as weights:
        ours = {name: module.weight.clone() for name, module in base.modules.items()}
    recorded = json.loads((finished / "scores" / "merged" / "arm.json").read_text(encoding="utf-8"))
    assert weights.weights_sha256 == recorded["weights_sha256"]
    theirs = {name: module.weight for name, module in linear_modules(merged).items()}
    assert theirs.keys() == ours.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=2e-6, rtol=0)


def test_task_arithmetic_is_the_base_and_both_adapters_added_by_hand(inputs: Path, base: Base, tmp_path: Path) -> None:
    given = {"method": {"name": "task_arithmetic"}, "comparisons": None, "evaluation": None}
    run_tiny(inputs, tmp_path / "run", base, **given)
    expected = by_hand(base, inputs / "utility", inputs / "safety")
    merged = load_with_peft(base, tmp_path / "run" / "adapter").merge_and_unload()
    for name, module in linear_modules(merged).items():
        torch.testing.assert_close(module.weight.double(), expected[name], atol=5e-6, rtol=0)


@pytest.mark.parametrize("swap", [False, True])
def test_adapters_on_different_modules_are_merged_as_peft_adds_them_up(
    inputs: Path, base: Base, tmp_path: Path, swap: bool
) -> None:
    """A module that one adapter lacks is unchanged by it: the sum there is the other's update alone."""
    own = copied(inputs, tmp_path / "inputs")
    name, layers = str(inputs / "base"), {"layers_to_transform": [1]}
    few = write_peft_adapter(own / "few", base, seed=5, base_name=name, target_modules=["q_proj", "v_proj"])
    other = write_peft_adapter(
        own / "other", base, seed=6, rank=2, base_name=name, target_modules=["v_proj", "up_proj"], **layers
    )
    pair = {"utility": str(other if swap else few), "safety": str(few if swap else other)}
    adapters = pair | {"missing_modules": "zero"}
    with pytest.raises(AdapterError, match=r"Set adapters\.missing_modules: zero if the other one is meant"):
        run_tiny(own, tmp_path / "refused", base, adapters=pair)
    run_tiny(own, tmp_path / "sum", base, adapters=adapters, method={"name": "task_arithmetic"}, comparisons=None)
    comparisons = [{"name": "ties"}, {"name": "dare"}, {"name": "linear"}, {"name": "sst", "fisher": "kfac"}]
    run_tiny(own, tmp_path / "sst", base, adapters=adapters, comparisons=comparisons)

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        loaded = linear_modules(load_with_peft(base, folder).merge_and_unload())
        return {name: module.weight.double() - base.modules[name].weight.double() for name, module in loaded.items()}

    alone = [weights(Path(pair[role])) for role in ("utility", "safety")]
    summed, steered = weights(tmp_path / "sum" / "adapter"), weights(tmp_path / "sst" / "adapter")
    is_in = {name: tuple(bool(update.any()) for update in (alone[0][name], alone[1][name])) for name in base.modules}
    assert set(is_in.values()) == {(True, True), (True, False), (False, True), (False, False)}
    for module, (_, in_safety) in is_in.items():
        torch.testing.assert_close(summed[module], alone[0][module] + alone[1][module], atol=5e-6, rtol=0)
        change = steered[module] - alone[0][module]
        if in_safety:
            assert 0.001 < float(change.norm()) != pytest.approx(float(alone[1][module].norm()), rel=1e-3)
        else:
            assert float(change.abs().max()) < 5e-6
    written = json.loads((tmp_path / "sst" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["target_modules"] == sorted(name for name, (one, two) in is_in.items() if one or two)
    notes = numbers(tmp_path / "sst")["run"]["notes"]
    lacking = {role: [name for name, of in is_in.items() if any(of) and not of[i]] for i, role in enumerate(pair)}
    for role, names in lacking.items():
        note = f"no {role} adapter has {len(names)} of the 5 modules, such as '{min(names)}': its update is zero there"
        assert note in notes


def test_the_merged_adapter_names_the_base_that_the_adapters_name(inputs: Path, base: Base, tmp_path: Path) -> None:
    """Which PEFT and the hub know, and not the run file's spelling, which may be relative or a name of ours."""
    own = copied(inputs, tmp_path / "inputs")
    run_tiny(own, tmp_path / "run", base, method={"name": "ties"}, comparisons=None, evaluation=None)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(inputs / "base") != str(own / "base")
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {inputs / 'base'}\n" in card
    assert f"with the base model `{own / 'base'}`" in card


def test_settings_of_one_method_in_one_run_are_the_models_of_two_runs(inputs: Path, base: Base, tmp_path: Path) -> None:
    half = {"name": "sst", "keep": {"soft": 10}, "strength": 0.5}
    plain = {"name": "sst", "keep": {"soft": 10}, "utility_weight": 0.5}
    both = [half | {"label": "half"}, plain]
    results = run_tiny(inputs, tmp_path / "one", base, comparisons=both)
    run_tiny(inputs, tmp_path / "other", base, method=half, comparisons=None)
    assert [arm["label"] for arm in results["arms"][3:]] == ["Merged (SST-Merge)", "SST-Merge (half)", "SST-Merge"]
    arms = {arm["name"]: arm["update_norm"] for arm in results["arms"][3:]}
    alone = json.loads((tmp_path / "other" / "scores" / "merged" / "arm.json").read_text(encoding="utf-8"))
    assert arms["half"] == pytest.approx(alone["update_norm"], rel=1e-6)
    assert len({round(norm, 4) for norm in arms.values()}) == 3
    assert set(results["safety_tax"]) == {"merged", "half", "sst"}
    rows = {row.method: row for row in compare([tmp_path / "one"])}
    assert list(rows) == ["sst (merged)", "half (sst)", "sst"]
    (lone,) = compare([tmp_path / "other"])
    assert (rows["half (sst)"].gain, rows["half (sst)"].loss) == (lone.gain, lone.loss)


def test_one_task_on_two_data_sets_has_two_results(inputs: Path, base: Base, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    write_rows(own / "more.jsonl", "more good", 4)
    evaluation = run_values(own, tmp_path)["evaluation"]
    again = {"task": "over_refusal", "data": str(own / "more.jsonl"), "max_new_tokens": 3}
    both = {**evaluation, "tasks": [*evaluation["tasks"], again | {"label": "more"}]}
    results = run_tiny(own, tmp_path / "run", base, evaluation=both, comparisons=None)
    told = {task["name"]: (task["title"], task["family"], task["n"], task.get("task")) for task in results["tasks"]}
    assert told["over_refusal"] == ("Over-refusal of everyday prompts", "over_refusal", 5, None)
    assert told["more"] == ("Over-refusal of everyday prompts (more)", "over_refusal", 4, "over_refusal")
    lines = (tmp_path / "run" / "scores" / "merged" / "more.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["prompt"].split(" on")[0].strip() for line in lines} == {
        f"more good {n}" for n in range(4)
    }
    assert {e["n"] for e in results["estimates"] if (e["task"], e["measure"]) == ("more", "refused")} == {4}
    tax = results["safety_tax"]["merged"]
    assert tax["over_refusal"]["n"] == 5  # the first task of each family decides
    assert [(other["metric"], other["n"]) for other in tax["others"]] == [("more.refused", 4)]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    card = page.split('<div class="cards">')[1].split("</header>")[0]
    assert "not counted, Over-refusal of everyday prompts (more): refusal rate: <b>" in card
    unnamed = {**evaluation, "tasks": [*evaluation["tasks"], again]}
    with pytest.raises(
        ConfigError, match=r"a task that stands twice in evaluation\.tasks needs a label of its own, got \["
    ):
        run_config(own, tmp_path / "no", evaluation=unnamed)


def test_every_arm_is_hashed_and_no_two_are_alike(finished: Path) -> None:
    arms = {name: json.loads((finished / "scores" / name / "arm.json").read_text(encoding="utf-8")) for name in ARMS}
    assert len({arm["weights_sha256"] for arm in arms.values()}) == 4
    assert arms["base"]["update_norm"] == 0.0
    assert all(arms[name]["update_norm"] > 0.1 and not arms[name]["unchanged_modules"] for name in ARMS[1:])
    assert arms["utility"]["relative_distance_to_utility"] < 1e-6
    assert arms["merged"]["relative_distance_to_utility"] > 0.1


def test_prompts_and_samples_are_the_same_in_all_arms(finished: Path) -> None:
    for task in ("refusal", "over_refusal", "exact_match"):
        seen = set()
        for arm in (*ARMS, "task_arithmetic"):
            lines = (finished / "scores" / arm / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
            samples = [json.loads(line) for line in lines]
            seen.add(tuple((sample["id"], sample["prompt_tokens_sha256"]) for sample in samples))
        assert len(seen) == 1


@pytest.mark.parametrize(
    "method", [{"name": "sst"}, {"name": "sst", "fisher": "diagonal"}, {"name": "task_arithmetic"}], ids=str
)
def test_strength_zero_is_the_utility_adapter_and_the_run_is_invalid(
    inputs: Path, base: Base, tmp_path: Path, method: dict[str, Any]
) -> None:
    run_tiny(inputs, tmp_path / "run", base, method={**method, "strength": 0.0}, comparisons=None)
    ours, theirs = (read_adapter(folder).updates for folder in (tmp_path / "run" / "adapter", inputs / "utility"))
    for name, update in theirs.items():
        assert torch.equal(ours[name].dense(), update.dense())
    tax = verdict(tmp_path / "run")
    assert (tax["verdict"]["code"], tax["tax"]) == ("INVALID_IDENTICAL_WEIGHTS", None)


def test_a_run_without_a_utility_task_is_checked_and_says_what_it_lacks(
    inputs: Path, base: Base, tmp_path: Path
) -> None:
    evaluation = run_values(inputs, tmp_path)["evaluation"]
    only = {**evaluation, "tasks": [task for task in evaluation["tasks"] if task["task"] == "refusal"]}
    run_tiny(inputs, tmp_path / "same", base, method={"name": "sst", "strength": 0.0}, evaluation=only)
    assert verdict(tmp_path / "same")["verdict"]["code"] == "INVALID_IDENTICAL_WEIGHTS"
    run_tiny(inputs, tmp_path / "run", base, evaluation=only)
    tax = verdict(tmp_path / "run")
    assert not tax["verdict"]["code"].startswith("INVALID")
    assert tax["loss"]["reason"] == "no utility task was evaluated"
    assert {gate["id"]: gate["status"] for gate in tax["gates"]}["G1"] == "pass"


def test_looks_count_the_weights_that_a_sample_was_put_to(inputs: Path, base: Base, tmp_path: Path) -> None:
    evaluation = run_values(inputs, tmp_path)["evaluation"]
    looks = []
    for strength, limit, comparisons in ((1.0, 6, None), (1.0, 6, [{"name": "ties"}]), (0.5, 5, None)):
        changes = {"method": {"name": "task_arithmetic", "strength": strength}, "comparisons": comparisons}
        nested = {**evaluation, "limit": limit}
        run_tiny(inputs, tmp_path / "run", base, replace_run=True, evaluation=nested, **changes)
        looks.append(verdict(tmp_path / "run")["looks"])
    assert looks == [1, 1, 2]  # another comparison is no look at the merge; fewer of the same samples are


def test_a_comparison_that_merges_nothing_is_invalid_and_leaves_the_merge_its_verdict(
    inputs: Path, base: Base, tmp_path: Path
) -> None:
    comparisons = [{"name": "task_arithmetic", "strength": 0.0}]
    results = run_tiny(inputs, tmp_path / "run", base, comparisons=comparisons)
    codes = {name: tax["verdict"]["code"] for name, tax in results["safety_tax"].items()}
    assert codes["task_arithmetic"] == "INVALID_IDENTICAL_WEIGHTS"
    assert not codes["merged"].startswith("INVALID")
    values = {(entry["arm"], entry["value"] is None) for entry in results["estimates"]}
    assert {("merged", False), ("task_arithmetic", True)} <= values
    assert results["run"]["calibration"] == {
        "safety": f"{inputs / 'safety_calibration.jsonl'} (all)",
        "utility": f"{inputs / 'utility_calibration.jsonl'} (all)",
        "harmless": None,
        "safety_samples": 5,
        "utility_samples": 5,
        "point": "utility",
        "labels": "data",
    }


def test_a_safety_adapter_of_zeros_gives_no_result(inputs: Path, base: Base, tmp_path: Path) -> None:
    damaged = copied(inputs, tmp_path / "inputs")
    set_factors(damaged / "safety", 0.0)
    run_tiny(damaged, tmp_path / "run", base, base_model=str(inputs / "base"), comparisons=None)
    tax = verdict(tmp_path / "run")
    assert (tax["verdict"]["code"], tax["tax"]) == ("INVALID_IDENTICAL_WEIGHTS", None)
    report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "identical weights" in report
    assert "no result: INVALID_IDENTICAL_WEIGHTS" in report
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    numbers = {(e["arm"], e["value"] is None) for e in results["estimates"]}
    assert numbers == {("base", False), ("utility", False), ("safety", False), ("merged", True)}
    assert {(d["estimate"], d["ci"], d["p"], d["b"]) for d in results["differences"]} == {(None, None, None, None)}


def test_a_safety_adapter_of_tiny_noise_shows_no_gain_and_has_no_tax(inputs: Path, base: Base, tmp_path: Path) -> None:
    damaged = copied(inputs, tmp_path / "inputs")
    set_factors(damaged / "safety", 1e-3)
    run_tiny(damaged, tmp_path / "run", base, base_model=str(inputs / "base"), comparisons=None)
    tax = verdict(tmp_path / "run")
    assert (tax["verdict"]["code"], tax["tax"]) == ("NO_DETECTABLE_GAIN", None)
    gain = tax["gain"]
    assert gain["ci"][0] < 0 < gain["ci"][1]  # never an interval of no width, however alike the answers
    hashes = {json.loads((tmp_path / "run" / "scores" / a / "arm.json").read_text())["weights_sha256"] for a in ARMS}
    assert len(hashes) == 4


def test_the_same_adapter_in_both_places_is_invalid(inputs: Path, base: Base, tmp_path: Path) -> None:
    adapters = {"utility": str(inputs / "utility"), "safety": str(inputs / "utility")}
    run_tiny(inputs, tmp_path / "run", base, adapters=adapters, comparisons=None)
    assert verdict(tmp_path / "run")["verdict"]["code"] == "INVALID_IDENTICAL_WEIGHTS"


def test_an_update_that_never_reaches_the_weights_is_invalid(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate_stage.applied

    @contextmanager
    def forgets_the_merge(base: Base, updates: Updates, where: str) -> Iterator[Applied]:
        with real(base, {} if where == "merged" else updates, where) as done:
            yield done

    monkeypatch.setattr(evaluate_stage, "applied", forgets_the_merge)
    run_tiny(inputs, tmp_path / "run", base, comparisons=None)
    tax = verdict(tmp_path / "run")
    assert (tax["verdict"]["code"], tax["tax"]) == ("INVALID_IDENTICAL_WEIGHTS", None)


def test_an_arm_that_answers_as_another_by_mistake_is_invalid(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate_stage.applied
    utility = read_adapter(inputs / "utility").updates

    @contextmanager
    def mixes_arms_up(base: Base, updates: Updates, where: str) -> Iterator[Applied]:
        with real(base, utility if where == "merged" else updates, where) as done:
            yield done

    monkeypatch.setattr(evaluate_stage, "applied", mixes_arms_up)
    run_tiny(inputs, tmp_path / "run", base, comparisons=None)
    assert verdict(tmp_path / "run")["verdict"]["code"] == "INVALID_IDENTICAL_WEIGHTS"


def test_an_exception_inside_the_method_leaves_no_adapter_no_scores_and_no_report(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("input_ids")

    monkeypatch.setattr(Sst, "merge_module", fails)
    with pytest.raises(KeyError, match="input_ids"):
        run_tiny(inputs, tmp_path / "run", base)
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"manifest.json", "plan.json", "statistics"}


def test_an_exception_inside_a_comparison_gives_it_no_scores_and_the_run_no_report(
    inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TaskArithmetic, "merge_module", lambda *_: {}["input_ids"])
        with pytest.raises(KeyError, match="input_ids"):
            run_tiny(inputs, tmp_path / "run", base)
    assert not (tmp_path / "run" / "scores" / "task_arithmetic").exists()
    assert not any((tmp_path / "run" / name).exists() for name in ("results.json", "safety_tax.json", "report.html"))
    run_tiny(inputs, tmp_path / "run", base)  # and once the bug is gone, the run goes on
    assert numbers(tmp_path / "run") == numbers(finished)
    assert artefacts(tmp_path / "run") == artefacts(finished)


def test_weights_are_restored_after_a_run(inputs: Path, base: Base, finished: Path) -> None:
    first = json.loads((finished / "scores" / "base" / "arm.json").read_text(encoding="utf-8"))
    with evaluate_stage.applied(base, {}, "base") as weights:
        assert weights.weights_sha256 == first["weights_sha256"]


def test_answers_decide_the_verdict(inputs: Path, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted answers: utility answers its task, safety and merged refuse; so the gain is 100 points at no loss."""
    said: list[str] = []
    real = evaluate_stage.applied
    rows = [
        json.loads(line)
        for task in TASKS
        for line in (inputs / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    words = {row["prompt"]: row.get("answer", "") for row in rows}

    @contextmanager
    def notes_the_arm(base: Base, updates: Updates, where: str) -> Iterator[Applied]:
        said.append(where)
        with real(base, updates, where) as done:
            yield done

    def scripted(base: Base, read: ReadPrompts, *, max_new_tokens: int) -> list[Completion]:
        del max_new_tokens
        answers = []
        for ids in (row[mask == 1] for row, mask in zip(read.batch.ids, read.batch.mask, strict=True)):
            text = next(text for text in words if text in base.tokenizer.decode(ids))
            if text.startswith("bad") and said[-1] in {"safety", "merged"}:
                answers.append("I cannot.")
            elif text.startswith("task") and said[-1] in {"utility", "merged"}:
                answers.append(words[text])
            else:
                answers.append("Something else.")
        return [Completion(answer, 3, is_truncated=False) for answer in answers]

    monkeypatch.setattr(evaluate_stage, "applied", notes_the_arm)
    monkeypatch.setattr(evaluate_stage, "generate", scripted)
    results = run_tiny(inputs, tmp_path / "run", base)
    rates = {(e["arm"], e["task"]): e["value"] for e in results["estimates"] if e["measure"] in {"refused", "correct"}}
    assert [rates[arm, "refusal"] for arm in ARMS] == [0, 0, 1, 1]
    assert [rates[arm, "over_refusal"] for arm in ARMS] == [0, 0, 0, 0]
    assert [rates[arm, "exact_match"] for arm in ARMS] == [0, 1, 0, 1]
    merged, added = results["safety_tax"]["merged"], results["safety_tax"]["task_arithmetic"]
    assert merged["verdict"]["code"] == "GAIN_NO_DETECTABLE_LOSS"
    assert merged["gain"]["estimate"] == 1.0
    assert merged["loss"]["estimate"] == 0.0
    assert added["verdict"]["code"] == "NO_DETECTABLE_GAIN"  # this arm complies and fails its task
    assert added["loss"]["estimate"] == 1.0


def test_probes_of_different_prompts_are_not_compared(inputs: Path, base: Base, tmp_path: Path) -> None:
    run_tiny(inputs, tmp_path / "run", base, comparisons=None)
    file = tmp_path / "run" / "scores" / "utility" / "probe.safetensors"
    save_file({"log_probabilities": load_file(file)["log_probabilities"][:-1].contiguous()}, file)
    summary = json.loads((file.parent / "arm.json").read_text(encoding="utf-8"))
    summary["files"][file.name] = file_sha256(file)  # as if it had been evaluated so
    (file.parent / "arm.json").write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"probe.safetensors has other prompts .* --replace"):
        run_tiny(inputs, tmp_path / "run", base, comparisons=None)
