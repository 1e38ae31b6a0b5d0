"""Adapter folders: what PEFT writes is read exactly, everything else is refused by name, writing is atomic."""

import copy
import errno
import json
import math
import random
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file

from sst_merge import adapter_io
from sst_merge.adapter import Update, Updates
from sst_merge.adapter_config import CONFIG_FILE, KNOWN_FIELDS, REFUSED, TASK_TYPES, WEIGHTS_FILE
from sst_merge.adapter_io import (
    TRAINING_ROWS_FILE,
    AdapterHeader,
    check_together,
    folder_sha256,
    read_adapter,
    read_headers,
    read_sum,
    write_adapter,
)
from sst_merge.errors import AdapterError
from sst_merge.models import Base
from tiny import load_with_peft, peft_model, random_adapter, random_update, tiny_base, write_peft_adapter

Q = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{Q}.lora_"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))


def edit_config(folder: Path, **values: Any) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(config_of(folder) | values), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def refusal(folder: Path, read: Callable[[Path], Any] = read_adapter) -> str:
    with pytest.raises(AdapterError) as caught:
        read(folder)
    return str(caught.value)


def refused_by_both(folder: Path) -> str:
    """The message, which must come from the headers alone as well as from the tensors."""
    found = refusal(folder)
    assert refusal(folder, read_headers) == found
    return found


@pytest.fixture(scope="module")
def template(llama: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft_adapter(tmp_path_factory.mktemp("peft") / "a", llama, target_modules=["q_proj", "down_proj"])


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A folder that PEFT wrote: rank 4, alpha 8, two modules per layer."""
    return shutil.copytree(template, tmp_path / "adapter")


def peft_deltas(model: Any) -> dict[str, torch.Tensor]:
    """What PEFT itself adds to each weight."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").float()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 3, "alpha": 5.5},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {r"^model\.layers\.0\..*_proj": 2, "k_proj": 5}, "alpha_pattern": {".*mlp.*": 1}},
        {"rank_pattern": {"o_proj": 9}, "use_rslora": True},
        {"target_modules": ["v_proj", "layers.1.mlp.up_proj"]},
        {"target_modules": r".*\.(q|k)_proj"},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
