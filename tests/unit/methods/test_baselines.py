"""Task arithmetic, linear, TIES and DARE: closed forms. Loops and PEFT: tests/reference."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sst_merge.methods import Dare, Linear, MergeMethod, ModuleInputs, TaskArithmetic, Ties, module_generator
from sst_merge.methods.ties import trim
from tiny import random_update

UTILITY, SAFETY = random_update((5, 8), 2, seed=1), random_update((5, 8), 3, seed=2)
U, S = UTILITY.dense(), SAFETY.dense()
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}


def merged(method: MergeMethod) -> Tensor:
    inputs = ModuleInputs("module", UTILITY, SAFETY)
    return method.merge_module(inputs, None, module_generator(0, "module")).update.dense()


def test_task_arithmetic_is_the_weighted_sum() -> None:
    torch.testing.assert_close(merged(TaskArithmetic()), U + S, **FLOAT32)
    torch.testing.assert_close(merged(TaskArithmetic(utility_weight=0.5, strength=2.0)), 0.5 * U + 2 * S, **FLOAT32)


def test_linear_is_the_weighted_average() -> None:
    torch.testing.assert_close(merged(Linear()), (U + S) / 2, **FLOAT32)
    torch.testing.assert_close(merged(Linear(utility_weight=1.0, strength=3.0)), 0.25 * U + 0.75 * S, **FLOAT32)


def test_an_average_without_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match="some weight"):
        Linear(utility_weight=0.0, strength=0.0)


def test_ties_at_full_density_sums_nothing_and_averages_what_agrees() -> None:
    expected = torch.where(U * S > 0, (U + S) / 2, torch.where(U.abs() > S.abs(), U, S))
    torch.testing.assert_close(merged(Ties(density=1.0)), expected, **FLOAT32)


def test_an_update_of_weight_zero_has_no_vote_in_ties() -> None:
    assert merged(Ties(density=0.5, strength=0.0)).equal(trim(U, 0.5))
    assert merged(Ties(density=1.0, strength=0.0)).equal(U)


def test_trimming_keeps_the_largest_entries_and_their_values() -> None:
    for density in (0.01, 0.3, 0.5, 0.97):
        short = trim(U, density)
        alive = short != 0
        assert int(alive.sum()) == -int(-density * 40 // 1)
        assert short[alive].equal(U[alive])
        assert float(U[alive].abs().min()) >= float(U[~alive].abs().max())
    assert trim(U, 1.0).equal(U)


def test_dare_at_full_density_is_task_arithmetic() -> None:
    torch.testing.assert_close(merged(Dare(density=1.0, strength=0.5)), U + 0.5 * S, **FLOAT32)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
@pytest.mark.parametrize("kind", [Ties, Dare])
def test_a_density_outside_of_zero_to_one_is_refused(kind: type[MergeMethod], density: float) -> None:
    with pytest.raises(ValidationError, match="density"):
        kind(density=density)


def test_generators_differ_between_modules_and_seeds_and_not_between_calls() -> None:
    def draw(seed: int, name: str) -> Tensor:
        return torch.rand(4, generator=module_generator(seed, name))

    assert draw(0, "a").equal(draw(0, "a"))
    assert not draw(0, "a").equal(draw(0, "b"))
    assert not draw(0, "a").equal(draw(1, "a"))
