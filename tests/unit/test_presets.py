"""Presets: full shapes on the meta device, batch sizes by memory, and the forecast of an experiment."""

import json
from pathlib import Path
from typing import Any

import pytest

from families import PRESET_OF, small_sizes, write_family
from mmlu_copy import write_beavertails, write_csv_copy
from sst_merge.errors import ConfigError, DataError
from sst_merge.experiments import dry_run
from sst_merge.experiments.dry_run import Speed, forecast, told
from sst_merge.experiments.exp1 import Exp1, prepare
from sst_merge.experiments.presets import ALL, PRESETS, preset
from sst_merge.inference import encode
from sst_merge.models import architecture, load_base
from sst_merge.progress import SilentReporter
from tiny import FAMILIES, Family

# Parameters, linear modules, and d_out x d_in of the key and of the gate projection, after the models' own pages.
FULL = {
    "mistral-7b": (7_241_732_096, 224, (1024, 4096), (14336, 4096)),
    "llama-3.1-8b": (8_030_261_248, 224, (1024, 4096), (14336, 4096)),
    "qwen-2.5-14b": (14_770_033_664, 336, (1024, 5120), (13824, 5120)),
}


@pytest.mark.parametrize("name", ALL)
def test_full_shapes_without_a_weight(name: str) -> None:
    wanted = PRESETS[name]
    shape = architecture(wanted.reference, wanted.revision, wanted.architecture)
    parameters, modules, key, gate = FULL[name]
    assert (shape.parameters, len(shape.shapes)) == (parameters, modules)
    assert shape.shapes["model.layers.0.self_attn.k_proj"] == key
    assert shape.shapes["model.layers.0.mlp.gate_proj"] == gate
    assert {module.rpartition(".")[2] for module in shape.shapes} == set(wanted.lora_targets)


@pytest.mark.parametrize("name", ALL)
def test_a_forecast_at_full_shape_says_memory_and_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "hub_problem", lambda *_: f"{name} cannot be had")
    found = forecast(Exp1(preset(name), "full", 42), Speed(flops=1e11, bytes=1e10, device="CPU, 2 threads, no GPU"))
    weights = 4 * FULL[name][0] / 1e9
    assert 1.8 * weights < found.memory_gb < 3 * weights  # on a CPU with the copy of what an adapter changes
    assert [phase.name for phase in found.phases] == ["train", "calibrate", "merge", "evaluate"]
    text = told(found)
    assert f"missing: {name} cannot be had" in text
    assert "missing: a GPU" in text
    assert "beavertails (hub:PKU-Alignment/BeaverTails@330k_train) and mmlu" in text
    assert json.loads(json.dumps(found.to_dict()))["seconds"] == pytest.approx(found.seconds)
    slower = forecast(Exp1(preset(name), "full", 42), Speed(1e10, 1e9, "CPU"))
    assert slower.seconds > 5 * found.seconds
    minimal = forecast(Exp1(preset(name), "minimal", 42), Speed(1e11, 1e10, "CPU"))
    assert minimal.seconds < found.seconds / 20


@pytest.mark.parametrize("name", ALL)
def test_batch_sizes_grow_with_the_memory_and_a_model_that_does_not_fit_is_refused(name: str) -> None:
    sizes = [PRESETS[name].batch(memory) for memory in (41.5, 79.6 * 1.024)]
    assert sizes[0].calibration <= sizes[1].calibration
    assert PRESETS[name].batch(79.6).evaluation == PRESETS[name].batch_sizes[80].evaluation  # an "80 GB" card
    with pytest.raises(ConfigError, match=r"needs a GPU of at least (24|40) GB; this one has 12"):
        PRESETS[name].batch(12.0)


def test_mistral_has_a_plain_template_and_names_it() -> None:
    assert preset("mistral-7b").chat_template == "plain"
    assert preset("mistral-7b", chat_template="model").chat_template == "model"
    with pytest.raises(ConfigError, match=r"--model gemma: no preset.*Presets: smollm2-135m, mistral-7b"):
        preset("gemma")
    assert preset("someone/model").reference == "someone/model"