def test_updates_are_what_peft_adds_to_the_weights(llama: Base, tmp_path: Path, settings: dict[str, Any]) -> None:
    model = peft_model(llama, seed=3, **settings)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    expected = peft_deltas(model)
    adapter = read_adapter(tmp_path)
    assert list(adapter.updates) == sorted(expected)
    for name, update in adapter.updates.items():
        # (s b) a against s (b a): float32 rounding of entries of order 1.
        torch.testing.assert_close(update.dense(), expected[name], rtol=1e-5, atol=1e-6)
    headers = read_headers(tmp_path)
    assert headers == {name: AdapterHeader(update.shape, update.rank) for name, update in adapter.updates.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_every_precision_are_read_in_float32(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({key: value.to(dtype) for key, value in tensors.items()}))
    stored = load_file(folder / WEIGHTS_FILE)
    update = read_adapter(folder).updates[Q]
    assert update.a.dtype == update.b.dtype == torch.float32
    assert torch.equal(update.a, stored[f"{KEY}A.weight"].float())
    assert torch.equal(update.b, stored[f"{KEY}B.weight"].float() * 2)  # alpha 8 / rank 4


def test_a_bfloat16_model_gives_the_update_of_peft(tmp_path: Path) -> None:
    model = peft_model(tiny_base(dtype=torch.bfloat16), target_modules=["q_proj"])
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    # PEFT keeps the factors in float32 and computes the product in that precision.
    for name, delta in peft_deltas(model).items():
        torch.testing.assert_close(read_adapter(tmp_path).updates[name].dense(), delta, rtol=1e-2, atol=1e-2)


def test_the_base_model_and_the_training_rows_are_read(folder: Path) -> None:
    adapter = read_adapter(folder)
    assert (adapter.base_model, adapter.path, adapter.training_rows) == ("tiny-llama", folder, frozenset())
    (folder / TRAINING_ROWS_FILE).write_text('{"ids": ["a", "b", "a"]}')
    assert read_adapter(folder).training_rows == {"a", "b"}


@pytest.mark.parametrize("content", ['{"ids": "ab"}', '{"ids": [1]}', "[]", "{}", "{", "\xff"])
def test_damaged_training_rows_are_an_error_and_not_no_rows(folder: Path, content: str) -> None:
    (folder / TRAINING_ROWS_FILE).write_bytes(content.encode("latin-1"))
    assert refusal(folder).startswith(f"{folder / TRAINING_ROWS_FILE} is damaged (")


def test_the_hash_depends_on_configuration_and_weights(folder: Path) -> None:
    first = read_adapter(folder).sha256
    assert folder_sha256(folder) == first
    (folder / "README.md").write_text("other")
    assert folder_sha256(folder) == first
    edit_config(folder, lora_alpha=9)
    second = folder_sha256(folder)
    edit_tensors(folder, lambda tensors: tensors[f"{KEY}A.weight"].mul_(2))
    assert len({first, second, folder_sha256(folder)}) == 3


def test_links_are_followed_as_in_the_hub_cache(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / "snapshot" / name).symlink_to(folder / name)
    (tmp_path / "link").symlink_to(tmp_path / "snapshot")
    assert read_adapter(tmp_path / "link").sha256 == folder_sha256(folder)
    (folder / WEIGHTS_FILE).unlink()
    assert refused_by_both(tmp_path / "link") == f"{tmp_path / 'link'} has no {WEIGHTS_FILE}."


# What is no adapter folder


def test_a_missing_folder_and_missing_files_are_named(folder: Path) -> None:
    assert refused_by_both(folder / "no") == (
        f"no such adapter folder: {folder / 'no'}. Adapters are local folders; fetch one of the hub first: "
        "hf download ORG/NAME --local-dir FOLDER"
    )
    (folder / WEIGHTS_FILE).unlink()
    assert refused_by_both(folder) == f"{folder} has no {WEIGHTS_FILE}."
    (folder / CONFIG_FILE).unlink()
    assert refused_by_both(folder) == f"{folder} is no PEFT adapter: it has no {CONFIG_FILE}."


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.pth"])
def test_pickles_are_refused_without_opening_them(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"not even a pickle")
    assert refused_by_both(folder) == (
        f"{folder} holds two sets of weights, {WEIGHTS_FILE} and {name}. Remove the one not meant."
    )
    (folder / WEIGHTS_FILE).unlink()
    assert refused_by_both(folder) == (
        f"{folder} holds its weights as a pickle ({name}), which can run code when it is read.\n"
        "  Convert it where you trust it: load it with PEFT and save_pretrained(..., safe_serialization=True)."
    )


def test_pickles_of_a_trainer_beside_the_weights_do_not_matter(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"")
    assert read_adapter(folder).updates
    (folder / WEIGHTS_FILE).unlink()
    assert refusal(folder) == f"{folder} has no {WEIGHTS_FILE}."


def test_a_configuration_that_is_no_json_object_is_refused(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{'r': 4}")
    assert refused_by_both(folder).startswith(f"{folder / CONFIG_FILE} is not valid JSON: Expecting property name")
    (folder / CONFIG_FILE).write_bytes(b"\xff\xfe")
    assert refused_by_both(folder).startswith(f"{folder / CONFIG_FILE} is not valid JSON: ")
    (folder / CONFIG_FILE).write_text("[]")
    assert refused_by_both(folder) == f"{folder}: peft_type is 'list'; only LORA adapters can be merged."


def test_another_peft_type_is_named(folder: Path) -> None:
    edit_config(folder, peft_type="LOHA")
    assert refused_by_both(folder) == f"{folder}: peft_type is 'LOHA'; only LORA adapters can be merged."


# Features that are refused


def test_every_field_of_peft_is_known() -> None:
    from peft import LoraConfig

    assert {field.name for field in fields(LoraConfig)} == KNOWN_FIELDS


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_every_refused_feature_is_named_with_its_meaning(folder: Path, field: str) -> None:
    edit_config(folder, **{field: True})
    assert refused_by_both(folder) == (
        f"{folder}: {field} = True is not supported: {REFUSED[field]}. Train it without {field}."
    )
    edit_config(folder, **{field: None})
    read_adapter(folder)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_dora": True}, "use_dora = True is not supported: DoRA rescales"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported: base biases were trained. Use bias none."),
        ({"bias": "lora_only"}, "bias = 'lora_only' is not supported"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, "modules_to_save = ['lm_head'] is not"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices = [3, 4] is not supported"),
        ({"target_parameters": ["q_proj.weight"], "target_modules": ["k_proj"]}, "target_parameters = ['q_proj.wei"),
        ({"layer_replication": [[0, 2], [1, 2]], "target_modules": ["q_proj"]}, "layer_replication = "),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' changes"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora' changes the base weights"),
        (
            {"target_modules": ["embed_tokens"]},
            "embed_tokens.lora_embedding_A' is not a LoRA factor of a linear module and cannot be merged. Train with",
        ),
    ],
    ids=str,
)
def test_what_peft_writes_with_a_refused_feature_is_refused(
    llama: Base, tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_peft_adapter(tmp_path, llama, **settings)
    found = refused_by_both(tmp_path)
    assert str(tmp_path) in found
    assert expected in found


@pytest.mark.parametrize("initialisation", ["PiSSA", "corda", "loftq", "lora_ga"])
def test_initialisations_that_change_the_base_say_how_to_convert(folder: Path, initialisation: str) -> None:
    edit_config(folder, init_lora_weights=initialisation)
    assert refused_by_both(folder) == (
        f"{folder}: init_lora_weights = {initialisation!r} changes the base weights when the adapter is loaded, so "
        "its factors alone are not the update. Convert it to a plain LoRA first (PEFT: save_pretrained with "
        "path_initial_model_for_weight_conversion)."
    )


def test_a_field_of_a_future_version_is_refused_unless_it_is_off(folder: Path) -> None:
    edit_config(folder, use_newlora=False, new_config=None, new_names=[])
    assert read_adapter(folder).updates
    edit_config(folder, use_newlora={"gamma": 2})
    assert refused_by_both(folder) == (
        f"{folder}: use_newlora = {{'gamma': 2}} in {CONFIG_FILE} is not a field that this version knows, so what it "
        "changes is unknown. Remove it if the adapter computes the same without it."
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("r", "4", "r is '4', expected a whole number from 1."),
        ("r", 4.0, "r is 4.0, expected a whole number from 1."),
        ("r", True, "r is True, expected a whole number from 1."),
        ("r", 0, "r is 0, expected a whole number from 1."),
        ("r", None, "r is None, expected a whole number from 1."),
        ("lora_alpha", None, "lora_alpha is None, expected a positive number."),
        ("lora_alpha", "8", "lora_alpha is '8', expected a positive number."),
        ("lora_alpha", math.nan, "lora_alpha is nan, expected a positive number."),
        ("lora_alpha", math.inf, "lora_alpha is inf, expected a positive number."),
        ("lora_alpha", 0, "lora_alpha is 0, expected a positive number."),
        ("lora_alpha", -8, "lora_alpha is -8, expected a positive number."),
        ("rank_pattern", ["q_proj"], "rank_pattern is ['q_proj'], expected names and values."),
        ("rank_pattern", {"q_proj": "4"}, "rank_pattern['q_proj'] is '4', expected a regex and a whole number from 1."),
        ("rank_pattern", {"(": 4}, "rank_pattern['('] is 4, expected a regex and a whole number from 1."),
        ("alpha_pattern", {"q_proj": 0}, "alpha_pattern['q_proj'] is 0, expected a regex and a positive number."),
        ("use_rslora", "false", "use_rslora is 'false', expected true or false."),
        ("base_model_name_or_path", 3, "base_model_name_or_path is 3, expected a name."),
        ("target_modules", [1], "target_modules is [1], expected names or a regex."),
        ("target_modules", "(", "target_modules is '(', expected names or a regex."),
    ],
)
def test_values_that_peft_could_not_have_meant_are_refused(folder: Path, field: str, value: Any, expected: str) -> None:
    edit_config(folder, **{field: value})
    assert refused_by_both(folder) == f"{folder / CONFIG_FILE}: {expected}"


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_rank_and_alpha_are_never_guessed(folder: Path, field: str) -> None:
    config = config_of(folder)
    del config[field]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    assert f"{field} is None, expected" in refused_by_both(folder)


