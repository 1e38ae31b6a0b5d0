"""The demo's run file on the real 135M model, with few samples."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sst_merge.config import RunConfig
from sst_merge.experiments.dry_run import DEMO_SAMPLES
from sst_merge.inference import encode, next_token_log_probabilities
from sst_merge.models import Base, load_base
from sst_merge.progress import SilentReporter
from sst_merge.run_file import load_config, validate
from sst_merge.stages import run as run_stage
from sst_merge.stages.plan import plan
from tiny import load_with_peft
from tiny_run import ARMS, artefacts, numbers

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = 8
LIMIT = 12

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """configs/demo.yaml, smaller. The adapters are part of the repository: a test without them has to fail."""
    for role in ("utility", "safety"):
        weights = REPOSITORY / "examples" / "adapters" / role / "adapter_model.safetensors"
        assert weights.is_file(), f"{weights} is missing: make it with configs/train_{role}.yaml"
    values: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    for role in ("utility", "safety", "harmless"):
        given = values["calibration"][role]
        sources = given if isinstance(given, list) else [given]
        for source in sources:
            source["samples"] = SAMPLES // len(sources)
    values["evaluation"]["limit"] = LIMIT
    values["output"] = str(tmp_path_factory.mktemp("demo") / "run")
    return validate(RunConfig, values, "configs/demo.yaml")


def test_the_forecast_counts_the_samples_of_the_demo() -> None:
    whole = load_config(RunConfig, REPOSITORY / "configs" / "demo.yaml")
    inputs = plan(whole, root=REPOSITORY).inputs
    assert len(inputs.calibration_safety) + len(inputs.calibration_utility) == DEMO_SAMPLES


@pytest.fixture(scope="module")
def finished(config: RunConfig) -> Path:
    """The folder of the run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_stage.run(config, root=REPOSITORY, reporter=SilentReporter(), command="test")
    finally:
        torch.set_num_threads(threads)
    return Path(config.output)


@pytest.fixture(scope="module")
def base(finished: Path, config: RunConfig) -> Base:
    del finished  # the run comes first, so that one model at a time is in memory
    return load_base(config.base_model, device="cpu", dtype="float32")


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_artefact_is_there_and_every_sample_is_scored(finished: Path, config: RunConfig) -> None:
    expected = "manifest.json plan.json diagnostics.json safety_tax.json results.json report.html report.md looks.jsonl"
    assert {file.name for file in finished.iterdir()} == {*expected.split(), "adapter", "scores", "statistics"}
    assert config.evaluation is not None
    for arm in (*ARMS, *(method.name for method in config.comparisons)):
        for task in config.evaluation.tasks:
            lines = (finished / "scores" / arm / f"{task.task}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
            assert len(lines) == LIMIT
            assert all("answer" in json.loads(line) for line in lines)


def test_the_four_arms_have_four_hashes(finished: Path) -> None:
    assert len({read(finished / "scores" / arm / "arm.json")["weights_sha256"] for arm in ARMS}) == 4
    results = read(finished / "results.json")
    assert results["run"]["fallbacks"] == []
    assert results["diagnostics"]["modules_merged"] == 210  # 30 layers of 7
    assert results["diagnostics"]["patch_norm_kept"] != 1  # steered, neither dropped nor just added
    assert 0 < results["diagnostics"]["utility_energy_kept"] < 0.5
    code = results["safety_tax"]["merged"]["verdict"]["code"]
    assert not code.startswith("INVALID"), results["safety_tax"]["merged"]["verdict"]["text"]


def test_the_base_model_answers_in_words(finished: Path) -> None:
    lines = (finished / "scores" / "base" / "over_refusal.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    answers = [json.loads(line)["answer"] for line in lines]
    assert sum(len(answer.split()) > 5 for answer in answers) > LIMIT / 2


def test_plain_peft_gives_the_probabilities_of_the_merged_arm(finished: Path, base: Base) -> None:
    probe = load_file(finished / "scores" / "merged" / "probe.safetensors")["log_probabilities"]
    prompts = {
        json.loads(line)["prompt"]
        for file in (finished / "scores" / "merged").glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]
    }
    loaded = replace(base, model=load_with_peft(base, finished / "adapter"))
    found = torch.cat([next_token_log_probabilities(loaded, [encode(base, prompt)]) for prompt in sorted(prompts)])
    distances = torch.cdist(probe, found, p=torch.inf).amin(dim=1)  # the order of the rows is a hash
    assert float(distances.max()) < 0.01
    plain = torch.cat([next_token_log_probabilities(base, [encode(base, prompt)]) for prompt in sorted(prompts)])
    assert float((plain - found).abs().max()) > 0.5


def test_the_report_opens_offline(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "@import" not in page
    assert "SST-Merge" in page


def test_a_second_run_reuses_everything(finished: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> Base:
        raise AssertionError("a finished run loads no model")

    before = (numbers(finished), artefacts(finished))
    monkeypatch.setattr(run_stage, "load_base", refuses)
    run_stage.run(config, root=REPOSITORY, reporter=SilentReporter(), command="again")
    assert (numbers(finished), artefacts(finished)) == before
