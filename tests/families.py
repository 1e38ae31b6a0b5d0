"""Base models of the three families on disk: the true configuration classes, small, with their tokenizers' quirks.

* ``mistral``: sliding window; BOS added by the tokenizer, no pad token and no chat template.
* ``llama``: Llama 3.1's rope scaling; BOS added by the tokenizer *and* by the template, no pad token.
* ``qwen2``: bias on Q, K and V; byte-level vocabulary, no BOS, a pad token that is not the end token.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

from sst_merge.experiments.presets import PRESETS
from tiny import CHAT_TEMPLATE, Family, tiny_tokenizer

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
