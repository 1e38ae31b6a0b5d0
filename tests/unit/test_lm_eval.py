"""lm-eval's tasks: loaded from local copies, asked of the one loaded model, recorded sample by sample."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lm_eval.api.samplers import ContextSampler

from mmlu_copy import SPLITS, question, write_csv_copy, write_hub_copy, write_table
from sst_merge.errors import ConfigError, DataError
from sst_merge.models import Base
from sst_merge.stages.plan import plan
from sst_merge.tasks import LmEval
from sst_merge.tasks.local_copy import subjects
from sst_merge.weights import applied
from tiny import FAMILIES, Family, random_adapter, tiny_base, write_peft_adapter
from tiny_run import copied, run_config, run_values, write_rows


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv_copy(tmp_path_factory.mktemp("mmlu"))


@pytest.fixture(scope="module")
def mmlu(copy: Path) -> LmEval:
    return LmEval("lm_eval:mmlu", subtasks=["mmlu_anatomy", "mmlu_astronomy"], copy=copy)


def choices_by_hand(base: Base, text: str) -> list[float]:
    """Log-probability of each letter after a prompt among the four letters, one forward pass each."""
    found = []
    for letter in "ABCD":
        whole = base.tokenizer(f"{text}{letter}", add_special_tokens=False)["input_ids"]
        logits = base.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(dim=-1)
        found.append(logits[len(whole) - 2, whole[-1]])
    return torch.stack(found).log_softmax(dim=0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_records_are_the_likelihoods_of_a_loop(mmlu: LmEval, family: Family) -> None:
    base = tiny_base(family)
    rows = mmlu.rows(seed=0, samples=5)
    assert len(rows) == 10
    model = mmlu.harness_model(base, batch_size=3)
    for batch in mmlu.batches(rows, 4):
        chosen = [rows[index] for index in batch]
        for row, record in zip(chosen, mmlu.evaluate(model, chosen), strict=True):
            assert record["id"] == row.id
            ids = base.tokenizer(record["prompt"], add_special_tokens=False)["input_ids"]
            assert ids.count(base.tokenizer.bos_token_id) == 1  # the template's; the tokenizer must not add another
            expected = choices_by_hand(base, record["prompt"])
            # lm-eval counts the template's last line break to every choice, which softmax takes out again
            found = torch.tensor([value for value, _ in record["responses"]]).log_softmax(dim=0)
            assert found.tolist() == pytest.approx(expected, abs=1e-4)
            best = max(range(4), key=lambda index: expected[index])
            assert record["acc"] == float(best == int(row.answer))
            assert record["answer"] == "ABCD"[best]
            assert record["choice_log_probability"] == pytest.approx(expected[int(row.answer)], abs=1e-4)


def test_the_arms_weights_are_the_ones_that_answer(mmlu: LmEval) -> None:
    base = tiny_base("llama")
    rows = mmlu.rows(seed=0, samples=4)[:4]
    model = mmlu.harness_model(base, batch_size=4)
    before = mmlu.evaluate(model, rows)
    with applied(base, random_adapter(base, seed=1), "adapter"):
        during = mmlu.evaluate(model, rows)
    assert [r["responses"] for r in before] != [r["responses"] for r in during]
    assert [r["responses"] for r in mmlu.evaluate(model, rows)] == [r["responses"] for r in before]


def test_accuracy_is_lm_evals_own(mmlu: LmEval) -> None:
    from lm_eval.evaluator import evaluate

    base = tiny_base("mistral")
    rows = mmlu.rows(seed=0, samples=None)
    model = mmlu.harness_model(base, batch_size=8)
    ours = [r["acc"] for batch in mmlu.batches(rows, 8) for r in mmlu.evaluate(model, [rows[i] for i in batch])]
    tasks = {"tasks": dict(mmlu.tasks), "groups": {}, "group_map": {}}
    theirs = evaluate(model, tasks, bootstrap_iters=0, apply_chat_template=True)  # type: ignore[arg-type]
    sizes = [len(task.eval_docs) for task in mmlu.tasks.values()]
    means = [theirs["results"][leaf]["acc,none"] for leaf in mmlu.tasks]
    assert len(ours) == sum(sizes)
    assert sum(ours) == pytest.approx(sum(n * mean for n, mean in zip(sizes, means, strict=True)))


def test_the_negative_control_scores_a_response_against_another_rows_target(mmlu: LmEval) -> None:
    rows = mmlu.rows(seed=0, samples=None)
    sample = {"responses": [[0.0, True], [-1.0, False], [-2.0, False], [-3.0, False]]}
    assert [mmlu.score_against(row, sample) for row in rows] == [float(row.answer == "0") for row in rows]


def test_examples_before_a_question_are_the_same_for_every_arm(tmp_path: Path) -> None:
    """lm-eval's default sampler draws from one stream, which the arm before would have moved on."""
    task = LmEval("lm_eval:mmlu", subtasks=["mmlu_anatomy"], copy=write_csv_copy(tmp_path), fewshot=2)
    (leaf,) = task.tasks.values()
    leaf.sampler = ContextSampler(list(leaf.fewshot_docs()))  # mmlu's own takes the first ones
    base = tiny_base("llama")
    rows = task.rows(seed=0, samples=None)
    model = task.harness_model(base, batch_size=4)
    batches = [[rows[index] for index in batch] for batch in task.batches(rows, 3)]
    one, other = ([[r["prompt"] for r in task.evaluate(model, batch)] for batch in batches] for _ in range(2))
    assert one == other
    assert [r["prompt"] for r in task.evaluate(model, batches[-1])] == one[-1]  # where an interrupted arm goes on
    assert len({prompt[:200] for prompt in one[0]}) > 1  # examples are drawn, not the same for every question


