"""Tiny random models, a real tokenizer built offline and adapters for them. Milliseconds each, no network.

``tiny_base("llama")`` is a :class:`sst_merge.models.Base`; ``write_base`` writes the same model as a folder that
``load_base`` reads; ``write_peft_adapter`` writes an adapter folder with PEFT itself.
"""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sst_merge.adapter import Update, Updates
from sst_merge.inference import Encoded, encode
from sst_merge.models import Base, module_shape, prepare_base
from sst_merge.statistics import STATISTICS, KroneckerFactors, Request, SampleGradients, Statistics
from sst_merge.statistics.kronecker_factors import panels
from sst_merge.statistics.sample_gradients import patch_bases
from sst_merge.statistics.stored import BASIS_FILE, PatchBasis, save_tensors
from sst_merge.weights import applied

Family = Literal["llama", "mistral", "qwen2"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2")
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}

BOS, EOS, START, PAD, UNKNOWN = "<s>", "<|im_end|>", "<|im_start|>", "<pad>", "<unk>"
_SPECIAL = (PAD, UNKNOWN, BOS, START, EOS)
_MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("o", "n"), (" ", "the"), ("a", "n"), ("r", "e"))
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding over printable ASCII (109 tokens) that decodes to what was encoded.

    Like Llama's it puts a BOS before every text unless told not to, and its chat template writes one, too.
    """
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    tokens = [*_SPECIAL, *characters, *("".join(pair) for pair in _MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(_MERGES), unk_token=UNKNOWN))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(family: Family = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Two layers of width 32, grouped-query attention with 4 heads on 2, drawn in float32 whatever the dtype.

    Weights are ten times larger than a fresh model's, so that attention and logits are far from uniform.
    """
    config_class, model_class = _CLASSES[family]
    tokenizer = tiny_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**{**settings, **config}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):  # Qwen2's start at zero, which would hide a mistake
                    parameter.normal_(std=0.2)
    return model.to(dtype)


def tiny_base(family: Family = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Base:
    """A tiny random base model, ready for use."""
    return prepare_base(f"tiny-{family}", tiny_model(family, seed, dtype, **config), tiny_tokenizer())


def write_base(folder: Path, family: Literal["llama", "mistral"] = "llama", seed: int = 0) -> Path:
    """The same model in float32 as a folder with safetensors, configuration and tokenizer.

    Not for Qwen2: transformers rebuilds its tokenizer from the vocabulary as byte-level, whatever the folder says.
    """
    tiny_model(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_update(shape: tuple[int, int], rank: int, seed: int, scale: float = 0.1) -> Update:
    """A random update whose entries have standard deviation ``scale``."""
    rng = torch.Generator().manual_seed(seed)
    b = torch.randn(shape[0], rank, generator=rng) * scale / rank**0.5
    return Update(b, torch.randn(rank, shape[1], generator=rng))


def random_adapter(base: Base, rank: int = 4, seed: int = 0, scale: float = 0.1) -> Updates:
    """A random update of every linear module; ``scale`` is the entries' standard deviation (the weights' is 0.2)."""
    return {
        name: random_update(module_shape(module), rank, 1000 * seed + number, scale)
        for number, (name, module) in enumerate(sorted(base.modules.items()))
    }


def zero_adapter(base: Base, rank: int = 4) -> Updates:
    """An adapter as PEFT initialises it: ``b`` is zero, ``a`` is not."""
    return {
        name: Update(torch.zeros_like(update.b), update.a) for name, update in random_adapter(base, rank, 99).items()
    }


def in_another_gauge(updates: Updates, seed: int = 0) -> Updates:
    """The same updates with other factors, ``(b X, X^-1 a)``, computed in float64."""
    rng = torch.Generator().manual_seed(seed)
    changed = {}
    for name, update in updates.items():
        x = torch.randn(update.rank, update.rank, generator=rng, dtype=torch.float64)
        x += 2 * torch.eye(update.rank, dtype=torch.float64)
        changed[name] = Update((update.b.double() @ x).float(), torch.linalg.solve(x, update.a.double()).float())
    return changed


def write_peft_adapter(
    folder: Path,
    base: Base,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    scale: float = 0.1,
    base_name: str | None = None,
    **lora: Any,
) -> Path:
    """Write an adapter folder with PEFT's ``get_peft_model`` and ``save_pretrained``; every factor is random.

    Args:
        folder: Where to.
        base: Its model is copied, not changed.
        rank: LoRA r.
        alpha: LoRA alpha.
        seed: Of the factors.
        scale: Standard deviation of the entries of ``lora_B``.
        base_name: What adapter_config.json names as base; the reference of ``base`` when left out.
        lora: Further arguments of ``LoraConfig``: ``use_rslora``, ``rank_pattern``, ``alpha_pattern`` ...
    """
    peft_model(base, rank=rank, alpha=alpha, seed=seed, scale=scale, base_name=base_name, **lora).save_pretrained(
        str(folder), save_embedding_layers=False
    )
    return folder


def peft_model(
    base: Base,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 0,
    scale: float = 0.1,
    base_name: str | None = None,
    **lora: Any,
) -> Any:
    """A PEFT model around a copy of the base, with random factors in the base's precision."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(base.model)
    model.name_or_path = model.config._name_or_path = base.reference if base_name is None else base_name
    settings = {"target_modules": "all-linear", **lora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice is not what is tested here
        wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, task_type="CAUSAL_LM", **settings))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name:
                spread = scale if "lora_B" in name else 1.0
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * spread)
    return wrapped.eval()


def load_with_peft(base: Base, folder: Path) -> Any:
    """A copy of the base with an adapter folder loaded by plain PEFT."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT reads an attribute that transformers has deprecated
        return PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder)).eval()


