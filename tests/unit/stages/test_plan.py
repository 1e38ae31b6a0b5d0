"""What is known before a model is loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import write_other_inputs
from sst_merge.adapter_io import read_headers
from sst_merge.errors import AdapterError, DataError
from sst_merge.model_files import weights_identity
from sst_merge.stages.calibrate import statistics_folder
from sst_merge.stages.plan import describe, plan, problems, require_room, write_plan
from tiny import write_base
from tiny_run import copied, run_config, run_file, write_rows


def made(inputs: Path, **changes: Any) -> Any:
    return plan(run_config(inputs, Path("unused"), **changes), root=Path())


@pytest.mark.parametrize("kind", ["falcon", "gpt2", "gptj", "opt", "mpt", "mamba2", "gemma3"])
def test_a_model_of_any_kind_is_planned_whatever_its_configuration_calls_its_sizes(
    sst: Callable[..., Any], inputs: Path, tmp_path: Path, kind: str
) -> None:
    targets = {"target_modules": ["in_proj"]} if kind == "mamba2" else {}  # PEFT refuses its output projection
    base = write_other_inputs(tmp_path / "inputs", kind, inputs, **targets)
    ended = sst("check", run_file(tmp_path / "run.yaml", tmp_path / "inputs", tmp_path / "run"))
    assert ended.code == 0, ended.err
    modules = describe(made(tmp_path / "inputs"))["modules"]
    assert modules.keys() == {name for name in base.modules if not targets or name.endswith("in_proj")}


def test_sizes_follow_from_the_headers(inputs: Path) -> None:
    description = describe(made(inputs, comparisons=None))
    modules = description["modules"]
    assert modules["model.layers.0.mlp.up_proj"] == {
        "shape": [48, 32],
        "utility_rank": 4,
        "safety_rank": 3,
        "side": "input",
        "coordinates": 3 * 32,
    }
    assert modules["model.layers.0.mlp.down_proj"]["side"] == "output"
    coordinates = sum(3 * min(module["shape"]) for module in modules.values())
    assert description["statistics_bytes"] == 4 * 10 * coordinates
    assert description["adapter_parameters"] == sum(7 * sum(module["shape"]) for module in modules.values())
    assert description["statistics_required"] == ["sample_gradients"]
    calibration = {name: str(inputs / f"{name}_calibration.jsonl") for name in ("utility", "safety")}
    two = describe(made(inputs, comparisons=None, calibration={**calibration, "point": "utility_and_merged"}))
    assert two["statistics_bytes"] == 2 * description["statistics_bytes"]


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ({"method": {"name": "ties"}}, 32),
        ({"method": {"name": "ties"}, "rank": 5}, 5),
        ({"method": {"name": "linear"}, "rank": 50}, 7),
    ],
)
def test_the_size_of_the_adapter_follows_the_method_and_the_rank(
    inputs: Path, changes: dict[str, Any], rank: int
) -> None:
    description = describe(made(inputs, comparisons=None, **changes))
    full = sum(min(rank, *module["shape"]) * sum(module["shape"]) for module in description["modules"].values())
    assert description["adapter_parameters"] == full


def test_the_size_that_was_planned_is_the_size_of_the_statistics(inputs: Path) -> None:
    description = describe(made(inputs))
    headers = read_headers(inputs / "safety")
    assert sum(module["coordinates"] for module in description["modules"].values()) == sum(
        header.rank * min(header.shape) for header in headers.values()
    )


def test_a_run_without_statistics_reads_no_calibration_rows(inputs: Path) -> None:
    without = made(inputs, method={"name": "linear"}, comparisons=None)
    assert without.inputs.calibration_safety == without.inputs.calibration_utility == []
    assert statistics_folder(without) is None
    needed_by_a_comparison = made(inputs, method={"name": "linear"}, comparisons=[{"name": "sst"}])
    assert len(needed_by_a_comparison.inputs.calibration_safety) == 5


def test_the_identity_does_not_hold_the_output(inputs: Path) -> None:
    first = plan(run_config(inputs, Path("one")), root=Path())
    second = plan(run_config(inputs, Path("two")), root=Path())
    assert first.identity == second.identity


@pytest.mark.parametrize(
    ("changes", "is_shared"),
    [
        ({"method": {"name": "sst", "strength": 0.3, "keep": {"directions": 2}, "damping_safety": 0.5}}, True),
        ({"method": {"name": "sst", "fisher": "diagonal"}}, True),
        ({"comparisons": [{"name": "ties"}], "rank": 2, "adapter_dtype": "bfloat16"}, True),
        ({"evaluation": None}, True),
        ({"dtype": "float16"}, False),
        ({"device": "cpu"}, not torch.cuda.is_available()),  # what auto stands for here
    ],
    ids=str,
)
def test_statistics_belong_to_everything_that_they_depend_on_and_to_nothing_else(
    inputs: Path, changes: dict[str, Any], is_shared: bool
) -> None:
    first, second = statistics_folder(made(inputs)), statistics_folder(made(inputs, **changes))
    assert (first == second) is is_shared


@pytest.mark.parametrize("what", ["weights", "rows", "order of use", "weight of a row", "batch size", "base"])
def test_other_inputs_have_other_statistics(inputs: Path, tmp_path: Path, what: str) -> None:
    own = copied(inputs, tmp_path / "inputs")
    before = statistics_folder(made(own, base_model=str(own / "base")))
    values: dict[str, Any] = {"base_model": str(own / "base")}
    calibration = {name: str(own / f"{name}_calibration.jsonl") for name in ("utility", "safety")}
    if what == "weights":
        config = own / "utility" / "adapter_config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**fields, "lora_alpha": 9.0}), encoding="utf-8")
    elif what == "rows":
        write_rows(own / "safety_calibration.jsonl", "harm", 5, answers=["I can't."])
    elif what == "order of use":
        values["calibration"] = {"utility": calibration["safety"], "safety": calibration["utility"], "batch_size": 3}
    elif what == "weight of a row":
        weighted = {"data": calibration["utility"], "weight": 0.5}
        values["calibration"] = {**calibration, "utility": weighted, "batch_size": 3}
    elif what == "batch size":
        values["calibration"] = {**calibration, "batch_size": 2}
    else:
        (own / "base" / "generation_config.json").write_text("{}", encoding="utf-8")
    assert statistics_folder(made(own, **values)) != before


def test_the_limit_draws_rows_by_the_seed_and_keeps_what_fewer_would_have(inputs: Path) -> None:
    tasks = [{"task": "refusal", "data": str(inputs / "refusal.jsonl")}]

    def ids(limit: int | None, seed: int = 0) -> list[str]:
        config = {"evaluation": {"tasks": tasks, "limit": limit}, "seed": seed}
        return [row.id for row in made(inputs, **config).inputs.evaluation["refusal"]]

    assert ids(3) == ids(5)[:3] == ids(None)[:3]
    assert len(ids(100)) == 7
    assert ids(None, seed=1) != ids(None)
    assert sorted(ids(None, seed=1)) == sorted(ids(None))


def test_two_sources_are_one_set_of_rows_and_a_shared_prompt_counts_once(inputs: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "more.jsonl", "bad", 9)
    tasks = [{"task": "refusal", "data": [str(inputs / "refusal.jsonl"), str(tmp_path / "more.jsonl")]}]
    planned = made(inputs, evaluation={"tasks": tasks})
    rows = planned.inputs.evaluation["refusal"]
    assert len(rows) == len({row.id for row in rows}) == 9
    assert "evaluation.refusal: 7 prompt(s) stand in several of its sources; taken once" in planned.notes
    assert not [note for note in made(inputs).notes if "several of its sources" in note]


def test_one_prompt_cannot_have_two_weights(inputs: Path, tmp_path: Path) -> None:
    source = str(inputs / "utility_calibration.jsonl")
    calibration: dict[str, Any] = {"safety": str(inputs / "safety_calibration.jsonl")}
    calibration["utility"] = [source, {"data": source, "weight": 3}]
    with pytest.raises(DataError, match=r"^calibration\.utility\.1: the prompt .* has weight 3 here and 1 in an"):
        made(inputs, calibration=calibration)


def test_answers_that_are_left_out_are_noted_where_answers_are_read(inputs: Path, tmp_path: Path) -> None:
    for use in ("utility_calibration", "exact_match", "refusal"):
        file = inputs / f"{use}.jsonl"
        row = json.loads(file.read_text(encoding="utf-8").split("\n", 1)[0])
        more = json.dumps({**row, "answer": "another"}) + "\n" + json.dumps({**row, "answer": "a third"}) + "\n"
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8") + more, encoding="utf-8")
    said = "1 prompt(s) have several answers; the first is used, 2 row(s) are left out"
    calibration = {"safety": str(inputs / "safety_calibration.jsonl")}
    calibration["utility"] = str(tmp_path / "utility_calibration.jsonl")
    tasks = [{"task": "refusal", "data": str(tmp_path / "refusal.jsonl")}]
    tasks.append({"task": "exact_match", "data": str(tmp_path / "exact_match.jsonl")})
    planned = made(inputs, calibration=calibration, evaluation={"tasks": tasks})
    expected = [f"calibration.utility: {said}", f"evaluation.exact_match: {said}"]
    assert [note for note in planned.notes if "several answers" in note] == expected
    assert not [note for note in made(inputs).notes if "several answers" in note]


def test_harmless_prompts_are_refused_in_calibration_and_first_tokens_count(inputs: Path, tmp_path: Path) -> None:
    note = "calibration.harmless is not given: no data say which prompts must not be refused"
    assert note in made(inputs).notes
    for name in ("drawn", "own"):
        row = {"prompt": f"Which day is it, {name}?", "answer": "Monday."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "refusals.txt").write_text("I can't say.\n", encoding="utf-8")
    answers = ("No.", "I won't.", "Not this.", "Never.")
    harmful = [{"prompt": f"Harm {i}.", "answer": answer} for i, answer in enumerate((*answers, "No."))]
    text = "".join(json.dumps(row) + "\n" for row in harmful)
    (tmp_path / "harmful.jsonl").write_text(text, encoding="utf-8")
    calibration: dict[str, Any] = {"safety": str(tmp_path / "harmful.jsonl")}
    calibration["utility"] = str(inputs / "utility_calibration.jsonl")
    before = made(inputs, calibration=calibration).inputs
    own = {"data": str(tmp_path / "own.jsonl"), "answers": str(tmp_path / "refusals.txt")}
    calibration["harmless"] = [str(tmp_path / "drawn.jsonl"), own]
    planned = made(inputs, calibration=calibration)
    assert note not in planned.notes
    safety, utility = planned.inputs.calibration_safety, planned.inputs.calibration_utility
    whole, begun = safety[:5], safety[5:]
    assert whole == before.calibration_safety
    assert begun[::3] == [replace(row, answer_tokens=6) for row in whole]
    assert [row.id for row in begun] == [row.id for row in whole for _ in range(3)]
    assert all(len({row.answer for row in begun[i : i + 3]}) == 3 for i in range(0, 15, 3))
    assert {row.answer for row in begun} == set(answers)
    ten = made(inputs, calibration={**calibration, "refusals_per_prompt": 10}).inputs
    assert len(ten.calibration_safety) == 5 + 5 * 4  # four different refusals are all there are
    few = "calibration.refusals_per_prompt is 10, and calibration.safety has 4 different answers"
    assert few in made(inputs, calibration={**calibration, "refusals_per_prompt": 10}).notes
    assert not [note for note in planned.notes if "refusals_per_prompt" in note]
    one = made(inputs, calibration={**calibration, "refusals_per_prompt": 1}).inputs
    assert one.calibration_safety == [*whole, *begun[::3]]
    *others, drawn, refused = utility
    assert others == before.calibration_utility
    assert drawn.prompt == "Which day is it, drawn?"
    assert drawn.answer in {row.answer for row in before.calibration_safety}
    assert (refused.answer, refused.answer_tokens, drawn.answer_tokens) == ("I can't say.", 6, 6)
    foreign = (
        'calibration.harmless has 1 refusal(s) that no prompt of calibration.safety has ("I can\'t say."); at equal '
        "strength harmful prompts may be refused less for it. Without answers there, those of calibration.safety are "
        "taken"
    )
    assert foreign in planned.notes
    alike = made(inputs, calibration={**calibration, "harmless": str(tmp_path / "drawn.jsonl")})
    assert not [note for note in alike.notes if "calibration.harmless has" in note]
    three = made(inputs, calibration={**calibration, "first_tokens": 3}).inputs
    assert {row.answer_tokens for row in three.calibration_safety} == {None, 3}
    assert made(inputs, calibration={**calibration, "first_tokens": 3}).identity != planned.identity


def test_harmless_prompts_that_are_evaluated_are_refused(inputs: Path) -> None:
    calibration = {name: str(inputs / f"{name}_calibration.jsonl") for name in ("safety", "utility")}
    with pytest.raises(DataError, match=r"calibration.harmless.*evaluation.refusal"):
        made(inputs, calibration={**calibration, "harmless": str(inputs / "refusal.jsonl")})


def test_rows_that_two_tasks_share_are_refused(inputs: Path) -> None:
    tasks = [{"task": task, "data": str(inputs / "refusal.jsonl")} for task in ("refusal", "over_refusal")]
    with pytest.raises(DataError, match=r"evaluation.refusal.*evaluation.over_refusal"):
        made(inputs, evaluation={"tasks": tasks})


def test_prompts_that_are_used_twice_are_shown(inputs: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "bad  0"}, {"prompt": "something else"}]  # the first of refusal.jsonl
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = [
        {"task": task, "data": str(data)}
        for task, data in (("refusal", inputs / "refusal.jsonl"), ("over_refusal", file))
    ]
    with pytest.raises(DataError, match=r"share 1 prompt\(s\), first 'bad 0'"):
        made(inputs, evaluation={"tasks": tasks})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": {"name": "ties", "strength": 0}}, "method.strength is 0: nothing of the safety adapter"),
        ({"comparisons": [{"name": "ties", "strength": 0}]}, "comparisons.0.strength is 0: nothing of the safety"),
        ({"adapters": "same"}, "adapters.utility and adapters.safety are one and the same"),
    ],
)
def test_a_merge_that_merges_nothing_is_noted(inputs: Path, changes: dict[str, Any], expected: str) -> None:
    if changes == {"adapters": "same"}:
        changes = {"adapters": {role: str(inputs / "safety") for role in ("utility", "safety")}}
    assert not any(note.startswith(expected) for note in made(inputs).notes)
    assert sum(note.startswith(expected) for note in made(inputs, **changes).notes) == 1


@pytest.mark.parametrize(
    ("method", "is_noted"),
    [
        ({"fisher": "kfac"}, True),
        ({"fisher": "diagonal", "keep": {"soft": 250}}, True),
        ({"fisher": "diagonal", "keep": {"soft": 10}}, False),
        ({"fisher": "diagonal", "keep": {"directions": 8}}, False),
        ({"fisher": "diagonal", "span": "joint", "patch": "interpolate"}, False),  # Fisher merging
        ({"fisher": "none"}, False),
        ({}, False),
    ],
)
def test_a_price_for_another_structure_is_noted(inputs: Path, method: dict[str, Any], is_noted: bool) -> None:
    settings = {"name": "sst", **method}
    assert any("chosen for fisher exact" in note for note in made(inputs, method=settings).notes) == is_noted
    if is_noted:
        price = method.get("keep", {"soft": 100})["soft"]
        compared = made(inputs, method={"name": "ties"}, comparisons=[settings])
        (note,) = (note for note in compared.notes if "chosen for fisher exact" in note)
        assert note.startswith(f"comparisons.0.keep.soft is {price}: 100 was chosen for fisher exact. With fisher ")
        most = {"kfac": 53, "diagonal": 25}[method["fisher"]]
        assert f"fisher {method['fisher']} at 100, at most {most} % of the harmful prompts" in note
        assert note.endswith("begin with 10")


def test_unknown_training_rows_are_noted(inputs: Path) -> None:
    notes = [note for note in made(inputs).notes if "does not say what it was trained on" in note]
    assert [note.split()[1] for note in notes] == ["utility", "safety"]
    assert not [note for note in made(inputs, evaluation=None).notes if "trained on" in note]  # nothing to overlap


def with_record(folder: Path, role: str, **base: str) -> None:
    record = {"schema": "sst-merge/training/1", "config": {"role": role}, "base": "elsewhere", **base}
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")


def test_swapped_adapters_are_refused_by_what_they_were_trained_for(inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")

    def notes(utility: str, safety: str) -> list[str]:
        with_record(own / "utility", utility)
        with_record(own / "safety", safety)
        return [note for note in made(own).notes if "was trained as" in note]

    assert notes("utility", "safety") == []
    assert notes("harmful", "safety") == []  # a model that training has made harmful may be mended
    (note,) = notes("utility", "utility")  # two tasks may be added up
    assert note == f"the safety adapter was trained as a utility adapter ({own / 'safety' / 'training.json'})"
    assert len(notes("safety", "safety")) == 1
    for role in ("utility", "harmful"):
        with pytest.raises(AdapterError, match=rf"safety are swapped: .* a safety adapter and the other as a {role}"):
            notes("safety", role)
    calibration = {"safety": "gone.jsonl", "utility": "gone.jsonl"}  # what stops the plan first hides no swap
    config = run_config(own, tmp_path / "run", calibration=calibration)
    with pytest.raises(DataError) as first:
        plan(config, root=Path())
    assert any("are swapped" in str(error) for error in problems(config, first.value, root=Path()))


def test_an_adapter_of_other_weights_is_refused_by_its_record(inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    base = {"base_model": str(own / "base")}
    now = weights_identity(str(own / "base"))
    then = f"{now[:-4]}{'0000' if now[-4:] != '0000' else '1111'}"
    with_record(own / "safety", "safety", base_weights=now)
    assert made(own, **base)
    (own / "base" / "notes.txt").write_text("not a weight", encoding="utf-8")
    assert made(own, **base)  # other files of the base are none of its weights
    with_record(own / "safety", "safety", base_weights=then)
    with pytest.raises(AdapterError) as caught:
        made(own, **base)
    assert str(caught.value).startswith(
        f"the safety adapter ({own / 'safety'}) was trained on other weights than those"
    )
    assert f"  then {then}   ({own / 'safety' / 'training.json'})\n  now  {now}\n" in str(caught.value)
    adapters = {role: str(own / role) for role in ("utility", "safety")} | {"allow_different_base": True}
    assert made(own, adapters=adapters, **base)
    for other in ("org/model@abc", "package==1 sha256:0"):  # the same weights may have another name elsewhere
        with_record(own / "safety", "safety", base_weights=other)
        assert made(own, **base)
    with_record(own / "safety", "safety", base="folder sha256:0")  # of a version that did not tell weights apart
    note = f"the files of {own / 'base'} are not those that the safety adapter was trained on"
    assert note in made(own, **base).notes
    for other in ("[]", '{"config": 3}'):  # of another program
        (own / "safety" / "training.json").write_text(other, encoding="utf-8")
        assert not [n for n in made(own, **base).notes if "trained as" in n or "are not those" in n]
    for damaged in ("{", '{"schema": "sst-merge/training/1"}'):
        (own / "safety" / "training.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(AdapterError, match=r"training\.json is damaged .*Copy it again, or remove it"):
            made(own, **base)


def test_prompts_of_several_harmless_sources_are_told_as_such(inputs: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "calm.jsonl", "calm", 6)
    calibration: dict[str, Any] = {use: str(inputs / f"{use}_calibration.jsonl") for use in ("safety", "utility")}
    calibration["harmless"] = [str(tmp_path / "calm.jsonl")] * 2
    notes = [note for note in made(inputs, calibration=calibration).notes if "several of its sources" in note]
    assert notes == ["calibration.harmless: 6 prompt(s) stand in several of its sources; taken once"]


def test_an_adapter_that_changes_nothing_is_noted(inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    file = own / "safety" / "adapter_model.safetensors"
    save_file({key: value * ("lora_A" in key) for key, value in load_file(file).items()}, file)
    note = "the safety adapter changes nothing: its update is zero in every module"
    assert note in made(own).notes
    assert note not in made(inputs).notes


def test_an_adapter_of_full_rank_is_noted_with_its_size(inputs: Path) -> None:
    (note,) = (note for note in made(inputs, method={"name": "ties"}).notes if "full rank" in note)
    assert note.startswith("method ties gives an adapter of full rank (up to 32, 0 MB); with rank: 7, the rank of both")
    bounded = {"method": {"name": "ties"}, "rank": 4}
    assert not [note for note in made(inputs, **bounded).notes + made(inputs).notes if "full rank" in note]


def test_few_prompts_for_a_fisher_matrix_are_noted(inputs: Path, tmp_path: Path) -> None:
    few = [note for note in made(inputs).notes if "no more directions" in note]
    assert [note.split(":")[0] for note in few] == [
        "calibration.safety has 5 prompt(s)",
        "calibration.utility has 5 prompt(s)",
    ]
    write_rows(tmp_path / "many.jsonl", "sum", 16, answers=["red"])
    calibration = {use: str(tmp_path / "many.jsonl") for use in ("utility",)}
    calibration["safety"] = str(inputs / "safety_calibration.jsonl")
    (note,) = (note for note in made(inputs, calibration=calibration).notes if "no more directions" in note)
    assert note.startswith("calibration.safety")
    assert not [n for n in made(inputs, method={"name": "linear"}, comparisons=None).notes if "no more" in n]


def test_a_base_under_another_name_is_noted(inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    assert not any("as their base" in note for note in made(inputs).notes)
    (note,) = (note for note in made(inputs, base_model=str(own / "base")).notes if "as their base" in note)
    assert note.startswith(f"the adapters name {str(inputs / 'base')!r} as their base")


def test_statistics_that_stay_need_no_space_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("sst_merge.stages.plan.require_free_space", lambda _, needed, __: asked.append(needed))
    made = plan(run_config(inputs, tmp_path / "run"), root=Path())
    require_room(made)
    whole = write_plan(made, command="c")["statistics_bytes"]
    require_room(made)  # the run is there, and goes on
    folder = statistics_folder(made)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "batch-0000.safetensors").write_bytes(bytes(whole // 2))
    require_room(made, replace=True, reusable=[folder])
    write_plan(made, command="c", replace=True, reusable=[folder])
    assert [asked[0] - needed for needed in asked] == [0, whole // 2]
    assert (folder / "batch-0000.safetensors").is_file()


def test_a_cluster_on_both_sides_is_noted(inputs: Path, tmp_path: Path) -> None:
    own = copied(inputs, tmp_path / "inputs")
    for name, clusters in (("safety_calibration", "ab"), ("refusal", "bc"), ("exact_match", "cd")):
        file = own / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [row | {"cluster": clusters[number % 2]} for number, row in enumerate(rows)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    notes = [note for note in made(own).notes if "cluster(s)" in note]
    assert len(notes) == 1
    assert notes[0].startswith("evaluation.refusal shares 1 cluster(s) with the calibration ('b')")


def test_a_base_of_another_kind_than_the_adapters_were_trained_on_is_refused(inputs: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "mistral", "mistral")
    with pytest.raises(AdapterError, match=r"trained on .*base, a llama model, and base_model .* is a mistral model"):
        made(inputs, base_model=str(other))
    adapters = {"utility": str(inputs / "utility"), "safety": str(inputs / "safety"), "allow_different_base": True}
    (note,) = [note for note in made(inputs, base_model=str(other), adapters=adapters).notes if "as their base" in note]
    assert note.endswith("the shapes agree, whether the weights do is unchecked")


def test_what_the_named_base_cannot_say_stops_no_run(inputs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    own = copied(inputs, tmp_path / "inputs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for name in ("utility", "safety"):
        file = own / name / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(config | {"base_model_name_or_path": "other"}), encoding="utf-8")
    for text in ("not json", "[]", '{"auto_map": {}}'):
        (tmp_path / "other" / "config.json").write_text(text, encoding="utf-8")
        assert any("whether the weights do is unchecked" in note for note in made(own).notes)


def test_one_folder_twice_and_an_evaluation_without_a_family_are_noted(inputs: Path) -> None:
    twice = {"utility": [str(inputs / "utility")] * 2, "safety": str(inputs / "safety")}
    harmful = {"tasks": [{"task": "refusal", "data": str(inputs / "refusal.jsonl")}]}
    notes = made(inputs, adapters=twice, evaluation=harmful).notes
    assert "adapters.utility names one folder more than once; its update is added as often" in notes
    told = "evaluation has no utility task: no Safety Tax is stated, and the verdict finds no price because none is"
    assert any(note.startswith(told) for note in notes)
    assert not [note for note in made(inputs).notes if "more than once" in note or "evaluation has no" in note]
