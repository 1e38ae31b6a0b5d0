"""Read and write PEFT LoRA folders: safetensors only, nothing skipped, nothing guessed.

Reading refuses whatever it could not reproduce exactly, by name. Writing is atomic: the folder appears complete
or not at all.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sst_merge.adapter import Update, Updates, concatenate
from sst_merge.errors import AdapterError
from sst_merge.wheels import file_sha256, put_in_place

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINING_ROWS_FILE = "training_rows.json"
PREFIX = "base_model.model."

# adapter_config.json fields that change what the adapter computes in a way that a low-rank update cannot express,
# or that this version does not merge yet. Value: what the field means, for the message.
REFUSED = {
    "use_dora": "DoRA rescales the merged weight",
    "lora_bias": "the LoRA factors carry a bias",
    "modules_to_save": "whole modules were trained besides the LoRA factors",
    "target_parameters": "bare parameters were adapted, not linear modules",
    "trainable_token_indices": "token embeddings were trained",
    "layer_replication": "the adapter changes the number of layers",
    "fan_in_fan_out": "weights are stored transposed (Conv1D)",
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
# Initialisations that change the base weights at load time, so that the factors alone are not the update.
REFUSED_INITIALISATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter as updates, with what is known of it."""

    path: Path
    base_model: str
    """What adapter_config.json names as the base; empty where it names none."""
    updates: Updates
    config: dict[str, Any]
    sha256: str
    """Of adapter_config.json and adapter_model.safetensors together."""
    training_rows: frozenset[str]
    """Content ids of the prompts it was trained on, where the folder says so."""


@dataclass(frozen=True)
class AdapterHeader:
    """Shapes of one module, known without reading tensors."""

    shape: tuple[int, int]
    rank: int


def read_adapter(path: Path) -> Adapter:
    """Read an adapter folder.

    Returns:
        Updates in float32 with the scaling folded in, sorted by module name.

    Raises:
        AdapterError: If the folder is no LoRA adapter in safetensors, uses a feature of :data:`REFUSED`, holds a
            tensor that is not a LoRA factor, lacks one of a pair, or holds a value that is not finite.
    """
    config = read_config(path)
    tensors = _read_tensors(path / WEIGHTS_FILE)
    updates = {
        name: _update(path, config, name, a, b) for name, (a, b) in sorted(_pairs(path, config, tensors).items())
    }
    return Adapter(
        path=path,
        base_model=config.get("base_model_name_or_path") or "",
        updates=updates,
        config=config,
        sha256=folder_sha256(path),
        training_rows=training_rows(path),
    )


