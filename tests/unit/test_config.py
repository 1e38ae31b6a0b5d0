"""Run files: every problem in one message, in the run file's own words; overrides; strict YAML."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sst_merge.config import RunConfig, TrainConfig
from sst_merge.data import DataSource
from sst_merge.errors import ConfigError
from sst_merge.run_file import apply_overrides, is_training_file, load_config, validate

TRAIN = """
base_model: tiny
role: utility
data: train.jsonl
validation: {data: a.csv, split: validation}
output: out
"""
RUN = """
base_model: tiny
adapters: {utility: u, safety: s}
method: {name: task_arithmetic}
evaluation:
  tasks:
    - {task: refusal, data: harmful.jsonl}
    - {task: exact_match, data: math.jsonl}
output: runs/a
"""


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write(tmp_path, TRAIN)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write(tmp_path, RUN)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str, kind: Any = RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, path, overrides)
    return str(caught.value)


def problems(text: str, folder: Path, kind: Any = TrainConfig) -> list[str]:
    """The problems of a run file, without the heading."""
    path = write(folder, text)
    first, *lines = refusal(path, kind=kind).splitlines()
    assert first == f"{path}: {len(lines)} problem(s)"
    assert all(line.startswith("  ") for line in lines)
    return [line.removeprefix("  ") for line in lines]


def test_a_run_file_becomes_one_frozen_value(train_file: Path) -> None:
    config = load_config(TrainConfig, train_file)
    assert config.data == [DataSource(data="train.jsonl")]  # a bare string is a list of one reference
    assert config.validation == [DataSource(data="a.csv", split="validation")]
    assert (config.output, config.lora.rank) == (Path("out"), 8)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/train_*.yaml")), ids=lambda path: path.name
)
def test_shipped_training_files_are_valid(path: Path) -> None:
    assert load_config(TrainConfig, path).data


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = """
        base_model: tiny
        role: usefulness
        data: []
        validation: [{data: a.csv, sample: 3}, {dat: b.csv}, 7]
        lora: {rnak: 4, alpha: -1, rank: big}
        sed: 1
        batch_size: 2.5
        epochs: many
        evaluation: {tasks: [{task: refusal, dat: x}], limt: 3}
    """
    assert problems(text, tmp_path) == [
        "role: Input should be 'utility', 'safety' or 'harmful' (got 'usefulness')",
        "data: Value should have at least 1 item after validation, not 0 (got [])",
        "validation.0.sample: unknown key. Did you mean 'samples'?",
        "validation.1.data: is missing.",
        "validation.1.dat: unknown key. Did you mean 'data'?",
        "validation.2: Input should be a valid dictionary or instance of DataSource (got 7)",
        "lora.rank: Input should be a valid integer, unable to parse string as an integer (got 'big')",
        "lora.alpha: Input should be greater than 0 (got -1)",
        "lora.rnak: unknown key. Did you mean 'rank'?",
        "epochs: Input should be a valid number, unable to parse string as a number (got 'many')",
        "batch_size: Input should be a valid integer, got a number with a fractional part (got 2.5)",
        "evaluation.tasks.0.data: is missing.",
        "evaluation.tasks.0.dat: unknown key. Did you mean 'data'?",
        "evaluation.limt: unknown key. Did you mean 'limit'?",
        "output: is missing.",
        "sed: unknown key. Did you mean 'seed'?",
    ]


def test_a_key_in_the_wrong_section_is_shown_its_own(tmp_path: Path) -> None:
    text = RUN.replace("{name: task_arithmetic}", "{name: task_arithmetic, density: 0.5, soft: 1}")
    text += "calibration: {safety: {data: a.csv}, utility: {data: b.csv}, answers: r.txt, seed: 1}\npoint: base\n"
    text += "strength: 1\n"
    data = "calibration.utility, calibration.safety, calibration.harmless, evaluation.tasks.data"
    assert sorted(problems(text, tmp_path, RunConfig)) == [
        f"calibration.answers: not a key of this section; it belongs to {data}.",
        "calibration.seed: not a key of this section; it belongs to the top level.",
        "method.density: not a key of this section; it belongs to method ties, method dare.",
        "method.soft: not a key of this section; it belongs to method.keep, comparisons.keep.",
        "point: not a key of this section; it belongs to calibration.",
        "strength: not a key of this section; it belongs to method.",
    ]


def test_an_unknown_key_like_no_other_has_no_suggestion(tmp_path: Path) -> None:
    assert problems(TRAIN + "xyzzy: 1\n", tmp_path) == ["xyzzy: unknown key."]
    text = RUN.replace("{name: task_arithmetic}", "{name: linear, xyzzy: 1}")
    assert problems(text, tmp_path, RunConfig) == [
        "method.xyzzy: unknown key. Keys of linear: name, utility_weight, strength, label."
    ]
    (found,) = problems(RUN.replace("{name: task_arithmetic}", "{name: sst, keep: {xyzzy: 1}}"), tmp_path, RunConfig)
    assert found.startswith("method.keep")
    assert "Keys of" not in found


def test_keys_of_a_method_are_named_without_the_method(tmp_path: Path) -> None:
    text = RUN.replace("{name: task_arithmetic}", "{name: ties, densty: 0.5, strength: -1}")
    assert problems(text, tmp_path, RunConfig) == [
        "method.strength: Input should be greater than or equal to 0 (got -1)",
        "method.densty: unknown key. Did you mean 'density'?",
    ]


def test_an_unknown_method_lists_the_known_ones(tmp_path: Path) -> None:
    text = RUN.replace("task_arithmetic", "tie") + "comparisons: [{name: linear}, {name: zzz}]\n"
    assert problems(text, tmp_path, RunConfig) == [
        "method: unknown name 'tie'. Did you mean 'ties'? Known: sst, task_arithmetic, linear, ties, dare.",
        "comparisons.1: unknown name 'zzz'. Known: sst, task_arithmetic, linear, ties, dare.",
    ]


@pytest.mark.parametrize(
    ("method", "example", "got"),
    [
        ("{strength: 1}", "sst", "{'strength': 1}"),
        ("ties", "ties", "'ties'"),
        ("tie", "sst", "'tie'"),
        ("5", "sst", "5"),
    ],
)
def test_a_method_is_a_mapping_with_a_name(tmp_path: Path, method: str, example: str, got: str) -> None:
    problem = f"expected a mapping with a name, such as {{name: {example}}} (got {got})"
    text = RUN.replace("{name: task_arithmetic}", method) + f"comparisons: [{{name: linear}}, {method}]\n"
    assert problems(text, tmp_path, RunConfig) == [f"method: {problem}", f"comparisons.1: {problem}"]


@pytest.mark.parametrize("task", ["refusal", "{task: refusal}"])
def test_the_key_that_a_task_lacks_is_named(tmp_path: Path, task: str) -> None:
    text = RUN.replace("{task: exact_match, data: math.jsonl}", task).replace(
        "task: refusal, data: h", "task: over_refusal, data: h"
    )
    assert problems(text, tmp_path, RunConfig) == ["evaluation.tasks.1.data: is missing."]


def test_an_unknown_task_lists_the_known_ones(tmp_path: Path) -> None:
    (found,) = problems(RUN.replace("task: refusal", "task: refusl"), tmp_path, RunConfig)
    assert found == (
        "evaluation.tasks.0.task: unknown task. Did you mean 'refusal'? Known: refusal, over_refusal, exact_match, "
        "lm_eval:<task> (got 'refusl')"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("method: {name: sst}", "method 'sst' needs a calibration section"),
        (
            "comparisons: [{name: task_arithmetic, label: again}]",
            "comparisons.0 has the settings of method: the two would be one model; leave one of them out",
        ),
        (
            "comparisons: [{name: ties}, {name: linear}, {name: ties, label: more}]",
            "comparisons.2 has the settings of comparisons.0: the two would be one model; leave one of them out",
        ),
        (
            "comparisons: [{name: ties}, {name: ties, strength: 2}]",
            "comparisons.1 is named 'ties', and comparisons.0 has it; give it another label",
        ),
        (
            "comparisons: [{name: ties, label: merged}]",
            "comparisons.0 is named 'merged', and every run has an arm of that name; give it another label",
        ),
        (
            "method: {name: linear, label: mean}",
            "method.label is for comparisons (got 'mean'): this arm is always 'merged'",
        ),
        ("comparisons: [{name: ties, label: ../base}]", "comparisons.0.label: a label names files: 1 to 40 of a-z"),
        ("rank: 0", "rank must be at least 1 or 'exact', got 0"),
        (
            "evaluation: {tasks: [{task: refusal, data: a}, {task: refusal, data: b}]}",
            "evaluation: a task that stands twice in evaluation.tasks needs a label of its own",
        ),
        (
            "evaluation: {tasks: [{task: refusal, data: {data: a, weight: 2}}]}",
            "evaluation.tasks.0.data: weight is for calibration data only, and a has it here; leave it out",
        ),
        (
            "calibration: {safety: a, utility: b, first_tokens: 4}",
            "calibration: first_tokens has no effect without harmless; give harmless, or leave it out",
        ),
        (
            "calibration: {safety: a, utility: b, harmless: {data: c, answer_column: d}}",
            "calibration: harmless: answer_column has no effect, since answers are not read; c has it",
        ),
        (
            "{method: {name: sst, fisher: kfac}, calibration: {safety: a, utility: b, point: utility_and_merged}}",
            "calibration.point utility_and_merged pools per-sample gradients, and fisher kfac reads none; use fisher",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_named(tmp_path: Path, change: str, expected: str) -> None:
    values = yaml.safe_load(RUN) | yaml.safe_load(change)
    (found,) = problems(yaml.safe_dump(values), tmp_path, RunConfig)
    assert found.startswith(expected)


def test_one_method_may_be_compared_at_several_settings(tmp_path: Path) -> None:
    values = yaml.safe_load(RUN) | {"comparisons": [{"name": "task_arithmetic", "strength": 2}, {"name": "ties"}]}
    values["comparisons"].append({"name": "task_arithmetic", "strength": 3, "label": "more-1.5"})
    config = validate(RunConfig, values, "run.yaml")
    assert [method.arm for method in config.comparisons] == ["task_arithmetic", "ties", "more-1.5"]
    assert "label" not in config.comparisons[0].model_dump()  # a run of before labels existed keeps its identity


def test_training_data_count_alike(tmp_path: Path) -> None:
    values = yaml.safe_load(TRAIN) | {"validation": {"data": "a.csv", "weight": 3}}
    (found,) = problems(yaml.safe_dump(values), tmp_path, TrainConfig)
    assert found.startswith("validation: weight is for calibration data only, and a.csv has it here")


def test_the_alternatives_of_a_union_are_one_problem(tmp_path: Path) -> None:
    (found,) = problems(RUN + "rank: 0.5\n", tmp_path, RunConfig)
    assert found == (
        "rank: Input should be a valid integer, got a number with a fractional part (got 0.5), "
        "or: Input should be 'exact' (got 0.5)"
    )
    assert problems(TRAIN + "lora: {target_modules: 3}\n", tmp_path) == [
        "lora.target_modules: Input should be a valid string (got 3), or: Input should be a valid list (got 3)"
    ]
    assert problems(TRAIN + "lora: {target_modules: [q_proj, 3]}\n", tmp_path) == [
        "lora.target_modules: Input should be a valid string (got ['q_proj', 3])",
        "lora.target_modules.1: Input should be a valid string (got 3)",
    ]


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        ("[{path: a, weight: 0}]", "safety.0.weight: Input should be greater than 0 (got 0)"),
        ("[{path: a, weight: -1}, b]", "safety.0.weight: Input should be greater than 0 (got -1)"),
        ("[b, {weight: 1}]", "safety.1.path: is missing."),
        ("[]", "safety: List should have at least 1 item after validation, not 0 (got [])"),
        ("3", "safety: Input is not a valid path for <class 'pathlib.Path'> (got 3)"),
    ],
)
def test_a_mistake_in_a_list_of_adapters_is_one_problem(tmp_path: Path, adapters: str, expected: str) -> None:
    values = yaml.safe_load(RUN)
    values["adapters"]["safety"] = yaml.safe_load(adapters)
    assert problems(yaml.safe_dump(values), tmp_path, RunConfig) == [f"adapters.{expected}"]


@pytest.mark.parametrize("key", ["seed", "epochs", "batch_size", "learning_rate"])
def test_yes_is_no_number(tmp_path: Path, key: str) -> None:
    assert problems(TRAIN + f"{key}: yes\n", tmp_path) == [f"{key}: Input should be a number, not yes or no (got True)"]


@pytest.mark.parametrize(("text", "kind"), [(TRAIN, TrainConfig), (RUN, RunConfig)])
def test_a_seed_is_what_random_generators_take(tmp_path: Path, text: str, kind: Any) -> None:
    assert problems(f"{text}seed: -1\n", tmp_path, kind) == [
        "seed: Input should be greater than or equal to 0 (got -1)"
    ]
    assert problems(f"{text}seed: 4294967296\n", tmp_path, kind) == [
        "seed: Input should be less than 4294967296 (got 4294967296)"
    ]


@pytest.mark.parametrize("given", ["[]", "''"])
def test_something_must_be_adapted(tmp_path: Path, given: str) -> None:
    (found,) = problems(TRAIN + f"lora: {{target_modules: {given}}}\n", tmp_path)
    assert found.startswith("lora.target_modules: name at least one module, or use all-linear (got ")


def test_a_text_of_target_modules_is_a_regular_expression(tmp_path: Path) -> None:
    (found,) = problems(TRAIN + "lora: {target_modules: '(q_proj'}\n", tmp_path)
    assert found == (
        "lora.target_modules: a text is a regular expression, and this is none; use all-linear or a list of endings "
        "(got '(q_proj')"
    )


def test_yes_is_no_number_in_optional_and_nested_places(tmp_path: Path) -> None:
    assert problems(RUN + "rank: yes\n", tmp_path, RunConfig) == [
        "rank: Input should be a number, not yes or no (got True)"
    ]
    assert problems(TRAIN + "lora: {rank: on}\n", tmp_path) == [
        "lora.rank: Input should be a number, not yes or no (got True)"
    ]
    assert problems(TRAIN.replace("split: validation", "samples: true"), tmp_path) == [
        "validation.0.samples: Input should be a number, not yes or no (got True)"
    ]


def test_yes_is_a_boolean_where_one_belongs(run_file: Path) -> None:
    assert load_config(RunConfig, run_file, ["adapters.allow_different_base=yes"]).adapters.allow_different_base is True


@pytest.mark.parametrize("value", [".inf", ".nan", "inf", "nan"])
def test_numbers_are_finite(tmp_path: Path, value: str) -> None:
    (found,) = problems(TRAIN + f"learning_rate: {value}\n", tmp_path)
    assert found.startswith("learning_rate: Input should be a finite number (got ")


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'0.001'", "1E-3"])
def test_numbers_may_be_written_as_people_write_them(tmp_path: Path, text: str) -> None:
    # YAML 1.1 reads 1e-3 as text, for want of a point.
    assert load_config(TrainConfig, write(tmp_path, TRAIN + f"learning_rate: {text}\n")).learning_rate == 0.001


def test_an_override_may_be_written_so_too(train_file: Path) -> None:
    assert load_config(TrainConfig, train_file, ["learning_rate=5e-4"]).learning_rate == 5e-4


# The file


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml") == f"no such run file: {tmp_path / 'no.yaml'}"
    assert refusal(tmp_path) == f"{tmp_path} is a folder. Give the YAML file."


def test_a_file_of_the_other_kind_is_told_so_with_its_command(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("role: utility\ndata: a.jsonl\n", encoding="utf-8")
    assert is_training_file(file)
    assert refusal(file) == f"{file} is a training file (it has a role): sst-merge train {file}"
    file.write_text("adapters: {utility: u, safety: s}\n", encoding="utf-8")
    assert not is_training_file(file)
    with pytest.raises(
        ConfigError, match=rf"{file} is a run file \(it has adapters or a method\): sst-merge run {file}"
    ):
        load_config(TrainConfig, file)


@pytest.mark.parametrize(
    ("values", "override", "expected"),
    [
        ({"calibration": {"safety": "a"}}, "calibration.safety.answers=b", {"data": "a", "answers": "b"}),
        ({"calibration": {"safety": ["c", "a"]}}, "calibration.safety.1.answers=b", {"data": "a", "answers": "b"}),
        ({"adapters": {"safety": "a"}}, "adapters.safety.weight=2", {"path": "a", "weight": 2}),
        ({"evaluation": {"tasks": ["a"]}}, "evaluation.tasks.0.samples=2", {"task": "a", "samples": 2}),
        (
            {"evaluation": {"tasks": [{"data": "a"}]}},
            "evaluation.tasks.0.data.split=test",
            {"data": "a", "split": "test"},
        ),
        ({"data": "a"}, "data.samples=2", {"data": "a", "samples": 2}),
    ],
)
def test_a_bare_string_is_the_section_that_it_stands_for_when_a_key_of_it_is_set(
    values: dict[str, Any], override: str, expected: dict[str, Any]
) -> None:
    assert any(found == expected for found in sections(apply_overrides(values, [override])))


def sections(values: Any) -> list[Any]:
    """Everything inside."""
    inside = values.values() if isinstance(values, dict) else values if isinstance(values, list) else []
    return [values, *(found for value in inside for found in sections(value))]


@pytest.mark.parametrize(
    ("text", "kind"), [("", "NoneType"), ("# nothing\n", "NoneType"), ("- a\n- b\n", "list"), ("hello", "str")]
)
def test_a_file_without_keys_says_what_it_holds(tmp_path: Path, text: str, kind: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: expected keys and values, got {kind}."


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("seed: [1, 2", "line 1, column 12"),
        ("seed: 1\n  rank: 2", "line 2, column 7"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("seed: 1\n---\nseed: 2", "expected a single document"),
        ("seed: 2026-13-45", "month must be in 1..12"),
        ("seed: \x07", "special characters are not allowed"),
    ],
)
def test_invalid_yaml_says_where(tmp_path: Path, text: str, where: str) -> None:
    path = write(tmp_path, text)
    found = refusal(path)
    assert found.startswith(f"{path} is not valid YAML: ")
    assert where in found


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"title: caf\xe9")
    assert refusal(path).startswith(f"{path} is not valid YAML: 'utf-8' codec can't decode byte 0xe9")


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seed: 1\nrank: 2\nseed: 1\n", "seed", 1),
        ("a:\n  rank: 4\n  rank: 8\n", "rank", 2),
        ("a: [{b: 1}, {b: 1, 'b': 2}]\n", "b", 1),
    ],
)
def test_a_key_that_stands_twice_is_an_error(tmp_path: Path, text: str, key: str, line: int) -> None:
    path = write(tmp_path, text)
    found = refusal(path)
    assert found.startswith(f"{path} is not valid YAML: key '{key}' stands twice, first in line {line}\n")


def test_anchors_and_overridden_merges_are_no_doubles(tmp_path: Path) -> None:
    text = TRAIN.replace("data: train.jsonl", "data: &train {data: train.jsonl, samples: 5, split: train}").replace(
        "{data: a.csv, split: validation}", "{<<: *train, split: validation}"
    )
    config = load_config(TrainConfig, write(tmp_path, text))
    assert config.validation == [DataSource(data="train.jsonl", samples=5, split="validation")]


def test_keys_that_are_no_text_are_problems(tmp_path: Path) -> None:
    assert problems(TRAIN + "3: x\n", tmp_path) == ["3: Keys should be strings (got 3)"]


# Overrides


def test_overrides_reach_nested_keys_and_list_items(run_file: Path) -> None:
    config = load_config(
        RunConfig,
        run_file,
        [
            "method.strength=0.5",
            "evaluation.limit=7",
            "evaluation.tasks.1.task=over_refusal",
            "evaluation.tasks.0.data={data: b.jsonl, samples: 3}",
            "device=cpu",
            "output=runs/a=b",
            "comparisons=[{name: linear}]",
        ],
    )
    assert config.method.strength == 0.5
    assert config.evaluation is not None
    assert config.evaluation.limit == 7
    assert [task.task for task in config.evaluation.tasks] == ["refusal", "over_refusal"]
    assert config.evaluation.tasks[0].data == [DataSource(data="b.jsonl", samples=3)]
    assert (config.device, config.output) == ("cpu", Path("runs/a=b"))
    assert [method.name for method in config.comparisons] == ["linear"]


def test_a_source_that_stands_alone_is_the_first_as_in_messages(run_file: Path) -> None:
    changes = ["calibration.safety={data: b.jsonl}", "calibration.safety.0.samples=3"]
    config = load_config(RunConfig, run_file, [*changes, "calibration.utility={data: c.jsonl}"])
    assert config.calibration is not None
    assert config.calibration.safety == [DataSource(data="b.jsonl", samples=3)]
    assert "calibration.safety.0.samples: Input should be" in refusal(run_file, changes[0], changes[1] + "x")
    assert "unknown key" in refusal(run_file, "method.0.strength=1")


def test_overrides_make_sections_that_are_missing_or_empty(tmp_path: Path) -> None:
    assert load_config(TrainConfig, write(tmp_path, TRAIN), ["lora.rank=4"]).lora.rank == 4
    assert load_config(TrainConfig, write(tmp_path, TRAIN + "lora:\n"), ["lora.rank=4"]).lora.rank == 4


def test_later_overrides_win_and_an_empty_one_takes_a_value_away(run_file: Path) -> None:
    config = load_config(RunConfig, run_file, ["seed=1", "seed=2", "evaluation="])
    assert config.seed == 2
    assert config.evaluation is None


@pytest.mark.parametrize("override", ["seed", "=3", "", "a..b=1", ".a=1", "a.=1"])
def test_overrides_of_another_form_are_refused(run_file: Path, override: str) -> None:
    expected = f"--set {override}: expected key=value, such as --set method.strength=0.8"
    assert refusal(run_file, override) == expected


@pytest.mark.parametrize("part", ["9", "2", "x", "-1", "²"])
def test_an_override_of_an_item_that_is_not_there_is_refused(run_file: Path, part: str) -> None:
    override = f"evaluation.tasks.{part}.task=refusal"
    expected = f"'{part}' does not number an item of the list; it has 2, counted from 0."
    assert refusal(run_file, override) == f"--set {override}: {expected}"
    override = f"evaluation.tasks.{part}={{task: refusal, data: a}}"
    assert refusal(run_file, override) == f"--set {override}: {expected}"


def test_an_override_inside_a_value_is_refused(run_file: Path) -> None:
    expected = "--set device.kind=cpu: 'device' is a value ('cpu'), not a section."
    assert refusal(run_file, "device=cpu", "device.kind=cpu") == expected


def test_an_override_that_is_no_yaml_is_refused(run_file: Path) -> None:
    found = refusal(run_file, "seed=[1")
    assert found.startswith("--set seed=[1: the value is not valid YAML: while parsing a flow sequence")
    assert "key 'a' stands twice" in refusal(run_file, "method={a: 1, a: 2}")
    assert "the value is not valid YAML: month must be" in refusal(run_file, "seed=2026-13-01")


def test_a_misspelt_override_gets_a_suggestion(run_file: Path) -> None:
    found = refusal(run_file, "evaluation.limt=3")
    assert found == f"{run_file}: 1 problem(s)\n  evaluation.limt: unknown key. Did you mean 'limit'?"


def test_values_from_elsewhere_are_validated_alike() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(DataSource, {"data": "a", "sample": 1}, "--data")
    assert str(caught.value) == "--data: 1 problem(s)\n  sample: unknown key. Did you mean 'samples'?"


def test_the_resolved_configuration_is_a_run_file() -> None:
    values = yaml.safe_load(RUN)
    for change in ({}, {"calibration": {"safety": "a", "utility": "b"}}):
        config = RunConfig.model_validate(values | change)
        assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("key", "values"),
    [("comparisons.density", {"comparisons": [None]}), ("lora.target_modules.x", {"lora": {"target_modules": ["q"]}})],
)
def test_a_list_of_one_value_is_no_section(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not number an item of the list; it has 1"):
        apply_overrides(values, [f"{key}=1"])
