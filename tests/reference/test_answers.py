"""Batched generation and likelihoods from a cache against one text at a time, read whole, without cache or padding."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from families import OTHERS, other_base
from sst_merge.inference import Encoded, continuation_log_likelihoods, encode, generate, read_prompts
from sst_merge.models import Base, ignores_inner_padding
from tiny import tiny_base

# Beside each other: far more than a window of 16 or 64 tokens, and far less.
PROMPTS = ("Name a colour.", "Tell me about the river in one line, and " + "then go on to the next one, " * 7, "hi")
ANSWERS = ("Red", "It runs on to the sea and does not come back.")
ROOM = 64
WINDOWED = ["mistral", "gemma2", "gemma3_text", "gpt_oss", "gpt_neo", "llama4_text", "cohere2"]
STATEFUL = ["mamba", "mamba2", "bamba", "lfm2", "falcon_h1", "minimax"]


def model(kind: str) -> Base:
    base = tiny_base("mistral", sliding_window=64) if kind == "mistral" else other_base(kind)
    base.ignores_inner_padding = ignores_inner_padding(base)
    return base


@torch.no_grad()
def logits(base: Base, ids: Sequence[int]) -> Tensor:
    return base.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double()


def greedy(base: Base, prompt: Encoded, count: int) -> list[int]:
    written: list[int] = []
    while len(written) < count and (not written or written[-1] not in base.end_tokens):
        written.append(int(logits(base, [*prompt.ids, *written])[-1].argmax()))
    return written


@pytest.mark.parametrize("kind", ["llama", "gpt2", "openai-gpt", *WINDOWED, *STATEFUL])
def test_batched_answers_are_those_of_one_text_at_a_time(kind: str) -> None:
    base = tiny_base() if kind == "llama" else model(kind)
    prompts = [encode(base, prompt) for prompt in PROMPTS]
    assert len(prompts[1].ids) > 150
    read = read_prompts(base, prompts, room=ROOM)
    for place, prompt in enumerate(prompts):
        torch.testing.assert_close(
            read.first_logits[place, 0].double(), logits(base, prompt.ids)[-1], rtol=0, atol=2e-3
        )
    for _ in range(2):  # the cache is left as it was
        for prompt, completion in zip(prompts, generate(base, read, max_new_tokens=12), strict=True):
            written = greedy(base, prompt, 12)
            assert completion.tokens == len(written)
            ended = [token for token in written if token not in base.end_tokens]
            assert completion.text == base.tokenizer.decode(ended, skip_special_tokens=True)
    samples = [encode(base, prompt, answer) for prompt in PROMPTS for answer in ANSWERS]
    found, _ = continuation_log_likelihoods(base, read, [sample.ids[sample.answer_start :] for sample in samples])
    for sample, value in zip(samples, found.tolist(), strict=True):
        whole = logits(base, sample.ids).log_softmax(dim=1)
        places = range(sample.answer_start, len(sample.ids))
        assert value == pytest.approx(sum(float(whole[place - 1, sample.ids[place]]) for place in places), abs=2e-2)


def test_an_answer_may_grow_beyond_a_window_that_its_prompt_does_not_reach() -> None:
    base = tiny_base("mistral", sliding_window=120, max_position_embeddings=1024)
    base.end_tokens = frozenset()
    base.model.generation_config.eos_token_id = None
    prompts = [encode(base, prompt) for prompt in ("Name a colour.", "hi", "Tell me about the river in one line.")]
    together = generate(base, read_prompts(base, prompts, room=160), max_new_tokens=160)
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = generate(base, read_prompts(base, [prompt], room=160), max_new_tokens=160)
        assert completion == alone
        assert completion.tokens == 160
    read = read_prompts(base, prompts, room=8)
    with pytest.raises(ValueError, match="prompts were read with room for 8 tokens, and 9 follow"):
        generate(base, read, max_new_tokens=9)


def test_every_kind_is_one_that_is_built_here() -> None:
    assert {"gpt2", "openai-gpt", *WINDOWED, *STATEFUL} - {"mistral"} <= OTHERS.keys()
