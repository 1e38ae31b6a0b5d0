"""Read and write PEFT LoRA folders: safetensors only, nothing skipped, nothing guessed.

Reading refuses whatever it could not reproduce exactly, by name. Writing is atomic: the folder appears complete
or not at all.
"""

import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sst_merge.adapter import Update, Updates
from sst_merge.errors import AdapterError
from sst_merge.wheels import file_sha256

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
}
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
        name: _update(path, config, name, a, b) for name, (a, b) in sorted(_pairs(path, tensors).items())
    }
    return Adapter(
        path=path,
        base_model=config.get("base_model_name_or_path") or "",
        updates=updates,
        config=config,
        sha256=folder_sha256(path),
        training_rows=_training_rows(path),
    )


def read_headers(path: Path) -> dict[str, AdapterHeader]:
    """Shapes and ranks per module, from the safetensors header only.

    Raises:
        AdapterError: As :func:`read_adapter`, except for values that are not finite.
    """
    config = read_config(path)
    with _open(path / WEIGHTS_FILE) as file:
        shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    headers = {}
    for name, (a, b) in sorted(_pairs(path, shapes).items()):
        _check_factors(path, config, name, a, b)
        headers[name] = AdapterHeader((b.shape[0], a.shape[1]), a.shape[0])
    return headers


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json of a folder, refused if it asks for what cannot be merged exactly.

    Raises:
        AdapterError: See :func:`read_adapter`.
    """
    if not path.is_dir():
        raise AdapterError(f"no such adapter folder: {path}")
    if not (path / CONFIG_FILE).is_file():
        raise AdapterError(f"{path} is no PEFT adapter: it has no {CONFIG_FILE}.")
    if not (path / WEIGHTS_FILE).is_file():
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth"})
        if pickles:
            raise AdapterError(
                f"{path} holds its weights as a pickle ({pickles[0]}), which can run code when it is read.\n"
                f"  Convert it where you trust it: load it with PEFT and save_pretrained(..., safe_serialization=True)."
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
    return config


def _refuse_features(path: Path, config: dict[str, Any]) -> None:
    """Refuse by name what a low-rank update cannot express."""
    for field, meaning in REFUSED.items():
        if config.get(field):
            raise AdapterError(
                f"{path}: {field} = {config[field]!r} is not supported: {meaning}. Train it without {field}."
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias = {config['bias']!r} is not supported: base biases were trained. Use bias none.")
    initialisation = config.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower().startswith(REFUSED_INITIALISATIONS):
        raise AdapterError(
            f"{path}: init_lora_weights = {initialisation!r} changes the base weights when the adapter is loaded, so "
            "its factors alone are not the update. Convert it to a plain LoRA first (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )


def check_pair(utility: Path, safety: Path, *, allow_different_base: bool = False) -> dict[str, AdapterHeader]:
    """Check from headers alone that two adapters can be merged; returns the first one's headers.

    Raises:
        AdapterError: If the bases, the modules or the shapes differ.
    """
    bases = {path: read_config(path).get("base_model_name_or_path") or "" for path in (utility, safety)}
    if bases[utility] != bases[safety] and not allow_different_base:
        raise AdapterError(
            "the adapters have different base models:\n"
            f"  utility  {bases[utility]}   ({utility / CONFIG_FILE})\n"
            f"  safety   {bases[safety]}   ({safety / CONFIG_FILE})\n"
            "  Retrain one of them, or set allow_different_base: true if the weights are known to be equal."
        )
    first, second = read_headers(utility), read_headers(safety)
    if difference := sorted(set(first) ^ set(second)):
        owner = "utility" if difference[0] in first else "safety"
        raise AdapterError(
            f"module '{difference[0]}' is in '{owner}' only ({len(difference)} of {len(set(first) | set(second))} "
            f"modules differ).\n  utility {utility}\n  safety  {safety}\n  Train both adapters on the same target modules."
        )
    for name, header in first.items():
        if header.shape != second[name].shape:
            raise AdapterError(
                f"module '{name}' has shape {header.shape} in {utility} and {second[name].shape} in {safety}: "
                "the adapters belong to different models."
            )
    return first


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
        path: Folder to create; an existing one is replaced.
        updates: What to write; components that are exactly zero are dropped, at least one is kept.
        like: adapter_config.json of an adapter on the same modules, for ``base_model_name_or_path``, ``task_type``
            and ``target_modules``.
        dtype: Of the tensors in the file; a cast loses precision (the merge stage measures how much).
        card: README.md.
        extra_files: Further text files by name.
    """
    kept = {name: _at_least_one_component(update) for name, update in updates.items()}
    ranks = {name: update.rank for name, update in kept.items()}
    rank = max(ranks.values())
    pattern = {name: value for name, value in ranks.items() if value != rank}
    config = {
        "peft_type": "LORA",
        "task_type": like.get("task_type"),
        "base_model_name_or_path": like.get("base_model_name_or_path"),
        "target_modules": like.get("target_modules"),
        "exclude_modules": like.get("exclude_modules"),
        "layers_to_transform": like.get("layers_to_transform"),
        "layers_pattern": like.get("layers_pattern"),
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
        tensors[f"{PREFIX}{name}.lora_A.weight"] = update.a.to(dtype).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = update.b.to(dtype).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        folder = Path(temporary) / "adapter"
        folder.mkdir()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, text in {"README.md": card, **(extra_files or {})}.items():
            if text:
                (folder / name).write_text(text, encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        folder.replace(path)


def folder_sha256(path: Path) -> str:
    """One hash for an adapter's configuration and weights together."""
    parts = "".join(file_sha256(path / name) for name in (CONFIG_FILE, WEIGHTS_FILE))
    return hashlib.sha256(parts.encode()).hexdigest()


def _at_least_one_component(update: Update) -> Update:
    compact = update.without_zero_components()
    return compact if compact.rank else Update(torch.zeros(update.shape[0], 1), torch.zeros(1, update.shape[1]))


def _training_rows(path: Path) -> frozenset[str]:
    file = path / TRAINING_ROWS_FILE
    return frozenset(json.loads(file.read_text(encoding="utf-8"))["ids"]) if file.is_file() else frozenset()


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
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _pairs(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
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
    return {name: (sides["A"], sides["B"]) for name, sides in found.items()}


def _check_factors(path: Path, config: dict[str, Any], name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Two matrices of one rank, and the rank that the configuration announces."""
    rank = int(_pattern(config.get("rank_pattern"), name, config["r"]))
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
        raise AdapterError(
            f"{path}: module '{name}' has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)}, expected "
            f"({rank}, d_in) and (d_out, {rank}) from {CONFIG_FILE}."
        )


def _update(path: Path, config: dict[str, Any], name: str, a: torch.Tensor, b: torch.Tensor) -> Update:
    """Fold the scaling into B: alpha/r, or alpha/sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    _check_factors(path, config, name, a, b)
    for side, tensor in (("A", a), ("B", b)):
        if not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise AdapterError(
                f"{path / WEIGHTS_FILE}: lora_{side} of module '{name}' has {count} value(s) that are NaN or infinite. "
                "Training diverged or the file is damaged; nothing was merged."
            )
    rank = a.shape[0]
    alpha = float(_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    return Update(b.float() * scaling, a.float())


def _pattern(pattern: dict[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's lookup of ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