# Tensors that are refused


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_a_truncated_file_is_damaged(folder: Path, keep: float) -> None:
    content = (folder / WEIGHTS_FILE).read_bytes()
    length = int(len(content) * keep) if isinstance(keep, float) else int(keep)
    (folder / WEIGHTS_FILE).write_bytes(content[:length])
    found = refused_by_both(folder)
    assert found.startswith(f"{folder / WEIGHTS_FILE} is not a complete safetensors file (")
    assert found.endswith("). Copy or download it again.")


def test_bytes_behind_the_tensors_are_damage_too(folder: Path) -> None:
    with (folder / WEIGHTS_FILE).open("ab") as file:
        file.write(b"\0\0\0\0")
    assert "is not a complete safetensors file" in refused_by_both(folder)


def test_a_file_without_tensors_is_refused(folder: Path) -> None:
    save_file({}, folder / WEIGHTS_FILE)
    assert refused_by_both(folder) == f"{folder / WEIGHTS_FILE} holds no tensors."


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_named(folder: Path, side: str, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{KEY}{side}.weight"][0, :2] = value

    edit_tensors(folder, spoil)
    assert refusal(folder) == (
        f"{folder / WEIGHTS_FILE}: lora_{side} of module '{Q}' has 2 value(s) that are NaN or infinite. "
        "Training diverged or the file is damaged; nothing was merged."
    )


def test_a_scaling_that_overflows_is_refused(folder: Path) -> None:
    edit_config(folder, lora_alpha=1e41)
    assert "value(s) that are NaN or infinite. They overflow in float32 with the scaling 2.5e+40." in refusal(folder)


@pytest.mark.parametrize("side", ["A", "B"])
def test_half_a_pair_is_refused(folder: Path, side: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(f"{KEY}{side}.weight"))
    assert refused_by_both(folder) == f"{folder / WEIGHTS_FILE}: module '{Q}' has no lora_{side}."


@pytest.mark.parametrize(
    "key",
    [
        f"{KEY}A.default.weight",
        f"{KEY}A.bias",
        f"{Q}.lora_A.weight",
        f"base_model.model.{Q}.lora_magnitude_vector.weight",
        f"base_model.model.{Q}.weight",
        "base_model.model..lora_C.weight",
        "x",
    ],
)
def test_a_tensor_that_is_no_factor_is_refused_by_name(folder: Path, key: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({key: torch.ones(4, 4)}))
    assert refused_by_both(folder) == (
        f"{folder / WEIGHTS_FILE}: tensor '{key}' is not a LoRA factor of a linear module and cannot be merged."
    )


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")]
)
def test_quantized_factors_are_refused(folder: Path, dtype: torch.dtype, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({f"{KEY}A.weight": torch.ones(4, 32).to(dtype)}))
    assert refused_by_both(folder) == (
        f"{folder / WEIGHTS_FILE}: tensor '{KEY}A.weight' has type {name}, expected floating-point numbers of 16 bits "
        "or more. Save the adapter unquantized."
    )


