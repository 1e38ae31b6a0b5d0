"""What every merge method promises; a method that breaks a promise declares so in its class."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError

from sst_merge.adapter import Updates
from sst_merge.adapter_config import read_config
from sst_merge.adapter_io import read_adapter, write_adapter
from sst_merge.errors import StatisticsError
from sst_merge.methods import METHODS, MergeMethod, ModuleInputs, Sst, module_generator
from sst_merge.methods.sst import Keep
from sst_merge.models import Base
from sst_merge.statistics import STATISTICS, Statistics
from sst_merge.weights import applied
from tiny import (
    encoded_conversations,
    in_another_gauge,
    load_with_peft,
    measured_statistics,
    peft_model,
    random_adapter,
    random_statistics,
    tiny_base,
    write_peft_adapter,
    zero_adapter,
)

# Every method with its defaults, and the method with several ways through it in each of them.
CASES: dict[str, MergeMethod] = {name: kind() for name, kind in METHODS.items()} | {
    "sst directions": Sst(keep=Keep(directions=5)),
    "sst threshold": Sst(keep=Keep(threshold=1.0), damping_safety=0.0),
    "sst energy": Sst(keep=Keep(energy=0.9)),
    "sst undamped": Sst(keep=Keep(soft=3.0), damping_safety=0.0),
    "sst global": Sst(scope="global"),
    "sst global directions": Sst(scope="global", keep=Keep(directions=4)),
    "sst diagonal": Sst(fisher="diagonal"),
    "sst diagonal directions": Sst(fisher="diagonal", keep=Keep(directions=20)),
    "sst diagonal energy": Sst(fisher="diagonal", keep=Keep(energy=0.5)),
    "sst diagonal joint": Sst(fisher="diagonal", span="joint"),
    "sst joint": Sst(span="joint"),
    "sst joint directions": Sst(span="joint", keep=Keep(directions=6)),
    "sst global joint": Sst(scope="global", span="joint"),
    "sst interpolate": Sst(span="joint", patch="interpolate", keep=Keep(soft=1.0)),
    "sst kfac": Sst(fisher="kfac"),
    "sst kfac undamped": Sst(fisher="kfac", damping_safety=0.0),
    "sst kfac directions": Sst(fisher="kfac", keep=Keep(directions=20)),
    "sst kfac energy": Sst(fisher="kfac", keep=Keep(energy=0.8)),
    "sst kfac interpolate": Sst(fisher="kfac", span="joint", patch="interpolate"),
    "sst none": Sst(fisher="none"),
    "sst none directions": Sst(fisher="none", keep=Keep(directions=20)),
    "sst none interpolate": Sst(fisher="none", span="joint", patch="interpolate"),
}
every_method = pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())
LOW_RANK = {name: method for name, method in CASES.items() if method.is_low_rank}  # the others drop entries of U
every_low_rank_method = pytest.mark.parametrize("method", LOW_RANK.values(), ids=LOW_RANK.keys())
every_kind = pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS.keys())

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # updates of order 0.1, a few float32 operations


def modules_of(method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics) -> list[ModuleInputs]:
    return [method.inputs(name, utility[name], safety[name], statistics) for name in sorted(utility)]


def merge(
    method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics | None = None, *, seed: int = 0
) -> Updates:
    """Run a method over all modules as the merge stage does."""
    modules = modules_of(method, utility, safety, statistics or Statistics())
    state = method.prepare(iter(modules))
    return {
        inputs.name: method.merge_module(inputs, state, module_generator(seed, inputs.name)).update
        for inputs in modules
    }


def dense(updates: Updates) -> dict[str, torch.Tensor]:
    return {name: update.dense() for name, update in updates.items()}


@pytest.fixture(scope="module")
def utility(llama: Base) -> Updates:
    return random_adapter(llama, 4, seed=1)


@pytest.fixture(scope="module")
def safety(llama: Base) -> Updates:
    return random_adapter(llama, 3, seed=2)


@pytest.fixture(scope="module")
def statistics(utility: Updates, safety: Updates, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return random_statistics(tmp_path_factory.mktemp("statistics"), utility, safety)


@every_method
def test_every_module_is_merged_in_its_shape_and_in_float32(
    method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics
) -> None:
    merged = merge(method, utility, safety, statistics)
    assert merged.keys() == utility.keys()
    for name, update in merged.items():
        assert update.shape == utility[name].shape
        assert update.a.dtype == update.b.dtype == torch.float32
        assert bool(torch.isfinite(update.dense()).all())
        if method.is_low_rank:
            assert update.rank <= utility[name].rank + safety[name].rank


@every_method
def test_same_seed_same_bytes_and_another_seed_only_where_declared(
    method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics
) -> None:
    first, again, other = (merge(method, utility, safety, statistics, seed=seed) for seed in (0, 0, 1))
    for name in first:
        assert first[name].a.equal(again[name].a)
        assert first[name].b.equal(again[name].b)
    is_same = all(first[name].dense().equal(other[name].dense()) for name in first)
    assert is_same is not method.is_random


@every_method
def test_the_order_of_modules_does_not_matter(
    method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics
) -> None:
    forward = modules_of(method, utility, safety, statistics)
    results = []
    for modules in (forward, forward[::-1]):
        state = method.prepare(iter(modules))
        results.append(
            {
                inputs.name: method.merge_module(inputs, state, module_generator(0, inputs.name)).update.dense()
                for inputs in modules
            }
        )
    torch.testing.assert_close(results[0], results[1], **FLOAT32)  # sums over modules in another order


@every_method
def test_inputs_are_not_changed(method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics) -> None:
    before = copy.deepcopy((utility, safety))
    merge(method, utility, safety, statistics)
    for now, then in zip((utility, safety), before, strict=True):
        for name in now:
            assert now[name].a.equal(then[name].a)
            assert now[name].b.equal(then[name].b)


@every_method
def test_adapters_of_zeros_merge_to_zero(method: MergeMethod, llama: Base, tmp_path: Path) -> None:
    zeros = zero_adapter(llama)
    merged = merge(method, zeros, zeros, random_statistics(tmp_path, zeros, zeros))
    assert not any(bool(update.dense().any()) for update in merged.values())


@every_method
def test_strength_zero_gives_the_utility_adapter_to_the_last_bit_or_declares_that_it_does_not(
    method: MergeMethod, utility: Updates, safety: Updates, statistics: Statistics
) -> None:
    merged = merge(method.model_copy(update={"strength": 0.0}), utility, safety, statistics)
    compact = {name: update.without_zero_components() for name, update in merged.items()}
    is_utility = all(
        compact[name].b.shape == utility[name].b.shape
        and compact[name].b.equal(utility[name].b)
        and compact[name].a.equal(utility[name].a)
        for name in utility
    )
    assert is_utility is method.keeps_utility_at_strength_zero


# With an empty safety adapter S - U leads back to the base, so that the utility arm is not where it starts.
ADDING = {name: method for name, method in LOW_RANK.items() if method.coordinates()[1] == "add"}


@pytest.mark.parametrize("method", ADDING.values(), ids=ADDING.keys())
def test_a_safety_adapter_of_zeros_gives_the_weights_of_the_utility_arm(
    method: MergeMethod, llama: Base, utility: Updates, tmp_path: Path
) -> None:
    zeros = zero_adapter(llama)
    merged = merge(method, utility, zeros, random_statistics(tmp_path, utility, zeros))
    # An average with the base halves the utility update: 1 / (1 + 1).
    share = 0.5 if method == METHODS["linear"]() else 1.0
    with applied(llama, {name: update.scaled(share) for name, update in utility.items()}, "utility") as arm:
        expected = arm.weights_sha256
    with applied(llama, merged, "merged") as arm:
        assert arm.weights_sha256 == expected


@every_method
def test_the_gauge_of_either_adapter_does_not_matter(method: MergeMethod, tmp_path: Path) -> None:
    """``(b X, X^-1 a)`` is the same adapter; the statistics are measured anew."""
    base = tiny_base("llama", seed=4, dtype=torch.float64)
    utility, safety = random_adapter(base, 3, seed=1), random_adapter(base, 3, seed=2)

    def merged(utility: Updates, safety: Updates, folder: Path) -> dict[str, torch.Tensor]:
        statistics = measured_statistics(base, folder, method.requests(), utility, safety)
        return dense(merge(method, utility, safety, statistics))

    expected = merged(utility, safety, tmp_path / "first")
    for number, (other_utility, other_safety) in enumerate(
        [(in_another_gauge(utility, seed=1), safety), (utility, in_another_gauge(safety, seed=2))]
    ):
        found = merged(other_utility, other_safety, tmp_path / f"{number}")
        # factors in another gauge are float32 again: 1e-7 times the condition of X, and of the eigenproblem
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


@every_method
def test_a_merged_adapter_saves_and_loads_to_the_same_tensors_and_plain_peft_gives_its_model(
    method: MergeMethod, safety: Updates, tmp_path: Path
) -> None:
    base = tiny_base("llama", dtype=torch.float64)
    utility = read_adapter(write_peft_adapter(tmp_path / "utility", base, rank=4, seed=1, scale=0.05)).updates
    merged = merge(method, utility, safety, random_statistics(tmp_path / "statistics", utility, safety))
    folder = tmp_path / "merged"
    write_adapter(folder, merged, like=read_config(tmp_path / "utility"))

    loaded = read_adapter(folder).updates
    assert loaded.keys() == merged.keys()
    for name, update in merged.items():
        compact = update.without_zero_components()
        assert loaded[name].b.equal(compact.b)
        assert loaded[name].a.equal(compact.a)

    ids = torch.tensor([encoded_conversations(base)[0].ids])
    with torch.no_grad():
        model = load_with_peft(base, folder)
        beside = model(input_ids=ids).logits  # base and factors side by side
        weights = model.merge_and_unload().state_dict()
        with applied(base, merged, "merged") as arm:
            ours = base.model(input_ids=ids).logits
            for name, module in base.modules.items():
                torch.testing.assert_close(
                    weights[f"{name}.weight"], module.weight, rtol=0, atol=1e-6
                )  # b @ a: float32
        assert arm.update_norm > 0
        unmerged = base.model(input_ids=ids).logits
    # logits of order 5 from sums of float32 products
    torch.testing.assert_close(beside, ours, rtol=0, atol=1e-3)
    assert float((ours - unmerged).abs().max()) > 0.1


def test_task_arithmetic_is_weights_plus_both_peft_updates_by_hand(tmp_path: Path) -> None:
    """Three scalings: alpha/r, alpha/sqrt(r), and one per module."""
    base = tiny_base("mistral", dtype=torch.float64)
    variants: list[dict[str, Any]] = [
        {"rank": 4, "seed": 1},
        {"rank": 2, "alpha": 3.0, "seed": 2, "use_rslora": True},
        {
            "rank": 4,
            "seed": 3,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
            "alpha_pattern": {"o_proj": 2},
        },
    ]
    for number, (first, second) in enumerate(itertools.permutations(variants, 2)):
        adapters = [
            read_adapter(write_peft_adapter(tmp_path / f"{number}-{role}", base, scale=0.05, **variant))
            for role, variant in (("utility", first), ("safety", second))
        ]
        method = METHODS["task_arithmetic"](utility_weight=0.5, strength=1.5)
        merged = merge(method, adapters[0].updates, adapters[1].updates)
        deltas = []
        for variant in (first, second):
            model = peft_model(base, scale=0.05, **variant)
            deltas.append(
                {
                    name: base.modules[name].weight.new_tensor(
                        model.get_submodule(f"base_model.model.{name}").get_delta_weight("default").detach().numpy()
                    )
                    for name in base.modules
                }
            )
        for name, update in merged.items():
            by_hand = 0.5 * deltas[0][name] + 1.5 * deltas[1][name]
            torch.testing.assert_close(update.dense().double(), by_hand, rtol=1e-5, atol=1e-6)  # float32 factors


@every_kind
def test_every_parameter_is_documented_and_bounded(kind: type[MergeMethod]) -> None:
    def check(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no docstring"
            is_number = field.annotation in {int, float, int | None, float | None}
            bounds = [limit for limit in field.metadata if getattr(limit, "ge", getattr(limit, "gt", None)) is not None]
            assert bool(bounds) is is_number, f"{model.__name__}.{name}: a number needs a lower bound"

    check(kind)
    check(Keep)
    assert kind.title
    assert kind.source
    assert kind.__doc__


@every_kind
def test_the_name_in_the_list_is_the_name_in_the_configuration(kind: type[MergeMethod]) -> None:
    assert METHODS[kind.model_fields["name"].default] is kind


@every_kind
@pytest.mark.parametrize(
    "values",
    [
        {"strength": -0.1},
        {"strength": 16.1},
        {"strength": float("nan")},
        {"utility_weight": -1},
        {"utility_weight": 2.5},
        {"strenght": 1.0},
    ],
    ids=str,
)
def test_values_out_of_bounds_and_unknown_parameters_are_refused(
    kind: type[MergeMethod], values: dict[str, float]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        kind(**values)


@every_kind
def test_no_number_of_a_method_is_yes_and_every_one_may_be_a_string(kind: type[MergeMethod]) -> None:
    """YAML reads ``1e-1`` as a string."""
    numbers = [name for name, field in kind.model_fields.items() if field.annotation in {int, float}]
    assert {"strength", "utility_weight"} <= set(numbers)
    for name in numbers:
        with pytest.raises(ValidationError, match=f"{name}\n.*Input should be a number, not yes or no"):
            kind.model_validate({name: True})
        assert getattr(kind.model_validate({name: "1e-1"}), name) == 0.1


@every_kind
def test_a_method_is_immutable_and_survives_a_round_trip_through_json(kind: type[MergeMethod]) -> None:
    method = kind(strength=0.5)
    assert kind.model_validate_json(method.model_dump_json(exclude_unset=True)) == method
    with pytest.raises(ValidationError, match="frozen"):
        method.strength = 1.0


@every_method
def test_a_method_reads_no_statistics_but_those_it_asks_for(
    method: MergeMethod, utility: Updates, safety: Updates
) -> None:
    if method.requires():
        (needed,) = method.requires()
        assert needed in STATISTICS
        with pytest.raises(StatisticsError, match=needed):
            merge(method, utility, safety)
    else:
        assert merge(method, utility, safety).keys() == utility.keys()
