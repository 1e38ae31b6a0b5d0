"""``adapter_config.json`` of PEFT: read, checked and understood as PEFT understands it, or refused by name."""

import json
import math
import re
from pathlib import Path
from typing import Any

from sst_merge.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# adapter_config.json fields that change what the adapter computes in a way that a low-rank update cannot express,
# or that this version does not merge yet. Value: what the field means, for the message.
REFUSED = {
    "use_dora": "DoRA rescales the merged weight",
    "lora_bias": "the LoRA factors carry a bias",
    "modules_to_save": "whole modules were trained besides the LoRA factors",
    "target_parameters": "bare parameters were adapted, not linear modules",
    "trainable_token_indices": "token embeddings were trained",
    "layer_replication": "the adapter changes the number of layers",
    "alora_invocation_tokens": "the adapter is active on part of the tokens only (aLoRA)",
    "kasa_config": "KaSA rescales components by learned singular values",
    "use_qalora": "QALoRA pools the input of the factors",
    "use_bdlora": "the factors are block-diagonal",
    "arrow_config": "Arrow routes between adapters at run time",
    "monteclora_config": "the update is a random variable",
    "megatron_config": "the factors are split between devices",
}
# All fields that LoraConfig of PEFT 0.21 writes; one that is not here is a feature that this version does not know.
KNOWN_FIELDS = REFUSED.keys() | {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",  # PEFT sets it by the module; the factors mean the same
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",
}
NAMING_FIELDS = ("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform")
"""By these PEFT decides which modules have an adapter."""
TASK_TYPES = (
    None,
    "CAUSAL_LM",
    "FEATURE_EXTRACTION",
    "QUESTION_ANS",
    "SEQ_2_SEQ_LM",
    "SEQ_CLS",
    "TOKEN_CLS",
)
"""What PEFT loads; another one, written into the merged adapter, could not be read."""
# Initialisations that change the base weights at load time, so that the factors alone are not the update.
REFUSED_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json of a folder, refused if it asks for what cannot be merged exactly.

    Raises:
        AdapterError: See :func:`read_adapter`.
    """
    if path.is_file():
        raise AdapterError(f"{path} is a file. Give the adapter's folder: {path.parent}")
    if not path.is_dir():
        raise AdapterError(
            f"no such adapter folder: {path}. Adapters are local folders; fetch one of the hub first: "
            "hf download ORG/NAME --local-dir FOLDER"
        )
    if not (path / CONFIG_FILE).is_file():
        raise AdapterError(f"{path} is no PEFT adapter: it has no {CONFIG_FILE}.{_instead(path)}")
    # Only these names: a trainer leaves other pickles (training_args.bin, optimizer.pt) beside good weights.
    pickles = [file for ending in (".bin", ".pt", ".pth") if (path / (file := f"adapter_model{ending}")).is_file()]
    if (path / WEIGHTS_FILE).is_file() and pickles:
        raise AdapterError(
            f"{path} holds two sets of weights, {WEIGHTS_FILE} and {pickles[0]}. Remove the one not meant."
        )
    if not (path / WEIGHTS_FILE).is_file():
        if pickles:
            raise AdapterError(
                f"{path} holds its weights as a pickle ({pickles[0]}), which can run code when it is read.\n"
                "  Convert it where you trust it: load it with PEFT and save_pretrained(..., safe_serialization=True)."
            )
        raise AdapterError(f"{path} has no {WEIGHTS_FILE}.")
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path / CONFIG_FILE} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{path}: peft_type is {found!r}; only LORA adapters can be merged.")
    _refuse_features(path, config)
    _check_values(path, config)
    return config


def _instead(path: Path) -> str:
    """What a folder without an adapter holds: adapters in folders of their own, or a whole model."""
    inside = sorted(folder.parent.name for folder in path.glob(f"*/{CONFIG_FILE}"))
    if inside:
        return f" These folders in it have one: {', '.join(inside)}."
    return " It is a whole model; adapters are merged." if (path / "config.json").is_file() else ""


def _refuse_features(path: Path, config: dict[str, Any]) -> None:
    """Refuse by name what a low-rank update cannot express."""
    for field, meaning in REFUSED.items():
        if config.get(field):
            raise AdapterError(
                f"{path}: {field} = {config[field]!r} is not supported: {meaning}. Train it without {field}."
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"{path}: bias = {config['bias']!r} is not supported: base biases were trained. Use bias none."
        )
    if unknown := sorted(field for field in config.keys() - KNOWN_FIELDS if config[field]):
        raise AdapterError(
            f"{path}: {unknown[0]} = {config[unknown[0]]!r} in {CONFIG_FILE} is not a field that this version "
            "knows, so what it changes is unknown. Remove it if the adapter computes the same without it."
        )
    initialisation = config.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower().startswith(REFUSED_INITIALISATIONS):
        raise AdapterError(
            f"{path}: init_lora_weights = {initialisation!r} changes the base weights when the adapter is loaded, so "
            "its factors alone are not the update. Convert it to a plain LoRA first (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )


def _check_values(path: Path, config: dict[str, Any]) -> None:
    """Refuse fields that PEFT could not have meant: ranks and alphas that are no positive numbers, and wrong types."""
    wanted: list[tuple[str, Any, bool, str]] = []  # field, value, whether it is right, what is expected
    for field, pattern, is_right, expected in (
        ("r", "rank_pattern", _is_rank, "a whole number from 1"),
        ("lora_alpha", "alpha_pattern", _is_alpha, "a positive number"),
    ):
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict):
            raise AdapterError(f"{path / CONFIG_FILE}: {pattern} is {patterns!r}, expected names and values.")
        wanted.append((field, config.get(field), is_right(config.get(field)), expected))
        for key, value in patterns.items():
            wanted.append((f"{pattern}['{key}']", value, is_right(value) and is_regex(key), f"a regex and {expected}"))
    base, rslora, task = (config.get(key) for key in ("base_model_name_or_path", "use_rslora", "task_type"))
    targets, excluded, pattern, layers = (config.get(field) for field in NAMING_FIELDS)
    wanted += [
        ("base_model_name_or_path", base, base is None or isinstance(base, str), "a name"),
        ("revision", config.get("revision"), isinstance(config.get("revision"), str | None), "a name"),
        ("task_type", task, task in TASK_TYPES, "CAUSAL_LM, or another of PEFT's"),
        ("use_rslora", rslora, rslora is None or isinstance(rslora, bool), "true or false"),
        ("target_modules", targets, _is_names(targets), "names or a regex"),
        ("exclude_modules", excluded, _is_names(excluded), "names or a regex"),
        ("layers_pattern", pattern, _is_names(pattern) and all(map(is_regex, _listed(pattern))), "regexes"),
        (
            "layers_to_transform",
            layers,
            layers is None or (all(map(_is_index, _listed(layers))) and not isinstance(targets, str)),
            "whole numbers, and none beside a regex of target_modules",
        ),
    ]
    for field, value, is_right, expected in wanted:
        if not is_right:
            raise AdapterError(f"{path / CONFIG_FILE}: {field} is {value!r}, expected {expected}.")


def _listed(value: Any) -> list[Any]:
    """A value that stands alone is a list of one, and none an empty list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return _is_index(value) and value >= 1


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def is_regex(value: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def _is_names(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return value is None or (isinstance(value, str) and is_regex(value))


def leaving_out(config: dict[str, Any], name: str) -> str | None:
    """The field by which PEFT gives a module no adapter, if there is one."""
    targets, excluded, _, layers = (config.get(field) for field in NAMING_FIELDS)
    if excluded and _is_named(excluded, name):
        return "exclude_modules"
    if not is_target(targets, name):
        return "target_modules"
    is_in = layers is None or layers == [] or _layer(config, name) in _listed(layers)
    return None if is_in else "layers_to_transform"


def is_target(targets: list[str] | str | None, name: str) -> bool:
    """Whether ``target_modules`` names a module, as PEFT reads it."""
    return targets is None or targets == "all-linear" or _is_named(targets, name)


def _is_named(names: list[str] | str, name: str) -> bool:
    """PEFT's choice of modules: the end of the name for a list, the whole name for a regular expression."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in names)


def _layer(config: dict[str, Any], name: str) -> int | None:
    """The number of a module's layer as PEFT counts: the first in the name, or behind ``layers_pattern``."""
    patterns = [rf"(?:^|.*?\.){pattern}" for pattern in _listed(config.get("layers_pattern") or [])]
    for pattern in patterns or [r".*?\.[^.]*"]:
        if match := re.match(rf"{pattern}\.(?P<layer>\d+)\.", name):
            return None if match["layer"] is None else int(match["layer"])
    return None


def pattern_value(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's lookup of ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
