"""DARE against a loop with the same mask, and in expectation."""

import torch

from sst_merge.methods import Dare, ModuleInputs, module_generator
from tiny import random_update

SHAPE = (6, 7)
UTILITY, SAFETY = random_update(SHAPE, 3, seed=1), random_update(SHAPE, 3, seed=2)
INPUTS = ModuleInputs("module", UTILITY, SAFETY)


def test_dare_equals_a_loop_with_the_same_mask() -> None:
    density, utility_weight, strength = 0.3, 0.8, 1.5
    draws = module_generator(5, "module")
    masks = [torch.rand(SHAPE, generator=draws) < density for _ in range(2)]  # utility first
    method = Dare(density=density, utility_weight=utility_weight, strength=strength)
    merged = method.merge_module(INPUTS, None, module_generator(5, "module")).update.dense()
    utility, safety = UTILITY.dense(), SAFETY.dense()
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            expected = 0.0
            if masks[0][row, column]:
                expected += utility_weight * float(utility[row, column]) / density
            if masks[1][row, column]:
                expected += strength * float(safety[row, column]) / density
            assert abs(float(merged[row, column]) - expected) < 1e-6  # float32 against float64 scalars


def test_the_mean_over_seeds_is_task_arithmetic() -> None:
    density, seeds = 0.5, 1000
    draws = torch.stack(
        [
            Dare(density=density).merge_module(INPUTS, None, module_generator(seed, "module")).update.dense()
            for seed in range(seeds)
        ]
    )
    utility, safety = UTILITY.dense(), SAFETY.dense()
    # Var = (1/density - 1) (u^2 + s^2) / seeds per entry; 42 entries: five standard errors fail once in 4e4 times
    # over seeds, and the seeds are fixed.
    error = ((1 / density - 1) * (utility.square() + safety.square()) / seeds).sqrt()
    assert ((draws.mean(dim=0) - utility - safety).abs() < 5 * error).all()


def test_about_density_of_the_entries_survive() -> None:
    big = ModuleInputs("module", random_update((100, 100), 3, seed=1), random_update((100, 100), 3, seed=2))
    method = Dare(density=0.2, strength=0.0)
    alive = (method.merge_module(big, None, module_generator(0, "module")).update.dense() != 0).float().mean()
    assert abs(float(alive) - 0.2) < 5 * (0.2 * 0.8 / 10_000) ** 0.5  # five standard errors of 10 000 draws
