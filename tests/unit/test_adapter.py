"""Exact arithmetic on low-rank updates."""

import torch

from sst_merge.adapter import Update, concatenate, from_dense, iterate_shared, squared_norm, total_norm
from tiny import in_another_gauge, random_update

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # sums of a few float32 products of order 1


def test_a_sum_of_updates_has_no_cross_terms() -> None:
    first, second = random_update((6, 5), 2, seed=1), random_update((6, 5), 3, seed=2)
    together = concatenate([first, second])
    assert together.rank == 5
    torch.testing.assert_close(together.dense(), first.dense() + second.dense(), **FLOAT32)
    padded = Update(torch.cat([first.b, torch.zeros(6, 1)], dim=1), torch.cat([first.a, torch.zeros(1, 5)]))
    added_factors = (padded.b + second.b) @ (padded.a + second.a)
    assert not torch.allclose(together.dense(), added_factors, atol=1e-2)


def test_scaling_multiplies_the_update_and_weight_one_changes_no_bit() -> None:
    update = random_update((6, 5), 2, seed=1)
    torch.testing.assert_close(update.scaled(0.3).dense(), 0.3 * update.dense(), **FLOAT32)
    assert update.scaled(1.0) is update


def test_components_of_zeros_leave_no_trace_in_the_bytes() -> None:
    update, other = random_update((6, 5), 2, seed=1), random_update((6, 5), 3, seed=2)
    with_zeros = concatenate([update, other.scaled(0.0), Update(other.b, torch.zeros(3, 5))])
    compact = with_zeros.without_zero_components()
    assert compact.b.equal(update.b)
    assert compact.a.equal(update.a)


def test_negative_zeros_are_zeros() -> None:
    update = Update(torch.full((3, 1), -0.0), torch.ones(1, 2))
    assert update.without_zero_components().rank == 0


def test_an_update_without_zero_components_is_returned_as_it_is() -> None:
    update = random_update((6, 5), 2, seed=1)
    assert update.without_zero_components() is update


def test_from_dense_gives_back_every_bit() -> None:
    for shape in ((4, 7), (7, 4), (5, 5)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        update = from_dense(matrix)
        assert update.dense().equal(matrix)
        assert update.rank == min(shape)


def test_the_norm_from_factors_equals_the_dense_norm_in_any_gauge() -> None:
    updates = {"one": random_update((6, 5), 2, seed=1), "two": random_update((3, 9), 3, seed=2)}
    dense = sum(float(update.dense().double().square().sum()) for update in updates.values())
    assert abs(total_norm(updates) - dense**0.5) < 1e-6 * dense**0.5  # the factors are float32
    assert abs(total_norm(in_another_gauge(updates)) - dense**0.5) < 1e-5 * dense**0.5  # so is the gauge
    assert squared_norm(random_update((6, 5), 2, seed=1).scaled(0.0)) == 0.0


def test_modules_come_in_sorted_order_whatever_the_order_of_insertion() -> None:
    first = {"b": random_update((2, 2), 1, seed=1), "a": random_update((2, 2), 1, seed=2)}
    second = {"a": random_update((2, 2), 1, seed=3), "b": random_update((2, 2), 1, seed=4)}
    shared = list(iterate_shared(first, second))
    assert [name for name, _, _ in shared] == ["a", "b"]
    assert shared[0][1] is first["a"]
    assert shared[0][2] is second["a"]
