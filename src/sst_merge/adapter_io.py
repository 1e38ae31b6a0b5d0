"""Read and write PEFT LoRA folders: safetensors only, nothing skipped, nothing guessed.

Reading refuses whatever it could not reproduce exactly, by name. Writing is atomic: the folder appears complete
or not at all.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sst_merge.adapter import Update, Updates, concatenate
from sst_merge.adapter_config import (
    CONFIG_FILE,
    NAMING_FIELDS,
    WEIGHTS_FILE,
    is_target,
    leaving_out,
    pattern_value,
    read_config,
)
from sst_merge.atomic import put_in_place
from sst_merge.errors import AdapterError
from sst_merge.wheels import file_sha256

TRAINING_ROWS_FILE = "training_rows.json"
RECORD_FILE, RECORD_SCHEMA = "training.json", "sst-merge/training/1"
PREFIX = "base_model.model."


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


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter folder.

    Returns:
        Updates in float32 with the scaling folded in, sorted by module name.

    Raises:
        AdapterError: If the folder is no LoRA adapter in safetensors, uses a feature that cannot be merged
            (:func:`sst_merge.adapter_config.read_config`), holds a tensor that is not a LoRA factor, lacks one of a
            pair, or holds a value that is not finite.
    """
    path = Path(path)
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


def check_together(
    folders: Sequence[tuple[str, Path]], *, allow_different_base: bool = False, allow_missing_modules: bool = False
) -> list[dict[str, AdapterHeader]]:
    """Check from headers alone that adapters can be merged.

    Args:
        folders: What each adapter is called in messages, and its folder.
        allow_different_base: Whether they may name different base models.
        allow_missing_modules: Whether one may lack modules that another has.

    Returns:
        The headers of each.

    Raises:
        AdapterError: If the bases, the modules or the shapes differ.
    """
    configs = [read_config(path) for _, path in folders]
    bases = [_base(config) for config in configs]
    headers = [read_headers(path) for _, path in folders]
    width = max(len(label) for label, _ in folders)
    (first, first_path), *others = folders
    for number, (label, path) in enumerate(others, start=1):
        if bases[0] != bases[number] and not allow_different_base:
            raise AdapterError(
                "the adapters have different base models:\n"
                f"  {first:<{width}}  {bases[0]}   ({first_path / CONFIG_FILE})\n"
                f"  {label:<{width}}  {bases[number]}   ({path / CONFIG_FILE})\n"
                "  If the weights are equal, set adapters.allow_different_base: true; if not, retrain one of them."
            )
        ours, theirs = headers[0], headers[number]
        if (difference := sorted(set(ours) ^ set(theirs))) and not allow_missing_modules:
            owner = first if difference[0] in ours else label
            raise AdapterError(
                f"module '{difference[0]}' is in '{owner}' only ({len(difference)} of {len(set(ours) | set(theirs))} "
                f"modules differ).\n  {first:<{width}} {first_path}\n  {label:<{width}} {path}\n"
                "  Set adapters.missing_modules: zero if the other one is meant to leave these modules as they are, or "
                "train both on the same target modules."
            )
    _check_modules([path for _, path in folders], configs, headers)
    return headers


def _check_modules(
    folders: Sequence[Path], configs: Sequence[dict[str, Any]], headers: Sequence[dict[str, AdapterHeader]]
) -> None:
    """Refuse an adapter without the factors of a module that its configuration names, and shapes that differ."""
    modules = sorted({name for each in headers for name in each})
    for path, config, each in zip(folders, configs, headers, strict=True):
        lacking = [name for name in modules if name not in each and not leaving_out(config, name)]
        if lacking and config.get("target_modules") is not None:
            raise AdapterError(
                f"{path}: target_modules in {CONFIG_FILE} names module '{lacking[0]}', but {WEIGHTS_FILE} holds no "
                f"factors of it ({len(lacking)} such module(s)). The file is not whole, or the configuration another's."
            )
    owners: dict[str, tuple[tuple[int, int], Path]] = {}
    for path, each in zip(folders, headers, strict=True):
        for name, header in each.items():
            shape, owner = owners.setdefault(name, (header.shape, path))
            if header.shape != shape:
                raise AdapterError(
                    f"module '{name}' has shape {shape} in {owner} and {header.shape} in {path}: "
                    "the adapters belong to different models."
                )


