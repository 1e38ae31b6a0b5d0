"""LoRA updates as plain values: one low-rank matrix per linear module, with exact arithmetic on them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """The update ``b @ a`` of one linear module, columns to rows: ``(W + b @ a) x``.

    LoRA's scaling (alpha/r, or alpha/sqrt(r) for rsLoRA) is already folded into ``b``. Both factors are float32.
    """

    b: Float[Tensor, "d_out rank"]
    a: Float[Tensor, "rank d_in"]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)`` of the module."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        """Number of components, an upper bound of the matrix rank."""
        return self.b.shape[1]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The update as a matrix."""
        return self.b @ self.a

    def scaled(self, weight: float) -> "Update":
        """``weight`` times this update; weight 1 changes no bit."""
        return self if weight == 1.0 else Update(self.b * weight, self.a)

    def without_zero_components(self) -> "Update":
        """The same matrix without the components that are exactly zero.

        Two updates that differ by such components only have equal bytes afterwards, and so have the weights
        they are added to: an adapter of zeros cannot hide behind its rank.
        """
        alive = (self.b != 0).any(dim=0) & (self.a != 0).any(dim=1)  # (rank,)
        return self if bool(alive.all()) else Update(self.b[:, alive], self.a[alive])


Updates = dict[str, Update]
"""Module name, as the base model spells it, to its update."""


def concatenate(updates: Iterable[Update]) -> Update:
    """The sum of updates, exactly: factors side by side, ranks added, no cross terms.

    Example:
        >>> one = Update(torch.ones(2, 1), torch.ones(1, 3))
        >>> concatenate([one, one.scaled(2.0)]).dense()[0].tolist()
        [3.0, 3.0, 3.0]
    """
    parts = list(updates)
    return Update(torch.cat([part.b for part in parts], dim=1), torch.cat([part.a for part in parts], dim=0))


def from_dense(matrix: Float[Tensor, "d_out d_in"]) -> Update:
    """An update of full rank that is this matrix to the last bit: one factor is the identity."""
    d_out, d_in = matrix.shape
    if d_out <= d_in:
        return Update(torch.eye(d_out), matrix)
    return Update(matrix, torch.eye(d_in))


def total_norm(updates: Updates) -> float:
    """Frobenius norm over all modules, ``sqrt(sum |b a|_F^2)``, from the factors alone."""
    return sum(squared_norm(update) for update in updates.values()) ** 0.5


def squared_norm(update: Update) -> float:
    """``|b a|_F^2 = tr((b^T b) (a a^T))``, in float64; never forms the product."""
    b, a = update.b.double(), update.a.double()
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))


def iterate_shared(first: Updates, second: Updates) -> Iterator[tuple[str, Update, Update]]:
    """Both updates of each module, in sorted order of names. The names must agree."""
    for name in sorted(first):
        yield name, first[name], second[name]
