"""Conversations as token ids, generation, and log-likelihoods of answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from jinja2 import TemplateError
from torch import Tensor, nn

from sst_merge.chat_template import end_texts
from sst_merge.errors import DataError, ModelError
from sst_merge.models import Base, Encoder, at_least_float32, left_padded
from sst_merge.row_shapes import Turn, Turns


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


def encode(base: Base | Encoder, prompt: str, answer: str | None = None, before: Turns = ()) -> Encoded:
    """Token ids of a conversation under the model's chat template.

    The prompt part is what generation starts from; the answer part is what the template adds for the answer, up to
    and including the end token. Text that the template writes before every answer belongs to the prompt
    (:func:`sst_merge.chat_template.answer_opening`). The template writes all special tokens itself, so the tokenizer
    adds none.

    Args:
        base: Whose tokenizer and template.
        prompt: The last user turn.
        answer: What follows it, if anything.
        before: Earlier turns.

    Raises:
        DataError: If the conversation is longer than the model's context, the template refuses it, or the answer
            contains an end token.
        ModelError: If the template writes the prompt differently when an answer follows.
    """
    asked = messages((*before, Turn("user", prompt)))
    start = _rendered(base, asked, add_generation_prompt=True) + base.opening
    start_ids = base.tokenizer(start, add_special_tokens=False)["input_ids"]
    if answer is None:
        check_length(base, prompt, len(start_ids), "tokens")
        return Encoded(tuple(start_ids), len(start_ids))
    whole = _rendered(base, [*asked, {"role": "assistant", "content": answer}])
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
    written = [token for token in end_texts(base.tokenizer, base.end_tokens) if token in answer]
    if written and not base.end_tokens.isdisjoint(base.tokenizer(answer, add_special_tokens=False)["input_ids"]):
        raise DataError(
            f"the answer to {shorten(prompt, 60)!r} contains {written[0]!r}, where {base.reference} ends an answer: "
            "what follows would be lost. Write it otherwise, or leave the row out."
        )
    end = next((index for index, token in enumerate(answer_ids) if token in base.end_tokens), len(answer_ids))
    answer_ids = answer_ids[: end + 1]
    check_length(base, prompt, len(start_ids) + len(answer_ids), "tokens with its answer")
    return Encoded(tuple(start_ids + answer_ids), len(start_ids))


def unwritten(base: Base | Encoder, order: Sequence[str]) -> str | None:
    """The role of an earlier turn that the chat template leaves out of conversations of this order of roles.

    By words that stand for the turns: what a template does to a turn's own words (thoughts are cut, switches taken out)
    says nothing of that.

    Raises:
        DataError: If the template refuses such conversations.
    """
    words = [f"turn{'abcdefghij'[number % 10] * (1 + number // 10)}word" for number in range(len(order) + 1)]
    turns = tuple(Turn(role, word) for role, word in zip([*order, "user"], words, strict=True))
    written = _rendered(base, messages(turns), add_generation_prompt=True)
    return next((turn.role for turn in turns if turn.content not in written), None)


def messages(turns: Turns) -> list[dict[str, str]]:
    """A conversation as chat templates read it."""
    return [{"role": role, "content": content} for role, content in turns]


def _rendered(base: Base | Encoder, conversation: list[dict[str, str]], **arguments: Any) -> str:
    """A conversation as the chat template writes it.

    Raises:
        DataError: If the template refuses it; some know no system turn.
    """
    try:
        return base.tokenizer.apply_chat_template(conversation, tokenize=False, **arguments)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in conversation)
        prompt = next(message["content"] for message in reversed(conversation) if message["role"] == "user")
        raise DataError(
            f"the chat template of {base.reference} refuses a conversation of {roles} ({error}), the prompt "
            f"{shorten(prompt, 60)!r}. Leave such rows out, or give them without the turns it refuses."
        ) from error


def check_length(base: Base | Encoder, prompt: str, tokens: int, what: str) -> None:
    """Refuse what is longer than the model's context: its answers would say nothing of the model.

    Raises:
        DataError: With the beginning of the prompt.
    """
    if base.context is not None and tokens > base.context:
        raise DataError(
            f"the prompt {shorten(prompt, 60)!r} takes {tokens} {what}; {base.reference} reads {base.context} "
            "(max_position_embeddings, with longrope original_max_position_embeddings). Leave the row out, or take a "
            "model of a longer context."
        )


def check_room(base: Base | Encoder, prompt: str, new_tokens: int, before: Turns = ()) -> Encoded:
    """A prompt as token ids, with room for an answer.

    Raises:
        DataError: If there is none in the model's context.
    """
    encoded = encode(base, prompt, before=before)
    check_length(base, prompt, len(encoded.ids) + new_tokens, f"tokens with the {new_tokens} that its answer may have")
    return encoded


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
    ids, mask, positions = left_padded([sample.ids for sample in samples], base.tokenizer.pad_token_id, shared=shared)
    answer_mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        answer_mask[row, ids.shape[1] - sample.answer_length :] = True
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
    found = -nn.functional.cross_entropy(at_least_float32(logits), chosen.to(logits.device), reduction="none")
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
    """``None`` where the model keeps more than keys and values, such as a state: answers are then read with their
    prompts."""
    room: int
    """How many tokens may follow."""

    @property
    def length(self) -> int:
        """Columns of the batch, the padding included."""
        return self.batch.ids.shape[1]


def _keys_and_values(cache: Any) -> list[Any] | None:
    """A cache's layers, if each keeps keys and values alone, of all columns or of a window's."""
    layers = getattr(cache, "layers", [])
    kinds = {type(layer).__name__ for layer in layers}
    is_known = type(cache).__name__ == "DynamicCache" and kinds <= {"DynamicLayer", "DynamicSlidingWindowLayer"}
    return layers if layers and is_known else None


def _window(config: Any) -> int | None:
    """A number of columns within which no layer's attention is confined, whatever the configuration calls its span.

    It may be smaller than need be, since other sizes have such names, too; ``None`` where nothing hints at one.
    """
    spans = [
        value
        for key, value in config.to_dict().items()
        if any(word in key for word in ("window", "chunk", "local_attention")) and "layers" not in key
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
    ]
    return min(spans, default=None)


def _shared_tokens(base: Base, prompts: Sequence[tuple[int, ...]], room: int) -> int:
    """Length of the common beginning, each prompt's last token left out; none where a window could be felt.

    Padding stands behind the common beginning, and a window counts padding, too, as all of some models does.
    """
    if not base.ignores_inner_padding:
        return 0
    window = _window(base.model.config.get_text_config())
    if window is not None and max(map(len, prompts)) + room > window:
        return 0
    shared = 0
    for column in zip(*prompts, strict=False):  # as far as the shortest prompt goes
        if len(set(column)) > 1:
            break
        shared += 1
    return min(shared, min(map(len, prompts)) - 1)


@torch.no_grad()
def read_prompts(base: Base, prompts: Sequence[Encoded], *, room: int) -> ReadPrompts:
    """One forward pass over a batch of prompts; what the chat template puts before each of them is read once.

    Args:
        base: The loaded model.
        prompts: Without answers.
        room: The most tokens that will be generated or measured after them.
    """
    cache: Any = None
    shared = _shared_tokens(base, [prompt.ids for prompt in prompts], room)
    if shared:
        ids = torch.tensor([prompts[0].ids[:shared]], device=base.device)
        cache = getattr(base.model(input_ids=ids, logits_to_keep=1, use_cache=True), "past_key_values", None)
        if _keys_and_values(cache) is None:
            shared, cache = 0, None
        else:
            cache.batch_repeat_interleave(len(prompts))
    batch = collate(base, prompts, shared=shared)
    read = base.model(
        input_ids=batch.ids[:, shared:],
        attention_mask=batch.mask,
        position_ids=batch.positions[:, shared:],
        past_key_values=cache,
        logits_to_keep=1,
        use_cache=True,
    )
    cache = getattr(read, "past_key_values", None)
    return ReadPrompts(batch, at_least_float32(read.logits), cache if _keys_and_values(cache) else None, room)


def _check_room_left(read: ReadPrompts, tokens: int) -> None:
    if tokens > read.room:
        raise ValueError(f"prompts were read with room for {read.room} tokens, and {tokens} follow")


@torch.no_grad()
def generate(base: Base, read: ReadPrompts, *, max_new_tokens: int) -> list[Completion]:
    """Greedy answers to one batch of prompts; the cache is left as it was.

    Where it cannot be brought back to what it was, since a window has moved on or there is a state, the prompts are
    read once more.

    Raises:
        ValueError: If there was no room for so many tokens when the prompts were read.
    """
    _check_room_left(read, max_new_tokens)
    layers = _keys_and_values(read.cache) or []
    longest = read.length + max_new_tokens
    is_kept = bool(layers) and all(longest < getattr(layer, "sliding_window", longest + 1) for layer in layers)
    if is_kept:
        read.cache.crop(-1)  # the last column, which transformers reads again
    output = base.model.generate(
        input_ids=read.batch.ids,
        attention_mask=read.batch.mask,
        past_key_values=read.cache if is_kept else None,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )[:, read.length :]
    if is_kept and (written := read.cache.get_seq_length() - read.length):
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
    _check_room_left(read, max(map(len, continuations)))
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
    inputs, targets = padded[:, :-1], padded[:, 1:]  # what a last token predicts, nobody asks
    mask = torch.cat([read.batch.mask.repeat_interleave(count, dim=0), torch.ones_like(inputs)], dim=1)
    start = read.batch.mask.sum(dim=1).repeat_interleave(count)[:, None]
    places = torch.arange(width - 1, device=device)
    positions = start + places
    if read.cache is None:  # once more from the beginning
        inputs = torch.cat([read.batch.ids.repeat_interleave(count, dim=0), inputs], dim=1)
        positions = torch.cat([read.batch.positions.repeat_interleave(count, dim=0), positions], dim=1)
    elif count > 1:
        read.cache.batch_repeat_interleave(count)
    logits = base.model(
        input_ids=inputs,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=read.cache,
        logits_to_keep=width - 1,
        use_cache=read.cache is not None,
    ).logits
    is_wanted = places + 1 < lengths[:, None]
    found = at_least_float32(logits).log_softmax(dim=2).gather(2, targets[..., None])[..., 0]
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