def test_what_asks_a_question_and_is_not_in_its_row_is_told(mmlu: LmEval, tmp_path: Path) -> None:
    assert mmlu.asked_by["lm_eval"] == version("lm-eval")
    subtasks = ["mmlu_anatomy"]
    copy = write_csv_copy(tmp_path)
    none, one, two = (
        LmEval("lm_eval:mmlu", subtasks=subtasks, copy=copy, fewshot=shots).asked_by["examples"] for shots in (0, 1, 1)
    )
    assert none != one == two
    examples = tmp_path / "dev" / "anatomy_dev.csv"
    examples.write_text("Now: " + examples.read_text(encoding="utf-8"), encoding="utf-8")
    changed = LmEval("lm_eval:mmlu", subtasks=subtasks, copy=copy, fewshot=1).asked_by["examples"]
    assert changed not in {none, one}


@pytest.mark.parametrize("write", [write_csv_copy, write_hub_copy, lambda folder: write_table(folder / "mmlu.jsonl")])
def test_every_shape_of_a_copy_holds_the_same_questions(tmp_path: Path, write) -> None:
    made = write(tmp_path)
    assert subjects(made) == ["anatomy", "astronomy"]
    task = LmEval("lm_eval:mmlu", subtasks=["mmlu_anatomy"], copy=made)
    rows = task.rows(seed=0, samples=None)
    assert len(rows) == SPLITS["test"]
    wanted = question("anatomy", "test", 3)
    row = next(row for row in rows if wanted["question"] in row.prompt)
    assert (row.answer, row.prompt.endswith("Answer:")) == ("3", True)
    others = task.training_rows()
    assert len(others) == SPLITS["dev"] + SPLITS["val"]
    assert {row.id for row in rows}.isdisjoint(row.id for row in others)
    assert {row.answer for row in others} <= set("ABCD")


def test_a_copy_without_test_questions_is_asked_its_validation_questions(tmp_path: Path) -> None:
    made = write_csv_copy(tmp_path, {"dev": 4, "val": 6})
    task = LmEval("lm_eval:mmlu_anatomy", copy=made)
    assert len(task.rows(seed=0, samples=None)) == 6
    assert len(task.training_rows()) == 4
    assert task.title == "mmlu_anatomy (0-shot, validation questions)"


