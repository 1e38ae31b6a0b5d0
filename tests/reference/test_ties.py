"""TIES against the paper's algorithm written as a loop, and against PEFT's implementation."""

import math

import pytest
import torch
from torch import Tensor

from sst_merge.methods import ModuleInputs, Ties, module_generator
from tiny import random_update

SHAPE = (10, 12)


def merged(utility_weight: float, strength: float, density: float) -> Tensor:
    inputs = ModuleInputs("module", random_update(SHAPE, 4, seed=1), random_update(SHAPE, 3, seed=2))
    method = Ties(utility_weight=utility_weight, strength=strength, density=density)
    return method.merge_module(inputs, None, module_generator(0, "module")).update.dense()


def by_loop(utility_weight: float, strength: float, density: float) -> Tensor:
    """Algorithm 1 of Yadav et al. 2023, one entry at a time, the weights before the election."""
    columns = []
    for update, weight in (
        (random_update(SHAPE, 4, seed=1), utility_weight),
        (random_update(SHAPE, 3, seed=2), strength),
    ):
        values = [float(value) for value in update.dense().flatten()]
        count = math.ceil(density * len(values) - 1e-9)
        survivors = set(sorted(range(len(values)), key=lambda index: -abs(values[index]))[:count])
        columns.append([weight * value if index in survivors else 0.0 for index, value in enumerate(values)])
    result = []
    for first, second in zip(*columns, strict=True):
        positive = sum(value for value in (first, second) if value > 0)
        negative = -sum(value for value in (first, second) if value < 0)
        voters = [value for value in (first, second) if (value > 0 if positive >= negative else value < 0)]
        result.append(sum(voters) / len(voters) if voters else 0.0)
    return torch.tensor(result).view(SHAPE)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize(("utility_weight", "strength"), [(1.0, 1.0), (1.0, 0.0), (1.0, 0.3), (0.5, 2.0)])
def test_ties_equals_the_algorithm_entry_by_entry(density: float, utility_weight: float, strength: float) -> None:
    # one multiplication and one division in float32
    torch.testing.assert_close(
        merged(utility_weight, strength, density), by_loop(utility_weight, strength, density), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])  # density * 120 is whole: PEFT rounds down, we round up
def test_ties_at_weight_one_equals_peft(density: float) -> None:
    from peft.utils.merge_utils import ties

    deltas = [random_update(SHAPE, 4, seed=1).dense(), random_update(SHAPE, 3, seed=2).dense()]
    expected = ties(deltas, torch.ones(2), density)
    torch.testing.assert_close(merged(1.0, 1.0, density), expected, rtol=1e-6, atol=0)  # the same float32 operations
