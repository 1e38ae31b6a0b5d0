"""Base models of the three families on disk: the true configuration classes, small, with their tokenizers' quirks.

* ``mistral``: sliding window; BOS added by the tokenizer, no pad token and no chat template.
* ``llama``: Llama 3.1's rope scaling; BOS added by the tokenizer *and* by the template, no pad token.
* ``qwen2``: bias on Q, K and V; byte-level vocabulary, no BOS, a pad token that is not the end token.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

from sst_merge.experiments.presets import PRESETS
from sst_merge.models import Base, prepare_base
from tiny import CHAT_TEMPLATE, Family, tiny_tokenizer, write_peft_adapter

PRESET_OF: dict[Family, str] = {"mistral": "mistral-7b", "llama": "llama-3.1-8b", "qwen2": "qwen-2.5-14b"}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def small_sizes(family: Family) -> dict[str, Any]:
    """The preset's configuration with small sizes; rope, window, bias and embeddings stay as they are."""
    architecture = PRESETS[PRESET_OF[family]].architecture
    assert architecture is not None
    return {**architecture, **SMALL}


def family_tokenizer(family: Family) -> Any:
    """A tokenizer with the family's quirks."""
    if family != "qwen2":
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = None
        if family == "mistral":
            tokenizer.chat_template = None
        return tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(vocab={token: index for index, token in enumerate(alphabet)}, merges=[], unk_token=None)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    return tokenizer


def write_family(folder: Path, family: Family, seed: int = 0) -> Path:
    """Model and tokenizer of a family as a folder that ``load_base`` reads."""
    tokenizer = family_tokenizer(family)
    sizes = {**small_sizes(family), "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):  # a fresh model's are zero, which would hide a mistake
                    parameter.normal_(std=0.2)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# What some other models need; the names of sizes differ, so each has its own.
_LLAMA_LIKE = {**SMALL, "head_dim": 8, "max_position_embeddings": 512}
_GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
_DEEP = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.2}
OTHERS: dict[str, dict[str, Any]] = {
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": 512, "initializer_range": 0.2},
    "falcon": {**_DEEP, "num_attention_heads": 4, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt2": _GPT_LIKE,
    "openai-gpt": _GPT_LIKE,
    "gptj": {**_GPT_LIKE, "rotary_dim": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 32,
        "init_std": 0.2,
    },
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, "expansion_ratio": 2},
    "phi": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "gemma2": {**_LLAMA_LIKE, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_LLAMA_LIKE, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3": {
        "text_config": {**_LLAMA_LIKE, "query_pre_attn_scalar": 8},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    "gpt_neo": {
        **_DEEP,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 64,
        "max_position_embeddings": 512,
    },
    "llama4_text": {
        **_LLAMA_LIKE,
        "attention_chunk_size": 64,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "moe_layers": [],
    },
    "cohere2": {**_LLAMA_LIKE, "sliding_window": 64},
    "falcon_h1": {
        **_LLAMA_LIKE,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "minimax": {**_LLAMA_LIKE, "num_local_experts": 2, "num_experts_per_tok": 1},
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "phimoe": {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_LLAMA_LIKE,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "mamba": {**_DEEP, "state_size": 4},
    "mamba2": {**_DEEP, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "bamba": {
        **_LLAMA_LIKE,
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "mamba_chunk_size": 8,
    },
    "lfm2": {**_LLAMA_LIKE, "layer_types": ["conv", "full_attention"]},
    "rwkv": {**_DEEP, "attention_hidden_size": 32, "intermediate_size": 48, "context_length": 512},
    "recurrent_gemma": {
        **_LLAMA_LIKE,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "attention"],
    },
}
"""Sizes of small models of other kinds, by ``model_type``."""


def other_base(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Base:
    """A tiny random model of another kind, ready for use."""
    tokenizer = tiny_tokenizer()
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = dict(OTHERS[kind])
    if "text_config" in sizes:
        sizes["text_config"] = {**sizes["text_config"], **own}
    else:
        sizes |= own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.2)
    return prepare_base(f"tiny-{kind}", model.to(dtype), tokenizer)


def write_other(folder: Path, kind: str) -> Base:
    """The same in float32 as ``folder / "base"``, which ``load_base`` reads."""
    base = other_base(kind)
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    return base


def write_other_inputs(folder: Path, kind: str, inputs: Path, **lora: Any) -> Base:
    """What :func:`tiny_run.write_inputs` writes, for a model of another kind.

    Args:
        folder: Where to.
        kind: A key of :data:`OTHERS`.
        inputs: Those whose data are taken.
        lora: Arguments of PEFT's ``LoraConfig``.
    """
    shutil.copytree(inputs, folder, ignore=shutil.ignore_patterns("base", "utility", "safety"))
    base = write_other(folder, kind)
    for seed, name in enumerate(("utility", "safety"), start=1):
        write_peft_adapter(folder / name, base, seed=seed, rank=3, base_name=str(folder / "base"), **lora)
    return base