def test_fewer_questions_than_asked_for_are_told(copy: Path) -> None:
    task = LmEval("lm_eval:mmlu_anatomy", copy=copy)
    assert len(task.rows(seed=0, samples=100)) == 16
    assert task.notes == ["mmlu_anatomy has 16 questions, 100 were asked for; all are used"]
    assert len(task.rows(seed=0, samples=10)) == 10
    assert task.notes == []


def test_a_metric_that_lm_eval_did_not_give_is_no_other_metric(copy: Path) -> None:
    task = LmEval("lm_eval:mmlu_anatomy", copy=copy)
    rows = task.rows(seed=0, samples=2)
    task.metric = "acc_norm"
    with pytest.raises(ConfigError, match=r"gives no number called acc_norm for each sample \(got None\)"):
        task.evaluate(task.harness_model(tiny_base("llama"), 2), rows)


def test_which_questions_are_drawn_depends_on_the_seed_alone(mmlu: LmEval) -> None:
    first, again, other = ([row.id for row in mmlu.rows(seed=s, samples=5)] for s in (1, 1, 2))
    assert first == again
    assert set(first) != set(other)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: LmEval("lm_eval:mmlux", copy=p), ConfigError, r"knows no task 'mmlux'\. Did you mean .*mmlu"),
        (lambda p: LmEval("lm_eval:mmlu", subtasks=["mmlu_cooking"], copy=p), ConfigError, "mmlu_cooking is not in"),
        (lambda p: LmEval("lm_eval:humaneval"), ConfigError, "--allow-code-execution"),
        (lambda p: LmEval("lm_eval:mmlu_virology", copy=p), DataError, "Subjects found: anatomy, astronomy"),
        (lambda p: LmEval("lm_eval:mmlu_virology", copy=p / "no"), DataError, "no such file or folder"),
    ],
)
def test_what_cannot_be_loaded_says_why(copy: Path, make, error, words: str) -> None:
    with pytest.raises(error, match=words):
        make(copy)


def test_a_question_without_choices_lists_the_columns(tmp_path: Path) -> None:
    (tmp_path / "mmlu.jsonl").write_text('{"subject": "anatomy", "question": "?", "label": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="Columns found: subject, question, label"):
        LmEval("lm_eval:mmlu_anatomy", copy=tmp_path / "mmlu.jsonl")


def test_lm_eval_reads_as_many_tokens_as_we_do(mmlu: LmEval) -> None:
    base = tiny_base("llama", max_position_embeddings=300)
    assert mmlu.harness_model(base, 2).max_length == base.context == 300


@pytest.mark.parametrize("label", ["data", "utility", "safety", "base_model", "x"])
def test_a_label_hides_no_input_of_a_run(copy: Path, inputs: Path, tmp_path: Path, label: str) -> None:
    own = copied(inputs, tmp_path / "inputs")
    evaluation = run_values(own, tmp_path)["evaluation"]
    asked = {"task": "lm_eval:mmlu_anatomy", "label": label, "data": str(copy)}
    given = {"evaluation": {**evaluation, "tasks": [*evaluation["tasks"], asked]}}
    before = plan(run_config(own, tmp_path / "run", **given), root=Path()).identity["inputs"]
    assert before["tasks"][label]["lm_eval"]
    write_rows(own / "safety_calibration.jsonl", "other harm", 5, answers=["No."])
    write_peft_adapter(own / "utility", tiny_base("llama"), seed=9, base_name=str(inputs / "base"))
    after = plan(run_config(own, tmp_path / "run", **given), root=Path()).identity["inputs"]
    assert {key for key in before if before[key] != after[key]} == {"data", "utility"}


def test_two_tasks_share_no_file_of_scores(copy: Path, inputs: Path, tmp_path: Path) -> None:
    evaluation = run_values(inputs, tmp_path)["evaluation"]
    two = [{"task": "lm_eval:mmlu", "data": str(copy)}, {**evaluation["tasks"][2], "label": "lm_eval-mmlu"}]
    with pytest.raises(ConfigError, match="needs a label of its own"):
        run_config(inputs, tmp_path / "run", evaluation={**evaluation, "tasks": two})
