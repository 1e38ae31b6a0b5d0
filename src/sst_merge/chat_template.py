"""Chat templates: how a conversation becomes text, the same on every day and in every part of the program."""

from collections.abc import Collection
from datetime import datetime
from functools import partial
from itertools import takewhile
from typing import Any

from sst_merge.errors import ModelError

# For base models without a chat template of their own. The BOS is written here because encode() lets the tokenizer add
# none; a system turn stands before the conversation as it is.
CHAT_TEMPLATES: dict[str, str] = {
    "plain": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
        "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}\n\n"
        "{% else %}User: {{ message['content'] }}\n\nAssistant:{% endif %}"
        "{% endfor %}"
    ),
}

DATE = datetime(2024, 7, 26)  # noqa: DTZ001
"""Today, for templates that write the date; the day on which Llama's templates fall back where there is no clock."""
CLOCK = "strftime_now"
"""What templates call for the date."""
DIRECTIVES = tuple("aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZ") + tuple(f"-{letter}" for letter in "dmHIMSjyekl")
"""Of ``strftime``."""


def _with_clock(template: str, now: datetime) -> str:
    """A template with a clock that stands: a macro in the place of the function that transformers gives it."""
    values = "".join(f" | replace('%{name}', '{now.strftime('%' + name)}')" for name in DIRECTIVES)
    return f"{{%- macro {CLOCK}(format) -%}}{{{{ format{values} }}}}{{%- endmacro -%}}" + template


def prepare_tokenizer(reference: str, tokenizer: Any, chat_template: str) -> None:
    """Set the chat template, what pads a batch, and how every chat is written: without thought, on one day.

    Raises:
        ModelError: If there is no chat template or no end token.
    """
    if chat_template != "model":
        tokenizer.chat_template = CHAT_TEMPLATES[chat_template]
    if isinstance(tokenizer.chat_template, dict):  # several by name: the one that transformers takes, too
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        raise ModelError(
            f"base_model: {reference!r} has no chat template, so prompts cannot be put to it as a chat. "
            "Set chat_template: plain to use a neutral one."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"base_model: the tokenizer of {reference!r} has no end-of-sequence token.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    given = tokenizer.chat_template
    if CLOCK in given and not given.startswith(_with_clock("", DATE)):
        tokenizer.chat_template = _with_clock(given, DATE)
    # For TRL and lm-eval, too. An answer begins with its own words, so that its first tokens are told by them.
    tokenizer.apply_chat_template = partial(type(tokenizer).apply_chat_template, tokenizer, enable_thinking=False)


def answer_opening(tokenizer: Any) -> str:
    """What a chat template writes between the prompt that generation starts from and an answer's own words.

    Such as the end of an empty thought. White space alone is the answer's: tokens join it to the first word. Empty,
    too, where the template writes a prompt differently when an answer follows, which
    :func:`sst_merge.inference.encode` refuses.
    """
    user = [{"role": "user", "content": "x"}]
    start = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    one, other = (
        tokenizer.apply_chat_template([*user, {"role": "assistant", "content": word}], tokenize=False)
        for word in ("Yes", "No")
    )
    shared = "".join(here for here, there in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    opening = shared.removeprefix(start) if shared.startswith(start) else ""
    return opening if opening.strip() else ""


def end_texts(tokenizer: Any, end_tokens: Collection[int]) -> list[str]:
    """How end tokens are written, those left out that the tokenizer does not have."""
    return [text for text in tokenizer.convert_ids_to_tokens(sorted(end_tokens)) if text is not None]


def template_notes(tokenizer: Any, end_tokens: Collection[int]) -> tuple[str, ...]:
    """What a user should hear of how the chat template is used; ``end_tokens`` are those that end generation."""
    notes: list[str] = []
    user = [{"role": "user", "content": "x"}]

    def rendered(**arguments: Any) -> str:
        return tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True, **arguments)

    if rendered() != rendered(enable_thinking=True):
        notes.append("the chat template can ask for thought before an answer; it is used with enable_thinking: false")
    if (template := tokenizer.chat_template).startswith(clock := _with_clock("", DATE)) and rendered() != rendered(
        chat_template=_with_clock(template.removeprefix(clock), datetime(1999, 12, 31, 13))  # noqa: DTZ001
    ):
        notes.append(
            f"the chat template writes the date; it is {DATE:%d %B %Y} in every run, so that runs can be repeated"
        )
    if opening := answer_opening(tokenizer):
        notes.append(
            f"the chat template writes {opening!r} before every answer: prompts end with it, and answers are "
            "generated and measured after it (not in lm_eval tasks, which make their prompts themselves)"
        )
    whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "Yes"}], tokenize=False)
    if not set(tokenizer(whole.rpartition("Yes")[2], add_special_tokens=False)["input_ids"]) & set(end_tokens):
        notes.append(
            "the chat template ends an answer without an end token "
            f"({', '.join(end_texts(tokenizer, end_tokens))}): that an answer ends is neither "
            "calibrated nor learnt nor scored"
        )
    return tuple(notes)
