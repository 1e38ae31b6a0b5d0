"""The generalised eigenproblem of SST-Merge with Kronecker-factored Fisher matrices (K-FAC).

Martens and Grosse 2015, arXiv:1503.05671: ``F ~ L (x) R``, where for coordinates ``C`` of shape ``(rows, columns)``
the product acts as ``F C = L C R``. The eigenproblem of two such products falls apart into one for the left factors
and one for the right; eigenvalues multiply and eigenvectors are outer products. No ``p x p`` matrix ever exists.

Everything is float64 and pure torch; nothing changes its inputs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sst_merge.errors import NumericalError

# Directions that carry less than this fraction of both matrices are rounding of float32 factors' float64 products.
RANK_TOLERANCE = 1e-12

Matrix = Float64[Tensor, "size size"]
Coordinates = Float64[Tensor, "rows columns"]


@dataclass(frozen=True)
class KroneckerFisher:
    """One Fisher matrix ``left (x) right``, symmetric and positive semi-definite."""

    left: Float64[Tensor, "rows rows"]
    right: Float64[Tensor, "columns columns"]

    def damped(self, fraction: float) -> "KroneckerFisher":
        """Factored Tikhonov damping (Martens and Grosse 2015, section 6.3, with ``pi`` from the traces).

        Each factor gets ``sqrt(fraction)`` of its mean eigenvalue on the diagonal. The product of both additions is
        ``fraction * tr(F) / p``, what the other structures add to ``F``; two cross terms come on top.

        Args:
            fraction: Of ``tr(F)/p``, dimensionless, ``>= 0``; 0 changes nothing.
        """
        if fraction == 0:
            return self
        return KroneckerFisher(*(_with_diagonal(factor, fraction**0.5) for factor in (self.left, self.right)))

    def energy(self, coordinates: Coordinates) -> float:
        """``C^T F C``."""
        return float((coordinates * (self.left @ coordinates @ self.right)).sum())


@dataclass(frozen=True)
class KroneckerDirections:
    """Solutions of ``F_s v = lambda F_u v`` for two damped Kronecker products."""

    left_values: Float64[Tensor, " rows"]
    """Eigenvalues of the left pencil, falling."""
    right_values: Float64[Tensor, " columns"]
    """Eigenvalues of the right pencil, falling."""
    patch: Float64[Tensor, "rows columns"]
    """The patch's coordinate along each direction, ``v_ij^T F_u C_0``."""
    left: Float64[Tensor, "rows rows"]
    right: Float64[Tensor, "columns columns"]
    """Direction ``(i, j)`` is ``left[:, i] right[:, j]^T``."""

    @property
    def values(self) -> Float64[Tensor, "rows columns"]:
        """``lambda`` of every direction: products of the eigenvalues."""
        return torch.outer(self.left_values, self.right_values)

    def combine(self, weights: Float64[Tensor, "rows columns"]) -> Coordinates:
        """``C' = sum_ij w_ij v_ij v_ij^T F_u C_0``."""
        return self.left @ (weights * self.patch) @ self.right.T


def kronecker_eigendirections(
    safety: KroneckerFisher, utility: KroneckerFisher, coordinates: Coordinates
) -> KroneckerDirections:
    """Solve two small symmetric-definite eigenproblems by Cholesky whitening.

    Args:
        safety: The damped safety Fisher.
        utility: The damped utility Fisher; both factors positive definite.
        coordinates: The patch ``C_0``.

    Raises:
        NumericalError: If a factor of the utility Fisher is not positive definite or a value is not finite.
    """
    left_values, left = _pencil(safety.left, utility.left)
    right_values, right = _pencil(safety.right, utility.right)
    patch = left.T @ utility.left @ coordinates @ utility.right @ right
    return KroneckerDirections(left_values, right_values, patch, left, right)


