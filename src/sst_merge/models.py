"""Base models and their tokenizers, loaded; where they come from is the matter of :mod:`sst_merge.model_files`.

Every arm of an evaluation is the same loaded base with an update added to its weights
(:func:`sst_merge.weights.applied`), so that prompts, batches, precision and decoding cannot differ between arms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.pytorch_utils import Conv1D

from sst_merge.chat_template import answer_opening, prepare_tokenizer
from sst_merge.errors import ModelError
from sst_merge.model_files import (
    KNOWN_MODELS,
    adapter_inside,
    check_converted,
    check_weights,
    context_length,
    model_config,
    model_location,
)

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
        return context_length(self.model.config)

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
        reference: A key of :data:`sst_merge.model_files.KNOWN_MODELS`, a local folder, or a hub id.
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
    is_stored_quantised = getattr(model_config(reference, revision), "quantization_config", None) is not None
    folder = model_location(reference)
    if reference in KNOWN_MODELS:
        check_converted(Path(folder))
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
        raise adapter_inside(reference)
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
        reference: A key of :data:`sst_merge.model_files.KNOWN_MODELS`, a local folder, or a hub id.
        revision: Commit, tag or branch on the hub.
        chat_template: ``model`` for the tokenizer's own, or a key of :data:`sst_merge.chat_template.CHAT_TEMPLATES`.

    Raises:
        ModelError: If the model or its tokenizer cannot be found, or the tokenizer has no chat template or end token.
    """
    model_config(reference, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_location(reference), revision=revision, trust_remote_code=False)
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
    context = context_length(model_config(reference, revision))
    try:
        generation = GenerationConfig.from_pretrained(model_location(reference), revision=revision or "main")
    except OSError:  # as transformers has it when it loads the model
        generation = GenerationConfig.from_model_config(model_config(reference, revision))
    return Encoder(reference, tokenizer, _end_tokens(tokenizer, generation), context, answer_opening(tokenizer))


def _end_tokens(tokenizer: Any, generation: Any) -> frozenset[int]:
    """The tokenizer's end token and those of a generation configuration, if there is one."""
    more = getattr(generation, "eos_token_id", None) or []
    return frozenset([tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])])


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
        reference: A key of :data:`sst_merge.model_files.KNOWN_MODELS`, a local folder, or a hub id.
        revision: Commit, tag or branch on the hub.
        sizes: ``model_type`` and the arguments of its configuration class, instead of asking the hub.

    Raises:
        ModelError: If the model cannot be found, or is no causal language model.
    """
    config: Any = model_config(reference, revision) if sizes is None else AutoConfig.for_model(**sizes)
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