def test_a_rank_other_than_the_announced_one_is_refused(folder: Path) -> None:
    edit_config(folder, r=8)
    assert refused_by_both(folder) == (
        f"{folder}: module 'model.layers.0.mlp.down_proj' has lora_A (4, 48) and lora_B (32, 4), expected (8, d_in) "
        f"and (d_out, 8) from {CONFIG_FILE}."
    )
    edit_config(folder, rank_pattern={"down_proj": 4, r"model\.layers\.[01]\..*": 4})
    assert read_adapter(folder).updates[Q].rank == 4
    edit_config(folder, rank_pattern={"down_proj": 4, "0.self_attn.q_proj": 4})
    assert "module 'model.layers.1.self_attn.q_proj' has lora_A (4, 32)" in refused_by_both(folder)
    edit_config(folder, rank_pattern={"proj": 4})  # PEFT matches whole parts of a name: this matches none
    assert "expected (8, d_in)" in refused_by_both(folder)


@pytest.mark.parametrize("shape", [(4,), (4, 32, 1), (32, 4)])
def test_a_factor_that_is_no_matrix_of_the_rank_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({f"{KEY}A.weight": torch.ones(shape)}))
    assert f"module '{Q}' has lora_A {shape} and lora_B (32, 4), expected (4, d_in)" in refused_by_both(folder)


def test_an_empty_factor_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({f"{KEY}A.weight": torch.ones(4, 0)}))
    assert refused_by_both(folder) == f"{folder}: module '{Q}' is empty: lora_A (4, 0), lora_B (32, 4)."