def steer_kronecker_softly(
    safety: KroneckerFisher, utility: KroneckerFisher, coordinates: Coordinates, *, price: float
) -> Coordinates:
    """``C' = (F_s + price F_u)^{-1} F_s C_0`` for two Kronecker products, the safety one damped already.

    Both pairs of factors are diagonalised together, ``L_s = T^-T diag(a) T^-1`` and ``L_u = T^-T diag(b) T^-1`` (with
    ``c`` and ``d`` for the right ones); coordinate ``(i, j)`` is multiplied by ``a_i c_j / (a_i c_j + price b_i d_j)``.

    Args:
        safety: The safety Fisher, damped; undamped, what neither data set touches is dropped.
        utility: The utility Fisher, not damped.
        coordinates: The patch ``C_0``.
        price: Utility sensitivity in units of safety sensitivity, dimensionless, ``>= 0``; 0 keeps the patch.

    Raises:
        NumericalError: If a value is not finite.
    """
    if price == 0:
        return coordinates
    a, b, left, to_left = _together(safety.left, utility.left)
    c, d, right, to_right = _together(safety.right, utility.right)
    kept, paid = torch.outer(a, c), price * torch.outer(b, d)
    weights = torch.where(kept > 0, kept / torch.where(kept > 0, kept + paid, 1.0), 0.0)
    return left @ (weights * (to_left @ coordinates @ to_right.T)) @ right.T


def _pencil(safety: Matrix, utility: Matrix) -> tuple[Float64[Tensor, " size"], Matrix]:
    """Eigenvalues, falling, and eigenvectors ``V`` of ``safety v = lambda utility v`` with ``V^T utility V = I``."""
    _check_finite(safety, utility)
    factor, info = torch.linalg.cholesky_ex(utility)
    if int(info) != 0:
        raise NumericalError(
            f"a Kronecker factor of the utility Fisher is not positive definite (leading minor {int(info)} of "
            f"{len(utility)}): its trace is 0 or its damping too small. Raise method.damping_utility, or calibrate on "
            "utility samples whose gradient is not zero."
        )
    half = torch.linalg.solve_triangular(factor, safety, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    directions = torch.linalg.solve_triangular(factor.T, vectors.flip(1), upper=True)
    return values.flip(0).clamp(min=0.0), directions


def _together(
    first: Matrix, second: Matrix
) -> tuple[
    Float64[Tensor, " kept"], Float64[Tensor, " kept"], Float64[Tensor, "size kept"], Float64[Tensor, "kept size"]
]:
    """Diagonalise two positive semi-definite matrices together, on the range of both.

    Returns:
        ``a``, ``b``, ``T`` and ``T^+`` with ``T^T first T = diag(a)`` and ``T^T second T = diag(b)``.
    """
    _check_finite(first, second)
    scales = [float(matrix.diagonal().sum()) or 1.0 for matrix in (first, second)]
    first, second = first / scales[0], second / scales[1]
    values, vectors = torch.linalg.eigh(first + second)
    is_range = values > RANK_TOLERANCE * values.max()
    root = values[is_range].sqrt()
    whiten = vectors[:, is_range] / root
    a, rotation = torch.linalg.eigh(whiten.T @ first @ whiten)
    a = torch.where(a > RANK_TOLERANCE, a, 0.0)
    t = whiten @ rotation
    b = (t * (second @ t)).sum(dim=0)
    b = torch.where(b > RANK_TOLERANCE, b, 0.0)
    return a * scales[0], b * scales[1], t, rotation.T @ (vectors[:, is_range] * root).T


def _with_diagonal(matrix: Matrix, fraction: float) -> Matrix:
    """A matrix with a fraction of its mean eigenvalue added to the diagonal."""
    size = len(matrix)
    return matrix + fraction * float(matrix.diagonal().sum()) / size * torch.eye(size, dtype=matrix.dtype)


def _check_finite(*matrices: Float[Tensor, "size size"]) -> None:
    if not all(bool(torch.isfinite(matrix).all()) for matrix in matrices):
        raise NumericalError("a Kronecker factor holds values that are NaN or infinite; calibrate again in float32.")