def read_headers(path: Path) -> dict[str, AdapterHeader]:
    """Shapes and ranks per module, from the safetensors header only.

    Raises:
        AdapterError: As :func:`read_adapter`, except for values that are not finite.
    """
    config = read_config(path)
    with _open(path / WEIGHTS_FILE) as file:
        _check_types(path, file)
        shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    headers = {}
    for name, (a, b) in sorted(_pairs(path, config, shapes).items()):
        _check_factors(path, config, name, a, b)
        headers[name] = AdapterHeader((b.shape[0], a.shape[1]), a.shape[0])
    return headers


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
        raise AdapterError(f"{path} is no PEFT adapter: it has no {CONFIG_FILE}.")
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
    base, rslora = config.get("base_model_name_or_path"), config.get("use_rslora")
    targets, excluded, pattern, layers = (config.get(field) for field in NAMING_FIELDS)
    wanted += [
        ("base_model_name_or_path", base, base is None or isinstance(base, str), "a name"),
        ("revision", config.get("revision"), isinstance(config.get("revision"), str | None), "a name"),
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


def check_pair(utility: Path, safety: Path, *, allow_different_base: bool = False) -> dict[str, AdapterHeader]:
    """Check from headers alone that two adapters can be merged; returns the first one's headers.

    Raises:
        AdapterError: If the bases, the modules or the shapes differ.
    """
    return check_together([("utility", utility), ("safety", safety)], allow_different_base=allow_different_base)[0]


def check_together(
    folders: Sequence[tuple[str, Path]], *, allow_different_base: bool = False
) -> list[dict[str, AdapterHeader]]:
    """Check from headers alone that adapters can be merged: each with the first.

    Args:
        folders: What each adapter is called in messages, and its folder.
        allow_different_base: Whether they may name different base models.

    Returns:
        The headers of each.

    Raises:
        AdapterError: If the bases, the modules or the shapes differ.
    """
    bases = [_base(read_config(path)) for _, path in folders]
    headers = [read_headers(path) for _, path in folders]
    width = max(len(label) for label, _ in folders)
    (first, first_path), *others = folders
    for number, (label, path) in enumerate(others, start=1):
        if bases[0] != bases[number] and not allow_different_base:
            raise AdapterError(
                "the adapters have different base models:\n"
                f"  {first:<{width}}  {bases[0]}   ({first_path / CONFIG_FILE})\n"
                f"  {label:<{width}}  {bases[number]}   ({path / CONFIG_FILE})\n"
                "  Retrain one of them, or set adapters.allow_different_base: true if the weights are known to be "
                "equal."
            )
        ours, theirs = headers[0], headers[number]
        if difference := sorted(set(ours) ^ set(theirs)):
            owner = first if difference[0] in ours else label
            raise AdapterError(
                f"module '{difference[0]}' is in '{owner}' only ({len(difference)} of {len(set(ours) | set(theirs))} "
                f"modules differ).\n  {first:<{width}} {first_path}\n  {label:<{width}} {path}\n"
                "  Train both adapters on the same target modules."
            )
        for name, header in ours.items():
            if header.shape != theirs[name].shape:
                raise AdapterError(
                    f"module '{name}' has shape {header.shape} in {first_path} and {theirs[name].shape} in {path}: "
                    "the adapters belong to different models."
                )
    return headers


def read_sum(sources: Sequence[tuple[Path, float]]) -> Updates:
    """``sum_i weight_i * update_i`` of adapters on the same modules, exactly: factors side by side, ranks added.

    Args:
        sources: Folder and weight of each; one of weight 1 is read as it is.

    Raises:
        AdapterError: As :func:`read_adapter`, or if the modules differ.
    """
    parts = [({n: u.scaled(weight) for n, u in read_adapter(path).updates.items()}, path) for path, weight in sources]
    first, first_path = parts[0]
    for other, path in parts[1:]:
        if first.keys() != other.keys():
            raise AdapterError(f"{first_path} and {path} differ in {len(first.keys() ^ other.keys())} module(s).")
    if len(parts) == 1:
        return first
    return {name: concatenate([updates[name] for updates, _ in parts]) for name in first}


def sum_sha256(sources: Sequence[tuple[Path, float]]) -> str:
    """One hash for a weighted sum; that of the folder for a single adapter of weight 1."""
    parts = [[folder_sha256(path), weight] for path, weight in sources]
    if len(parts) == 1 and sources[0][1] == 1:
        return folder_sha256(sources[0][0])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _base(config: dict[str, Any]) -> str:
    """Name of the base model, with its revision where it is not the default one."""
    name = config.get("base_model_name_or_path") or "(names none)"
    return name if config.get("revision") in {None, "", "main"} else f"{name}@{config['revision']}"


def write_adapter(
    path: Path,
    updates: Updates,
    *,
    like: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    card: str = "",
    extra_files: dict[str, str] | None = None,
) -> None:
    """Write updates as an ordinary PEFT adapter folder, atomically.

    ``lora_alpha`` equals the rank of each module, so that PEFT's scaling is 1 and the factors are the update.

    Args:
        path: Folder to create; an existing adapter or an empty folder is replaced, anything else is not.
        updates: What to write; components that are exactly zero are dropped, at least one is kept.
        like: adapter_config.json of an adapter on the same modules, for ``base_model_name_or_path``, ``task_type``
            and ``target_modules``.
        dtype: Of the tensors in the file; a cast loses precision (the merge stage measures how much).
        card: README.md.
        extra_files: Further text files by name.

    Raises:
        AdapterError: See :func:`refuse_occupied`; or there are no updates, or a value is not finite in ``dtype``.
    """
    refuse_occupied(path)
    path = path.resolve()  # a link stays one: the folder that it leads to is replaced
    if not updates:
        raise AdapterError(f"{path}: there is no module to write.")
    kept = {name: _at_least_one_component(update) for name, update in updates.items()}
    ranks = {name: update.rank for name, update in kept.items()}
    rank = max(ranks.values())
    # PEFT takes keys for regular expressions that match the end of a name: unanchored, "proj" is "encoder.proj", too.
    pattern = {f"^{re.escape(name)}": value for name, value in sorted(ranks.items()) if value != rank}
    targets = like.get("target_modules")
    if any(like.get(field) is not None for field in NAMING_FIELDS[1:]):
        targets = sorted(kept)  # the names themselves: nothing is left to a pattern
    config = {
        "peft_type": "LORA",
        "task_type": like.get("task_type"),
        "base_model_name_or_path": like.get("base_model_name_or_path"),
        "target_modules": targets if targets is None or isinstance(targets, str) else sorted(targets),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    tensors = {}
    for name, update in sorted(kept.items()):
        for side, factor in (("A", update.a), ("B", update.b)):
            tensor = factor.to(dtype, copy=True).contiguous()  # safetensors refuses tensors that share memory
            _check_finite(path, name, side, tensor, f"Written as {dtype}; choose a wider dtype if that is the cause.")
            tensors[f"{PREFIX}{name}.lora_{side}.weight"] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        folder = Path(temporary) / "adapter"
        folder.mkdir()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, text in {"README.md": card, **(extra_files or {})}.items():
            if text:
                (folder / name).write_text(text, encoding="utf-8")
        old = Path(temporary) / "old"  # goes with the temporary folder, but only once the new one is in place
        if path.exists():
            path.replace(old)
        try:
            put_in_place(folder, path)
        except BaseException:
            if old.exists():
                old.replace(path)
            raise


def refuse_occupied(path: Path) -> None:
    """Refuse a folder that :func:`write_adapter` could not write.

    Raises:
        AdapterError: If it holds something else than an adapter, is a file or below one, or cannot be made.
    """
    path = path.resolve()
    if (path / CONFIG_FILE).is_file():
        return
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise AdapterError(f"{path} exists and is no adapter folder, so it is not replaced. Choose another output.")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "cannot be written" if above.is_dir() else "is a file"
        raise AdapterError(f"{path} cannot be made: {above} {why}. Choose another output.")


def folder_sha256(path: Path) -> str:
    """One hash for an adapter's configuration and weights together."""
    parts = "".join(file_sha256(path / name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    return hashlib.sha256(parts.encode()).hexdigest()


def _at_least_one_component(update: Update) -> Update:
    compact = update.without_zero_components()
    return compact if compact.rank else Update(torch.zeros(update.shape[0], 1), torch.zeros(1, update.shape[1]))


def training_rows(path: Path) -> frozenset[str]:
    """Content ids of the prompts that an adapter was trained on, where its folder says so; else nothing.

    Raises:
        AdapterError: If the file that says so is damaged.
    """
    file = path / TRAINING_ROWS_FILE
    if not file.is_file():
        return frozenset()
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))["ids"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} is damaged ({error!r}). Copy it again, or remove it.") from error
    if not isinstance(ids, list) or not all(isinstance(row_id, str) for row_id in ids):
        raise AdapterError(f"{file} is damaged (ids is no list of text). Copy it again, or remove it.")
    return frozenset(ids)


def _open(path: Path) -> Any:
    """Open a safetensors file, or say that it is damaged."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} is not a complete safetensors file ({error}). Copy or download it again."
        ) from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with _open(path) as file:
        _check_types(path.parent, file)
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _check_types(path: Path, file: Any) -> None:
    """Factors are floating-point numbers; bytes and 8-bit floats need a scale that LoRA does not have."""
    for key in file.keys():  # noqa: SIM118
        kind = file.get_slice(key).get_dtype()
        if kind not in {"F64", "F32", "F16", "BF16"}:
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: tensor '{key}' has type {kind}, expected floating-point numbers of 16 bits or "
                "more. Save the adapter unquantized."
            )


def _pairs(
    path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Group tensors into (A, B) by module; every tensor must find its place."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(?P<name>.+)\.lora_(?P<side>[AB])\.weight", key)
        if match is None:
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: tensor '{key}' is not a LoRA factor of a linear module and cannot be merged."
            )
        found.setdefault(match["name"], {})[match["side"]] = tensor
    if not found:
        raise AdapterError(f"{path / WEIGHTS_FILE} holds no tensors.")
    for name, sides in found.items():
        if missing := {"A", "B"} - sides.keys():
            raise AdapterError(f"{path / WEIGHTS_FILE}: module '{name}' has no lora_{missing.pop()}.")
        if field := _leaving_out(config, name):
            raise AdapterError(
                f"{path}: module '{name}' has factors in {WEIGHTS_FILE}, but {field} in {CONFIG_FILE} "
                f"{'names' if field == 'exclude_modules' else 'does not name'} it, so PEFT would leave them out "
                f"({config[field]!r})."
            )
    return {name: (sides["A"], sides["B"]) for name, sides in found.items()}


def _check_factors(path: Path, config: dict[str, Any], name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Two matrices of one rank, and the rank that the configuration announces."""
    rank = _pattern(config.get("rank_pattern"), name, config["r"])
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
        raise AdapterError(
            f"{path}: module '{name}' has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}, expected "
            f"({rank}, d_in) and (d_out, {rank}) from {CONFIG_FILE}."
        )
    if 0 in (*a.shape, *b.shape):
        raise AdapterError(f"{path}: module '{name}' is empty: lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)}.")


def _update(path: Path, config: dict[str, Any], name: str, a: torch.Tensor, b: torch.Tensor) -> Update:
    """Fold the scaling into B: alpha/r, or alpha/sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    _check_factors(path, config, name, a, b)
    for side, tensor in (("A", a), ("B", b)):
        _check_finite(path, name, side, tensor, "Training diverged or the file is damaged; nothing was merged.")
    rank = a.shape[0]
    alpha = float(_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    update = Update(b.float() * scaling, a.float())
    for side, tensor in (("A", update.a), ("B", update.b)):
        _check_finite(path, name, side, tensor, f"They overflow in float32 with the scaling {scaling:g}.")
    return update


def _check_finite(path: Path, name: str, side: str, tensor: torch.Tensor, reason: str) -> None:
    if count := int((~torch.isfinite(tensor)).sum()):
        raise AdapterError(
            f"{path / WEIGHTS_FILE}: lora_{side} of module '{name}' has {count} value(s) that are NaN or "
            f"infinite. {reason}"
        )


def _leaving_out(config: dict[str, Any], name: str) -> str | None:
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


def _pattern(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's lookup of ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
