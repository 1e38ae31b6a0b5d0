"""Conversations are the same text on every day, and an answer begins with its own words."""

import json
from pathlib import Path
from typing import Any

import pytest

from sst_merge.chat_template import CHAT_TEMPLATES, DATE, answer_opening, prepare_tokenizer, template_notes
from sst_merge.data import Row
from sst_merge.errors import DataError, ModelError
from sst_merge.inference import encode, unwritten
from sst_merge.models import Base, load_base, load_encoder, prepare_base
from sst_merge.row_shapes import Turn
from sst_merge.stages.rows import check_texts
from tiny import CHAT_TEMPLATE, tiny_base, tiny_model, tiny_tokenizer, write_base, write_peft_adapter

TURN = "<|im_start|>{{ message['role'] }}\n"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n"
ANSWER = "{% if message['role'] == 'assistant' %}"
# A model that may think: an answer without a thought has an empty one, and so has the prompt if it is asked not to.
THINKING = (
    "{% for message in messages %}" + TURN + ANSWER + "<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    + START
    + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# A model that always thinks: the prompt opens the thought.
ALWAYS = (
    "{% for message in messages %}" + TURN + ANSWER + "<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}" + START + "<think>\n{% endif %}"
)
# A model that is told nothing of thought in the prompt, and yet has an empty one before every answer.
UNASKED = ALWAYS.replace("assistant\n<think>\n{% endif %}", "assistant\n{% endif %}")
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHAT_TEMPLATE


def base_with(template: Any) -> Base:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return prepare_base("tiny", tiny_model(), tokenizer)


def text(base: Base, ids: tuple[int, ...]) -> str:
    return base.tokenizer.decode(list(ids))


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (CHAT_TEMPLATE, ""),
        (CHAT_TEMPLATES["plain"], ""),  # a space before the answer is the answer's
        (THINKING, ""),  # the prompt has it
        (ALWAYS, "\n</think>\n\n"),
        (UNASKED, "<think>\n\n</think>\n\n"),
        ("{% if messages | length > 1 %}long {% endif %}{{ messages[0]['content'] }}", ""),
    ],
)
def test_what_stands_before_every_answer_is_found(template: str, opening: str) -> None:
    base = base_with(template)
    assert base.opening == answer_opening(base.tokenizer) == opening


@pytest.mark.parametrize("template", [THINKING, ALWAYS, UNASKED])
def test_an_answer_begins_with_its_own_words(template: str) -> None:
    base = base_with(template)
    whole = encode(base, "hi", "Hello")
    assert text(base, whole.ids[whole.answer_start :]) == "Hello<|im_end|>"
    assert text(base, whole.ids[: whole.answer_start]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert encode(base, "hi").ids == whole.ids[: whole.answer_start]  # generation starts from the same tokens
    assert text(base, whole.shortened(1).ids).endswith("</think>\n\nH")


def test_a_conversation_is_the_same_tokens_on_every_day() -> None:
    base = base_with(DATED)
    assert text(base, encode(base, "hi").ids).startswith("Today is 26 Jul 2024.\n<s>")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = DATED
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert not plain.startswith("Today is 26 Jul 2024.")  # without us it is the clock's


def test_the_clock_that_stands_writes_what_strftime_does() -> None:
    form = "%A %a %d.%m.%Y %y, %B %b %j, %H:%M:%S %I %p | %-d %e %F %T %c %D %-m"
    base = base_with("{{ strftime_now('" + form + "') }}|" + CHAT_TEMPLATE)
    assert text(base, encode(base, "hi").ids).split("|<s>")[0] == DATE.strftime(form)
    named = base_with("{{ strftime_now(format='%Y') }}" + CHAT_TEMPLATE)
    assert text(named, encode(named, "hi").ids).startswith("2024<s>")


def test_of_several_templates_the_default_one_is_taken() -> None:
    base = base_with({"default": DATED, "tool_use": "tools"})
    assert text(base, encode(base, "hi").ids).startswith("Today is 26 Jul 2024.")
    assert len(told(base)) == 1
    with pytest.raises(ModelError, match="'tiny' has no chat template"):
        base_with({"tool_use": "tools"})


def test_preparing_a_tokenizer_again_changes_nothing_and_arguments_can_still_be_given() -> None:
    base = tiny_base()
    prepare_tokenizer("tiny", base.tokenizer, "model")
    user: Any = [{"role": "user", "content": "hi"}]
    assert base.tokenizer.apply_chat_template(user, tokenize=False) == "<s><|im_start|>user\nhi<|im_end|>\n"
    thinking = base_with(THINKING).tokenizer
    asked = thinking.apply_chat_template(user, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert asked.endswith("assistant\n")


NO_END = CHAT_TEMPLATE.replace("<|im_end|>\n", "{% if not loop.last %}<|im_end|>{% endif %}\n")


def told(base: Base) -> tuple[str, ...]:
    return template_notes(base.tokenizer, base.end_tokens)


def test_a_template_without_an_end_is_noted_and_an_end_inside_an_answer_refused() -> None:
    (note,) = told(base_with(NO_END))
    assert note.startswith("the chat template ends an answer without an end token (<|im_end|>): that an answer ends")
    base = base_with(CHAT_TEMPLATE)
    with pytest.raises(DataError, match=r"the answer to 'hi' contains '<\|im_end\|>', where tiny ends an answer"):
        encode(base, "hi", "no<|im_end|>yes")
    assert text(base, encode(base, "hi", "no<|im_end>yes").ids).endswith("assistant\nno<|im_end>yes<|im_end|>")


def test_the_plan_says_how_the_template_is_used() -> None:
    assert told(base_with(CHAT_TEMPLATE)) == ()
    assert told(base_with(THINKING)) == (
        "the chat template can ask for thought before an answer; it is used with enable_thinking: false",
    )
    assert told(base_with(DATED)) == (
        "the chat template writes the date; it is 26 July 2024 in every run, so that runs can be repeated",
    )
    (note,) = told(base_with(UNASKED))
    assert note.startswith(
        r"the chat template writes '<think>\n\n</think>\n\n' before every answer: prompts end with it"
    )


def test_lm_eval_asks_in_the_same_way() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    base = base_with("Today is {{ strftime_now('%Y') }}.\n" + THINKING)
    model: Any = HFLM(pretrained=base.model, tokenizer=base.tokenizer, backend="causal", batch_size=1)  # type: ignore[arg-type]
    assert model.apply_chat_template([{"role": "user", "content": "hi"}]) == text(base, encode(base, "hi").ids)


def test_the_plain_template_writes_a_system_turn_before_the_conversation() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATES["plain"]
    said = [("system", "Be brief."), ("user", "hi"), ("assistant", "ho"), ("user", "How?"), ("assistant", "So.")]
    written = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in said], tokenize=False)
    end = tokenizer.eos_token
    talk = f"User: hi\n\nAssistant: ho{end}\n\nUser: How?\n\nAssistant: So.{end}\n\n"
    assert written == f"{tokenizer.bos_token}Be brief.\n\n{talk}"