def read_sum(sources: Sequence[tuple[Path, float]], *, shapes: Mapping[str, tuple[int, int]] | None = None) -> Updates:
    """``sum_i weight_i * update_i`` of adapters, exactly: factors side by side, ranks added.

    Args:
        sources: Folder and weight of each; one of weight 1 is read as it is.
        shapes: ``(d_out, d_in)`` of all modules, if an adapter may lack some: there its update is zero, as PEFT has it.

    Returns:
        An update of each module, sorted by name; of rank 1 and zeros where no adapter has one.

    Raises:
        AdapterError: As :func:`read_adapter`, or if the modules differ and no ``shapes`` are given.
    """
    parts = [({n: u.scaled(weight) for n, u in read_adapter(path).updates.items()}, path) for path, weight in sources]
    first, first_path = parts[0]
    for other, path in parts[1:]:
        if shapes is None and first.keys() != other.keys():
            raise AdapterError(f"{first_path} and {path} differ in {len(first.keys() ^ other.keys())} module(s).")
    found = {name: [updates[name] for updates, _ in parts if name in updates] for name in sorted(shapes or first)}
    return {
        name: concatenate(updates) if len(updates) > 1 else updates[0] if updates else _zeros((shapes or {})[name])
        for name, updates in found.items()
    }


def sum_sha256(sources: Sequence[tuple[Path, float]]) -> str:
    """One hash for a weighted sum; that of the folder for a single adapter of weight 1."""
    parts = [[folder_sha256(path), weight] for path, weight in sources]
    if len(parts) == 1 and sources[0][1] == 1:
        return folder_sha256(sources[0][0])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _base(config: dict[str, Any]) -> str:
    """Name of the base model, with its revision where it is not the default one."""
    name = plain_name(config.get("base_model_name_or_path") or "(names none)")
    return name if config.get("revision") in {None, "", "main"} else f"{name}@{config['revision']}"


def plain_name(base_model: str) -> str:
    """A base model's name; of a folder its whole path, or, where it is not here, the name without ``./`` and such."""
    return os.path.realpath(base_model) if Path(base_model).is_dir() else os.path.normpath(base_model)


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
        like: adapter_config.json of an adapter, for ``base_model_name_or_path``, ``task_type``, ``fan_in_fan_out`` and,
            where it names all modules, ``target_modules``.
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
    is_by_pattern = any(like.get(field) is not None for field in NAMING_FIELDS[1:])
    if is_by_pattern or not all(is_target(targets, name) for name in kept):
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
        "fan_in_fan_out": bool(like.get("fan_in_fan_out")),
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
    return compact if compact.rank else _zeros(update.shape)


def _zeros(shape: tuple[int, int]) -> Update:
    """An update that changes nothing; PEFT knows no rank below 1."""
    return Update(torch.zeros(shape[0], 1), torch.zeros(1, shape[1]))


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


def training_record(path: Path) -> dict[str, str]:
    """What an adapter's folder says of its training, as far as it does.

    ``role`` (utility, safety or harmful); ``base``, the identity of the base model's files, and ``base_weights``,
    that of its weights alone (:func:`sst_merge.model_files.weights_identity`). Nothing without a file, or with one that
    another program wrote.

    Raises:
        AdapterError: If the file is damaged.
    """
    file = path / RECORD_FILE
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("schema") != RECORD_SCHEMA:
            return {}
        told = {"role": record["config"]["role"], "base": record["base"], "base_weights": record.get("base_weights")}
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} is damaged ({error!r}). Copy it again, or remove it.") from error
    return {key: value for key, value in told.items() if value is not None}


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
            beside = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")
            why = " Train without embeddings and output head, and save with save_embedding_layers=False."
            why = why if "lora_embedding" in key or key.endswith(beside) else ""
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: tensor '{key}' is not a LoRA factor of a linear module and cannot be merged."
                + why
            )
        found.setdefault(match["name"], {})[match["side"]] = tensor
    if not found:
        raise AdapterError(f"{path / WEIGHTS_FILE} holds no tensors.")
    for name, sides in found.items():
        if missing := {"A", "B"} - sides.keys():
            raise AdapterError(f"{path / WEIGHTS_FILE}: module '{name}' has no lora_{missing.pop()}.")
        if field := leaving_out(config, name):
            raise AdapterError(
                f"{path}: module '{name}' has factors in {WEIGHTS_FILE}, but {field} in {CONFIG_FILE} "
                f"{'names' if field == 'exclude_modules' else 'does not name'} it, so PEFT would leave them out "
                f"({config[field]!r})."
            )
    return {name: (sides["A"], sides["B"]) for name, sides in found.items()}


def _check_factors(path: Path, config: dict[str, Any], name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Two matrices of one rank, and the rank that the configuration announces."""
    rank = pattern_value(config.get("rank_pattern"), name, config["r"])
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
    alpha = float(pattern_value(config.get("alpha_pattern"), name, config["lora_alpha"]))
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