@pytest.mark.parametrize("targets", [["q_proj"], ["proj", "q_proj"], r".*q_proj", []])
def test_factors_that_peft_would_leave_out_are_refused(folder: Path, targets: Any) -> None:
    edit_config(folder, target_modules=targets)
    found = refused_by_both(folder)
    assert "module 'model.layers.0.mlp.down_proj' has factors" in found
    assert f"so PEFT would leave them out ({targets!r})." in found


@pytest.mark.parametrize("targets", [None, "all-linear", r".*\.(q|down)_proj", ["self_attn.q_proj", "down_proj"]])
def test_target_modules_are_understood_as_by_peft(folder: Path, targets: Any) -> None:
    edit_config(folder, target_modules=targets)
    assert len(read_adapter(folder).updates) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"exclude_modules": ["q_proj"]},
        {"exclude_modules": ["layers.1.self_attn.q_proj", "mlp"]},
        {"exclude_modules": r".*layers\.0.*"},
        {"layers_to_transform": 1},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"layers_to_transform": [1], "layers_pattern": ["blocks", "lay.*"]},
        {"layers_to_transform": [0, 1], "layers_pattern": "blocks"},
        {"layers_to_transform": [1], "layers_pattern": "blocks|layers"},
        {"layers_to_transform": [0, 1]},
        {"layers_to_transform": []},
        {"layers_to_transform": [1, 0], "exclude_modules": ["k_proj"], "layers_pattern": []},
    ],
    ids=str,
)
def test_modules_of_which_peft_reads_no_factors_are_refused(llama: Base, folder: Path, fields: dict[str, Any]) -> None:
    edit_config(folder, **fields)
    config = LoraConfig.from_pretrained(str(folder))
    written = {name for name in llama.modules if name.rpartition(".")[2] in config_of(folder)["target_modules"]}
    applied = {name for name in written if check_target_module_exists(config, name) is True}
    if applied == written:
        assert read_adapter(folder).updates.keys() == written
        return
    found = refused_by_both(folder)
    assert (match := re.search(r"module '(.*)' has factors in .*, but (\w+) in .*so PEFT would leave them out", found))
    assert match[1] in written - applied
    assert match[2] in fields


def test_peft_leaves_out_what_is_refused(llama: Base, folder: Path) -> None:
    edit_config(folder, layers_to_transform=[0])
    assert peft_deltas(load_with_peft(llama, folder)).keys() == {Q, "model.layers.0.mlp.down_proj"}
    assert "module 'model.layers.1." in refused_by_both(folder)
    edit_config(folder, layers_to_transform=None, exclude_modules=["q_proj"])
    assert all(name.endswith("down_proj") for name in peft_deltas(load_with_peft(llama, folder)))
    assert f"module '{Q}' has factors in {WEIGHTS_FILE}, but exclude_modules in" in refused_by_both(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"layers_to_transform": "0"},
        {"layers_to_transform": [True]},
        {"layers_to_transform": [0], "target_modules": ".*_proj"},
        {"layers_pattern": "("},
        {"exclude_modules": 3},
    ],
    ids=str,
)
def test_fields_that_choose_modules_have_values_that_peft_takes(folder: Path, fields: dict[str, Any]) -> None:
    edit_config(folder, **fields)
    (field, value), *_ = fields.items()
    assert f"{CONFIG_FILE}: {field} is {value!r}, expected " in refused_by_both(folder)


# Two adapters


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "other")


def check_pair(utility: Path, safety: Path, **allowed: bool) -> dict[str, AdapterHeader]:
    return check_together([("utility", utility), ("safety", safety)], **allowed)[0]