LED = ("system", "user", "assistant")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ message['content'] }}", None),
        ("{{ message['content'].split('</think>')[-1].replace('/no_think', '').strip() }}", None),  # as Qwen3, SmolLM3
        ("{% if message['role'] != 'system' %}{{ message['content'] }}{% endif %}", "system"),
        ("{% if loop.last %}{{ message['content'] }}{% endif %}", "system"),
        ("{% if message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}", "assistant"),
    ],
)
def test_a_turn_that_is_not_written_is_known_by_its_role(written: str, expected: str | None) -> None:
    base = base_with(CHAT_TEMPLATE.replace("{{ message['content'] }}", written))
    assert unwritten(base, LED) == expected
    assert unwritten(base, ()) is None
    before = (Turn("system", "/no_think"), Turn("user", "hi"), Turn("assistant", "<think>Hm.</think>Ho."))
    rows = [Row("a", "How?", "So.", before=before), Row("b", "What?", "So.")]
    if expected is None:
        check_texts(base, rows, "data", reads_answers=False)
    else:
        with pytest.raises(DataError, match=f"data: the chat template of tiny does not write the {expected} turn of a"):
            check_texts(base, rows[::-1], "data", reads_answers=False)


def test_end_tokens_are_those_of_the_loaded_model_before_it_is_loaded(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [4, 2, 5000]}), encoding="utf-8")
    for file, expected in (("", {2, 4, 5000}), ("generation_config.json", {3, 4})):
        (folder / "generation_config.json").unlink(missing_ok=True)
        if file:
            (folder / file).write_text(json.dumps({"eos_token_id": [3]}), encoding="utf-8")
        encoder = load_encoder(str(folder))
        assert encoder.end_tokens == load_base(str(folder), device="cpu").end_tokens == expected
        assert template_notes(encoder.tokenizer, encoder.end_tokens) == ()
        assert encode(encoder, "hi", "ho").answer_length > 1


def test_a_base_that_is_an_adapter_or_has_no_tokenizer_is_called_so(tmp_path: Path) -> None:
    write_peft_adapter(tmp_path / "adapter", tiny_base("llama"))
    with pytest.raises(ModelError, match=r"'.*adapter' is an adapter\. Give the base that its adapter_config"):
        load_encoder(str(tmp_path / "adapter"))
    folder = write_base(tmp_path / "base", "llama")
    for file in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        file.unlink()
    with pytest.raises(ModelError, match=r"the folder '.*base' holds no tokenizer\. Copy it there\."):
        load_encoder(str(folder))