CONVERSATIONS: tuple[tuple[str, str], ...] = (
    ("How do I bake bread?", "Mix flour and water, then wait."),
    ("Name a colour.", "Red"),
    ("What is the capital of the north?", "There is none in the list."),
    ("hi", "Hello there, how can I help?"),
    ("Tell me about the river in one line.", "It runs."),
    ("2 + 2 = ?", "4"),
    ("Write the shortest answer that you can think of.", "No."),
    ("Is the moon far?", "Rather far on foot."),
)
"""Prompts and answers of different lengths."""


def encoded_conversations(base: Base, conversations: Sequence[tuple[str, str]] = CONVERSATIONS) -> list[Encoded]:
    """The conversations with their answers as token ids."""
    return [encode(base, prompt, answer) for prompt, answer in conversations]


def gradients_from_rows(
    folder: Path,
    safety: Updates,
    rows: Mapping[str, Tensor],
    *,
    safety_samples: int,
    weights: Sequence[float] | None = None,
    utility: Updates | None = None,
) -> SampleGradients:
    """Statistics with given per-sample gradients, ``rows[name]`` of shape ``(samples, p)`` in the patch's coordinates.

    They go through the files that a calibration writes: two batches, the second holding the first samples. With the
    utility adapter the coordinates span both.
    """
    bases = patch_bases(safety, utility)
    samples = len(weights) if weights else len(next(iter(rows.values())))
    half = samples // 2
    batches = (tuple(range(half, samples)), tuple(range(half)))
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / BASIS_FILE, {name: basis.q for name, basis in bases.items()})
    for number, positions in enumerate(batches):
        part = {name: values[list(positions)].float() for name, values in rows.items()}
        save_tensors(folder / f"batch-{number:04d}.safetensors", part)
    return SampleGradients(
        folder,
        safety_samples,
        tuple(weights or [1.0] * samples),
        {name: basis.side for name, basis in bases.items()},
        batches,
    )


def coordinate_shape(update: Update, basis: PatchBasis) -> tuple[int, int]:
    """Shape of ``C``: ``(d_out, rank)`` on the output side, ``(rank, d_in)`` on the input side."""
    rank = len(basis.q)
    return (update.shape[0], rank) if basis.side == "output" else (rank, update.shape[1])


def random_gradients(
    folder: Path, safety: Updates, *, samples: int = 12, seed: int = 0, utility: Updates | None = None
) -> SampleGradients:
    """Statistics with random gradients, half of the samples safety samples; modules differ in scale."""
    rng = torch.Generator().manual_seed(seed)
    bases = patch_bases(safety, utility)
    rows = {}
    for number, (name, update) in enumerate(sorted(safety.items())):
        size = math.prod(coordinate_shape(update, bases[name]))
        if size:
            rows[name] = torch.randn(samples, size, generator=rng) * (1 + number % 3)
    return gradients_from_rows(
        folder, safety, rows, safety_samples=samples // 2, weights=[1.0] * samples, utility=utility
    )


def random_factors(
    folder: Path, safety: Updates, *, tokens: int = 40, seed: int = 0, utility: Updates | None = None
) -> KroneckerFactors:
    """Kronecker factors of random tokens of two samples in each data set; modules differ in scale."""
    rng = torch.Generator().manual_seed(seed)
    bases = patch_bases(safety, utility)
    sums = {"batches": torch.ones(1, dtype=torch.int64)}
    for number, (name, update) in enumerate(sorted(safety.items())):
        for data in ("safety", "utility"):
            for factor, size in zip(("left", "right"), coordinate_shape(update, bases[name]), strict=True):
                drawn = torch.randn(tokens, size, generator=rng) * torch.rand(size, generator=rng) * (1 + number % 3)
                drawn = drawn.double()
                for panel, (start, end) in enumerate(panels(size)):
                    sums[f"{name}/{data}/{factor}/{panel}"] = drawn[:, start:end].T @ drawn[:, start:]
            sums[f"{name}/{data}/tokens"] = torch.tensor([float(tokens)])
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / BASIS_FILE, {name: basis.q for name, basis in bases.items()})
    save_tensors(folder / "sums.safetensors", sums)
    return KroneckerFactors(folder, 2, (1.0,) * 4, {name: basis.side for name, basis in bases.items()})


def random_statistics(folder: Path, utility: Updates, safety: Updates) -> Statistics:
    """Every statistic in all coordinates that a method may ask for."""
    found: dict[Request, SampleGradients | KroneckerFactors] = {}
    for span, both in (("safety", None), ("joint", utility)):
        gradients = random_gradients(folder / f"gradients-{span}", safety, utility=both)
        factors = random_factors(folder / f"factors-{span}", safety, utility=both)
        for form in ("add", "interpolate"):
            found[Request("sample_gradients", span, form)] = gradients
            found[Request("kronecker_factors", span, form)] = factors
    return Statistics(found)


def measured_statistics(
    base: Base, folder: Path, requests: Sequence[Request], utility: Updates, safety: Updates, **arguments: Any
) -> Statistics:
    """What a calibration on the conversations at base + utility measures, half of them safety samples."""
    samples = encoded_conversations(base)
    settings = {"safety_samples": 4, "weights": [1.0] * len(samples), "batch_size": len(samples), **arguments}
    found: dict[Request, SampleGradients | KroneckerFactors] = {}
    for request in requests:
        bases = patch_bases(safety, utility if request.span == "joint" else None)
        with applied(base, utility, "utility"):
            found[request] = STATISTICS[request.statistic].measure(base, bases, samples, folder, **settings)
    return Statistics(found)