def pair_refusal(utility: Path, safety: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        check_pair(utility, safety)
    return str(caught.value)


def test_adapters_of_different_rank_fit_together(llama: Base, folder: Path, tmp_path: Path) -> None:
    write_peft_adapter(tmp_path / "b", llama, rank=2, target_modules=["q_proj", "down_proj"])
    headers = check_pair(folder, tmp_path / "b")
    assert headers == read_headers(folder)
    assert headers[Q] == AdapterHeader((32, 32), 4)


def test_different_bases_are_refused_unless_allowed(folder: Path, other: Path) -> None:
    edit_config(other, base_model_name_or_path="tiny-qwen2")
    assert pair_refusal(folder, other) == (
        "the adapters have different base models:\n"
        f"  utility  tiny-llama   ({folder / CONFIG_FILE})\n"
        f"  safety   tiny-qwen2   ({other / CONFIG_FILE})\n"
        "  If the weights are equal, set adapters.allow_different_base: true; if not, retrain one of them."
    )
    assert check_pair(folder, other, allow_different_base=True) == read_headers(folder)
    edit_config(other, base_model_name_or_path=None)
    assert f"  safety   (names none)   ({other / CONFIG_FILE})" in pair_refusal(folder, other)


def test_one_folder_written_in_two_ways_is_one_base(folder: Path, other: Path) -> None:
    edit_config(folder, base_model_name_or_path="models/base")
    for name in ("./models/base", "models/base/", "models/other/../base"):
        edit_config(other, base_model_name_or_path=name)
        assert check_pair(folder, other)
    edit_config(other, base_model_name_or_path="/models/base")
    assert "different base models" in pair_refusal(folder, other)


def test_a_folder_that_is_there_is_one_base_by_a_relative_and_by_its_whole_path(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    edit_config(folder, base_model_name_or_path="models/base")
    edit_config(other, base_model_name_or_path=str(tmp_path / "models" / "base"))
    assert check_pair(folder, other)
    monkeypatch.chdir(tmp_path / "models")
    assert "different base models" in pair_refusal(folder, other)


def test_revisions_belong_to_the_base(folder: Path, other: Path) -> None:
    edit_config(folder, revision="main")
    assert check_pair(folder, other)
    edit_config(other, revision="v2")
    assert f"  safety   tiny-llama@v2   ({other / CONFIG_FILE})" in pair_refusal(folder, other)


@pytest.mark.parametrize(("swap", "owner"), [(False, "utility"), (True, "safety")])
def test_a_module_in_only_one_adapter_is_named_with_its_owner(
    folder: Path, other: Path, swap: bool, owner: str
) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for side in "AB":
            del tensors[f"{KEY}{side}.weight"]

    edit_tensors(other, drop)
    utility, safety = (other, folder) if swap else (folder, other)
    assert pair_refusal(utility, safety) == (
        f"module '{Q}' is in '{owner}' only (1 of 4 modules differ).\n  utility {utility}\n  safety  {safety}\n"
        "  Set adapters.missing_modules: zero if the other one is meant to leave these modules as they are, or train "
        "both on the same target modules."
    )


def test_an_adapter_may_lack_modules_that_it_does_not_name_if_that_is_allowed(
    llama: Base, folder: Path, other: Path, tmp_path: Path
) -> None:
    attention = write_peft_adapter(tmp_path / "attention", llama, rank=2, target_modules=["q_proj", "v_proj"])
    assert "is in 'utility' only" in pair_refusal(folder, attention)
    assert check_pair(folder, attention, allow_missing_modules=True) == read_headers(folder)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for side in "AB":
            del tensors[f"{KEY}{side}.weight"]

    edit_tensors(other, drop)  # its configuration names the module, and PEFT would give it factors of chance and zeros
    with pytest.raises(AdapterError) as caught:
        check_pair(folder, other, allow_missing_modules=True)
    assert str(caught.value) == (
        f"{other}: target_modules in {CONFIG_FILE} names module '{Q}', but {WEIGHTS_FILE} holds no factors of it "
        "(1 such module(s)). The file is not whole, or the configuration another's."
    )


def test_modules_that_the_first_adapter_lacks_must_agree_in_shape(llama: Base, folder: Path, tmp_path: Path) -> None:
    write_peft_adapter(tmp_path / "v", llama, target_modules=["v_proj"])
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    edit_tensors(other, lambda tensors: tensors.update({f"{KEY}A.weight": torch.ones(4, 64)}))
    with pytest.raises(AdapterError, match=r"has shape \(32, 32\) in .*adapter and \(32, 64\) in .*other: "):
        check_together([("v", tmp_path / "v"), ("one", folder), ("two", other)], allow_missing_modules=True)


def test_a_sum_is_zero_where_no_adapter_has_a_module(folder: Path) -> None:
    found = read_sum([(folder, 0.5)], shapes={Q: (32, 32), "elsewhere": (3, 5)})
    assert list(found) == ["elsewhere", Q]
    assert (found["elsewhere"].shape, found["elsewhere"].rank) == ((3, 5), 1)
    assert not found["elsewhere"].dense().any()
    torch.testing.assert_close(found[Q].dense(), 0.5 * read_adapter(folder).updates[Q].dense())


def test_different_shapes_are_refused(folder: Path, other: Path) -> None:
    edit_tensors(other, lambda tensors: tensors.update({f"{KEY}A.weight": torch.ones(4, 64)}))
    assert pair_refusal(folder, other) == (
        f"module '{Q}' has shape (32, 32) in {folder} and (32, 64) in {other}: the adapters belong to different models."
    )


# Writing


def like(base: Base) -> dict[str, Any]:
    return {
        "base_model_name_or_path": base.reference,
        "task_type": "CAUSAL_LM",
        "target_modules": ["up_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    }


def mixed_ranks(base: Base) -> Updates:
    return {
        name: random_update(update.shape, 1 + number % 5, number)
        for number, (name, update) in enumerate(random_adapter(base).items())
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read_back_bit_for_bit(llama: Base, tmp_path: Path) -> None:
    updates = mixed_ranks(llama)
    write_adapter(tmp_path / "new" / "a", updates, like=like(llama))
    found = read_adapter(tmp_path / "new" / "a")
    assert found.base_model == llama.reference
    assert list(found.updates) == sorted(updates)
    for name, update in updates.items():
        assert torch.equal(found.updates[name].a, update.a)
        assert torch.equal(found.updates[name].b, update.b)


def test_the_bytes_depend_on_the_content_only(llama: Base, tmp_path: Path) -> None:
    updates = mixed_ranks(llama)
    items = list(updates.items())
    random.Random(0).shuffle(items)
    backwards = {**like(llama), "target_modules": like(llama)["target_modules"][::-1]}
    write_adapter(tmp_path / "a", updates, like=like(llama), card="# A\n")
    write_adapter(tmp_path / "b", dict(items), like=backwards, card="# A\n")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    write_adapter(tmp_path / "a", updates, like=like(llama), card="# A\n")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_peft_loads_what_is_written_and_adds_the_same_update(llama: Base, tmp_path: Path) -> None:
    from peft import PeftConfig, PeftModel

    updates = mixed_ranks(llama)
    write_adapter(tmp_path / "a", updates, like=like(llama))
    config = PeftConfig.from_pretrained(str(tmp_path / "a"))
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (5, 5, llama.reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers renames
        model = PeftModel.from_pretrained(copy.deepcopy(llama.model), str(tmp_path / "a"))
    found = peft_deltas(model)
    assert found.keys() == updates.keys()
    for name, update in updates.items():
        torch.testing.assert_close(found[name], update.dense(), rtol=0, atol=0)  # scaling is exactly 1


def test_a_module_whose_name_ends_like_another_keeps_its_own_rank(tmp_path: Path) -> None:
    from peft.utils.other import get_pattern_key

    updates = {
        "proj": random_update((3, 4), 1, 0),
        "a.proj": random_update((3, 4), 2, 1),
        "aXproj": random_update((3, 4), 3, 2),
    }
    write_adapter(tmp_path / "a", updates, like={})
    config = config_of(tmp_path / "a")
    for name, update in updates.items():
        key = get_pattern_key(list(config["rank_pattern"]), name)
        assert config["rank_pattern"].get(key, config["r"]) == update.rank
    assert {name: update.rank for name, update in read_adapter(tmp_path / "a").updates.items()} == {
        "proj": 1,
        "a.proj": 2,
        "aXproj": 3,
    }


def test_a_card_and_extra_files_are_written_unless_empty(llama: Base, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", mixed_ranks(llama), like={}, card="# Café\n", extra_files={"b.json": "{}", "c": ""})
    assert sorted(files(tmp_path / "a")) == ["README.md", CONFIG_FILE, WEIGHTS_FILE, "b.json"]
    assert (tmp_path / "a" / "README.md").read_text(encoding="utf-8") == "# Café\n"
    write_adapter(tmp_path / "a", mixed_ranks(llama), like={})
    assert sorted(files(tmp_path / "a")) == [CONFIG_FILE, WEIGHTS_FILE]


def test_zero_components_are_dropped_but_one_is_kept(tmp_path: Path) -> None:
    update = random_update((3, 4), 2, 0)
    half = Update(torch.cat([update.b, torch.zeros(3, 2)], dim=1), torch.cat([update.a, torch.ones(2, 4)]))
    write_adapter(tmp_path / "a", {"x": half, "y": update.scaled(0.0)}, like={})
    found = read_adapter(tmp_path / "a").updates
    assert (found["x"].rank, found["y"].rank) == (2, 1)
    assert torch.equal(found["x"].dense(), update.dense())
    assert not found["y"].dense().any()


def test_modules_that_share_a_factor_are_written(tmp_path: Path) -> None:
    b, a = torch.ones(3, 2), torch.eye(2)
    write_adapter(tmp_path / "a", {"x": Update(b, a), "y": Update(b, a)}, like={})
    assert len(read_adapter(tmp_path / "a").updates) == 2


def test_bfloat16_halves_the_file_and_rounds(llama: Base, tmp_path: Path) -> None:
    updates = mixed_ranks(llama)
    write_adapter(tmp_path / "a", updates, like={}, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / WEIGHTS_FILE).values()} == {torch.bfloat16}
    assert torch.equal(read_adapter(tmp_path / "a").updates[Q].b, updates[Q].b.bfloat16().float())


def test_values_that_overflow_the_dtype_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        write_adapter(
            tmp_path / "a", {"x": Update(torch.full((2, 1), 1e5), torch.ones(1, 2))}, like={}, dtype=torch.float16
        )
    assert str(caught.value) == (
        f"{tmp_path / 'a' / WEIGHTS_FILE}: lora_B of module 'x' has 2 value(s) that are NaN or infinite. Written as "
        "torch.float16; choose a wider dtype if that is the cause."
    )
    assert list(tmp_path.iterdir()) == []


def test_no_updates_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no module to write"):
        write_adapter(tmp_path / "a", {}, like={})


def test_a_folder_or_file_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    updates = {"x": random_update((3, 4), 2, 0)}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for name in ("thesis", "file"):
        with pytest.raises(AdapterError) as caught:
            write_adapter(tmp_path / name, updates, like={})
        expected = f"{tmp_path / name} exists and is no adapter folder, so it is not replaced. Choose another output."
        assert str(caught.value) == expected
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write_adapter(tmp_path / "empty", updates, like={})
    assert read_adapter(tmp_path / "empty").updates


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "big_disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big_disk")
    write_adapter(tmp_path / "link", {"x": random_update((3, 4), 2, 0)}, like={})
    assert (tmp_path / "link").is_symlink()
    assert read_adapter(tmp_path / "big_disk").updates


@pytest.mark.parametrize("step", ["save_file", "write_text", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupted_writing_leaves_the_old_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, exists: bool
) -> None:
    target = tmp_path / "a"
    old: dict[str, bytes] = {}
    if exists:
        write_adapter(target, {"x": random_update((3, 4), 2, 0)}, like={}, card="old")
        old = files(target)
    original = Path.replace

    def fail(*_: Any, **__: Any) -> None:
        raise error

    def fail_late(self: Path, other: Path) -> Path:
        if self.name == "adapter":  # the new folder, after the old one was moved away
            raise error
        return original(self, other)

    def save_half(tensors: dict[str, torch.Tensor], path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise error

    if step == "save_file":
        monkeypatch.setattr(adapter_io, "save_file", save_half)
    else:
        monkeypatch.setattr(Path, step, fail_late if step == "replace" else fail)
    with pytest.raises(type(error)):
        write_adapter(target, {"x": random_update((3, 4), 2, 1)}, like={}, card="new")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == ([target] if exists else [])
    if exists:
        assert files(target) == old


def test_a_folder_without_an_adapter_says_where_one_is(folder: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-20"):
        shutil.copytree(folder, tmp_path / "trainer" / name)
    with pytest.raises(AdapterError, match=r"These folders in it have one: checkpoint-10, checkpoint-20\.$"):
        read_adapter(tmp_path / "trainer")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        AdapterError, match=r"has no adapter_config\.json\. It is a whole model; adapters are merged\.$"
    ):
        read_adapter(tmp_path / "model")


def test_task_types_are_those_of_peft() -> None:
    assert set(TASK_TYPES) == {None, *(task.value for task in TaskType)}