@pytest.mark.parametrize("family", FAMILIES)
def test_small_models_have_the_quirks_of_the_large_ones(tmp_path: Path, family: Family) -> None:
    full, small = PRESETS[PRESET_OF[family]].architecture, small_sizes(family)
    assert full is not None
    assert {key for key in full if full[key] == small[key]} >= {"model_type", "rope_theta", "vocab_size"}
    base = load_base(str(write_family(tmp_path, family)), chat_template="plain" if family == "mistral" else "model")
    config: Any = base.model.config
    sample = encode(base, "How?", "So it is.")
    ids, bos = list(sample.ids), base.tokenizer.bos_token_id
    assert base.tokenizer.pad_token is not None
    assert ids[-1] == base.tokenizer.eos_token_id
    if family == "qwen2":
        assert bos is None
        assert base.modules["model.layers.0.self_attn.q_proj"].bias is not None
        assert base.tokenizer.pad_token != base.tokenizer.eos_token
    else:
        assert ids.count(bos) == 1
        assert base.modules["model.layers.0.self_attn.q_proj"].bias is None
    if family == "llama":
        assert config.rope_parameters["rope_type"] == "llama3"
    if family == "mistral":
        assert config.sliding_window == 4096
        assert base.tokenizer.decode(ids[1 : sample.answer_start]) == "User: How?\n\nAssistant:"
        assert base.tokenizer.decode(ids[sample.answer_start : -1]) == " So it is."


def test_all_models_can_be_forecast_here_from_the_command_line(tmp_path: Path, sst: Any) -> None:
    copies = [f"beavertails={write_beavertails(tmp_path / 'b.jsonl')}", f"mmlu={write_csv_copy(tmp_path / 'mmlu')}"]
    ended = sst("experiment", "exp1", "--model", "all", "--dry-run", "--data", copies[0], "--data", copies[1])
    assert ended.code == 0, ended.err
    for name in ALL:
        assert f"{name}: {FULL[name][0] / 1e9:.2f} B parameters" in ended.out
    assert "neither in the cache nor to be had from the hub" in ended.out
    assert "beavertails (hub" not in ended.out
    assert list(tmp_path.rglob("exp1")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exp9"], "unknown experiment 'exp9'. Known: exp1."),
        (["exp1", "--mode", "huge"], "--mode huge: unknown mode. Known: minimal, full."),
        (["exp1", "--seeds", "1,x"], "--seeds 1,x: expected whole numbers"),
        (["exp1", "--data", "mmlu"], "--data mmlu: expected NAME=PATH"),
        (["exp1", "--data", "mlmu=x"], "--data mlmu: unknown name. Known: beavertails, mmlu"),
        (["exp1", "--model", "gpt"], "--model gpt: no preset, hub id (OWNER/NAME) or folder."),
    ],
)
def test_wrong_options_get_one_clear_message(sst: Any, arguments: list[str], words: str) -> None:
    ended = sst("experiment", *arguments)
    assert ended.code == 1
    assert words in ended.err


def small(**data: str) -> Exp1:
    return Exp1(preset("smollm2-135m"), "minimal", 42, data=data, repository=Path(__file__).parents[2])


def test_prompts_that_are_given_are_evaluated_and_builtin_ones_stay_names(tmp_path: Path) -> None:
    file = tmp_path / "harmless.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(9)), encoding="utf-8")
    made = prepare(small(harmful="builtin:harmful_requests", harmless=str(file)), SilentReporter())
    (harmful,), (harmless,) = made.harmful, made.harmless
    assert (harmful["data"], harmful["split"]) == ("builtin:harmful_requests", "test")
    assert harmless == {"data": str(file), "samples": 9}
    assert {source["data"] for source in made.calibration["harmless"]} == {
        "builtin:everyday_prompts",
        "builtin:harmless_requests",
    }
    assert "builtin:refusals" in {source.get("answers") for source in made.calibration["safety"]}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"utility": "builtin:harmful_requests"},
            r"--data utility: builtin:harmful_requests: builtin prompts stand for",
        ),
        (
            {"harmful": "builtin:harmfull"},
            r"--data harmful: builtin:harmfull is unknown\. Did you mean builtin:harmful",
        ),
        ({"harmless": "builtin:refusals"}, r"--data harmless: builtin:refusals holds answers\."),
        ({"mmlu": "copy"}, r"--data mmlu: not read by smollm2-135m with --utility exact_match\. Leave it out\."),
        (
            {"harmful": "builtin:harmful_requests", "beavertails": "copy"},
            r"--data beavertails: not read by .* with --utility exact_match and --data harmful\.",
        ),
    ],
)
def test_data_that_would_not_be_read_are_refused(data: dict[str, str], expected: str) -> None:
    with pytest.raises((ConfigError, DataError), match=expected):
        prepare(small(**data), SilentReporter())
