"""The generalised eigenproblem of SST-Merge in sample space, and orthonormal coordinates of a low-rank patch.

Everything is pure torch. Factorisations run in float64 whatever the inputs' precision; nothing changes its inputs.

Sample space: with per-sample gradients as the rows of ``J = [J_s; J_u]`` (scaled so that ``F = J^T J``), every
quantity the merge needs is a function of the Gram matrix ``K = J J^T`` and of the patch's response ``J C_0``. No
``p x p`` matrix ever exists.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sst_merge.adapter import Update
from sst_merge.errors import NumericalError

Side = Literal["output", "input"]
Span = Literal["safety", "joint"]
PatchForm = Literal["add", "interpolate"]

# Directions of the Gram matrix below this fraction of its largest eigenvalue are rounding, not data. Rounding of the
# float32 gradients moves *singular* values of J by about 1e-6 of the largest, eigenvalues of K = J J^T by the square
# of that, 1e-12; and eigh in float64 resolves a direction at 1e-10 to 1e-16 / 1e-10 = 1e-6. A coarser tolerance would
# take utility samples with small gradients (the well-fitted ones) for noise: their Fisher is a small part of K.
RANK_TOLERANCE = 1e-10

# A Cholesky factor of the scaled Gram matrix (unit diagonal) with a pivot below this says: samples are nearly alike,
# and only an eigendecomposition tells how many directions there are.
SMALLEST_PIVOT = 1e-3
# lambda that differs from the neutral value by less than this fraction of the largest lambda, or by less than that
# fraction of the neutral value itself, differs by rounding: the decomposition is good to the former, and lambda of
# directions near RANK_TOLERANCE, which damping draws to the neutral value, to some 1e-11 of the latter.
TIE, NEAR_NEUTRAL = 1e-12, 1e-9
SMALLEST_SIZE = 1e-280  # stands for that of a zero gradient, which needs a square root to divide by
COLUMNS, SAMPLES = 512, 128  # of a block, when a Gram matrix is summed


def patch_basis(update: Update, side: Side) -> Float[Tensor, "rank dim"]:
    """Orthonormal rows that span a patch, from the SVD of ``b @ a`` by way of its factors.

    The right (``output`` side) or left (``input`` side) singular vectors, by falling singular value. Unlike the QR
    of one factor they do not depend on the LoRA gauge ``(b X, X^-1 a)``, so that statistics that are not invariant
    to a rotation of the coordinates (the diagonal Fisher) do not depend on it either.

    Args:
        update: The patch, shape ``(d_out, d_in)``.
        side: ``output`` gives ``q`` of shape ``(rank, d_in)``, with patch ``C q``; ``input`` gives ``q`` of shape
            ``(rank, d_out)``, with patch ``q^T C``.

    Returns:
        float32; fewer rows than the update's rank where the patch has a smaller one (but for rounding of its float32
        factors), none for a patch of zeros.

    Example:
        >>> patch_basis(Update(torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0, 3.0]])), "output").abs().tolist()
        [[0.0, 1.0]]
    """
    q_b, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    # Rounding of float32 factors makes singular values of up to this; as coordinates they would be directions that
    # depend on the gauge. Component by component: one of large b and small a rounds no other.
    components = update.b.double().norm(dim=0) * update.a.double().norm(dim=1)  # (rank,)
    rounding = torch.finfo(torch.float32).eps * components.sum()
    kept = values > rounding.clamp(min=torch.finfo(torch.float64).tiny)
    basis = (q_a @ right.T)[:, kept] if side == "output" else (q_b @ left)[:, kept]
    return basis.T.float().contiguous()


def joint_basis(first: Update, second: Update, side: Side) -> Float[Tensor, "rank dim"]:
    """Orthonormal rows that span two updates of one module together, by falling weight in both.

    The right singular vectors of ``[first; second]`` (output side) or the left ones of ``[first, second]`` (input
    side): like those of :func:`patch_basis` they do not depend on the gauge of either.

    Returns:
        float32, of shape ``(rank, d_in)`` or ``(rank, d_out)``; ``rank`` is at most the sum of both ranks.

    Example:
        >>> one = Update(torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        >>> other = Update(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
        >>> joint_basis(one, other, "output").abs().tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if side == "output":
        stacked = Update(torch.block_diag(first.b, second.b), torch.cat([first.a, second.a]))
    else:
        stacked = Update(torch.cat([first.b, second.b], dim=1), torch.block_diag(first.a, second.a))
    return patch_basis(stacked, side)


def patch_coordinates(update: Update, basis: Float[Tensor, "rank dim"], side: Side) -> Float[Tensor, "rows columns"]:
    """Coordinates ``C_0`` of a patch in its basis: ``(d_out, rank)`` (output side) or ``(rank, d_in)`` (input side)."""
    if side == "output":
        return update.b @ (update.a @ basis.T)
    return (basis @ update.b) @ update.a


def patch_from_coordinates(
    coordinates: Float[Tensor, "rows columns"], basis: Float[Tensor, "rank dim"], side: Side
) -> Update:
    """The update that coordinates stand for: ``C q`` or ``q^T C``."""
    return Update(coordinates, basis) if side == "output" else Update(basis.T.contiguous(), coordinates)


@dataclass(frozen=True)
class SampleSpace:
    """A generalised eigenproblem ``F_s v = lambda F_u v``, seen through its samples."""

    gram: Float64[Tensor, "samples samples"]
    """``J J^T``: rows scaled so that ``J_s^T J_s = F_s`` and ``J_u^T J_u = F_u``."""
    response: Float64[Tensor, " samples"]
    """``J C_0``: each sample's first-order response to the patch."""
    is_safety: Bool[Tensor, " samples"]
    """Which rows are ``J_s``."""
    coordinates: int
    """``p``, the number of coordinates of the patch."""
    patch_squared_norm: float
    """``|C_0|^2``."""

    @staticmethod
    def of(
        rows: Float[Tensor, "samples p"], is_safety: Bool[Tensor, " samples"], patch: Float64[Tensor, " p"]
    ) -> "SampleSpace":
        """The problem of some samples' gradients ``J`` and a patch ``C_0``.

        Sums in float64, a block of columns at a time: there is no float64 copy of the rows. Of the symmetric Gram
        matrix the blocks on and below the diagonal are formed.
        """
        count = len(rows)
        gram = torch.zeros(count, count, dtype=torch.float64)
        response = torch.zeros(count, dtype=torch.float64)
        ends = [min(start + SAMPLES, count) for start in range(0, count, SAMPLES)]
        for block, part in zip(rows.split(COLUMNS, dim=1), patch.split(COLUMNS), strict=True):
            wide = block.double()
            for start, end in zip([0, *ends], ends, strict=False):
                gram[start:end, :end].addmm_(wide[start:end], wide[:end].T)
            response.addmv_(wide, part)
        gram = gram.tril() + gram.tril(-1).T
        return SampleSpace(gram, response, is_safety, patch.numel(), float(patch.square().sum()))

    def __add__(self, other: "SampleSpace") -> "SampleSpace":
        """The problem over both sets of coordinates: Gram matrices add."""
        return SampleSpace(
            self.gram + other.gram,
            self.response + other.response,
            self.is_safety,
            self.coordinates + other.coordinates,
            self.patch_squared_norm + other.patch_squared_norm,
        )

    def damping(self, *, safety: float, utility: float) -> tuple[float, float]:
        """``(gamma, eps)``: the relative dampings times ``tr(F_s)/p`` and ``tr(F_u)/p``."""
        diagonal = self.gram.diagonal()
        return (
            safety * float(diagonal[self.is_safety].sum()) / self.coordinates,
            utility * float(diagonal[~self.is_safety].sum()) / self.coordinates,
        )


@dataclass(frozen=True)
class Combination:
    """A projected patch ``C' = neutral * C_0 + J^T weights``, as coefficients."""

    neutral: float
    weights: Float64[Tensor, " samples"]

    def apply(self, rows: Float[Tensor, "samples p"], patch: Float64[Tensor, " p"]) -> Float64[Tensor, " p"]:
        """``C'`` from ``J`` and ``C_0``; in float64, since large weights cancel where samples are alike."""
        return self.neutral * patch + torch.cat([self.weights @ block.double() for block in rows.split(COLUMNS, dim=1)])

    def energies(self, problem: SampleSpace) -> dict[str, float]:
        """What is kept of the patch: squared norm, and the two Fisher energies ``C'^T F C'``, before and after."""
        response = self.neutral * problem.response + problem.gram @ self.weights  # J C'
        squared = (
            self.neutral**2 * problem.patch_squared_norm
            + 2 * self.neutral * float(self.weights @ problem.response)
            + float(self.weights @ problem.gram @ self.weights)
        )
        return {
            "squared_norm": problem.patch_squared_norm,
            "squared_norm_kept": max(0.0, squared),
            "safety_energy": float(problem.response[problem.is_safety].square().sum()),
            "safety_energy_kept": float(response[problem.is_safety].square().sum()),
            "utility_energy": float(problem.response[~problem.is_safety].square().sum()),
            "utility_energy_kept": float(response[~problem.is_safety].square().sum()),
        }


def steer_softly(problem: SampleSpace, *, price: float, damping_safety: float) -> Combination:
    r"""``C' = (F_s + gamma I + price F_u)^{-1} (F_s + gamma I) C_0``, by one linear system of the number of samples.

    It minimises ``|C - C_0|^2_{F_s + gamma I} + price |C|^2_{F_u}``: stay close to the patch where safety is
    sensitive, pay for utility sensitivity. By the push-through identity it is ``C_0 - J^T (K + G)^{-1} e`` with
    ``e = [0; J_u C_0]`` and a diagonal ``G`` of ``gamma`` for safety and ``gamma / price`` for utility samples.
    ``price = 1`` with patch ``S - U`` and the diagonal Fisher is Fisher merging (Matena and Raffel 2022,
    arXiv:2111.09832).

    Args:
        problem: The samples; ``gram`` is symmetric positive semi-definite.
        price: Utility sensitivity in units of safety sensitivity, dimensionless, ``>= 0``; 0 keeps the patch.
        damping_safety: ``gamma`` as a fraction of ``tr(F_s)/p``, dimensionless, ``>= 0``. With 0, what neither data
            set touches is dropped; above 0 it is kept.

    Raises:
        NumericalError: If the samples hold a value that is not finite.
    """
    _check_finite(problem)
    if price == 0:
        return Combination(1.0, torch.zeros_like(problem.response))
    gamma, _ = problem.damping(safety=damping_safety, utility=0.0)
    if gamma == 0:
        return _steer_undamped(problem, price)
    # Safety rows get gamma, utility rows gamma / price: scaling the rows by sqrt(price) instead would bury the safety
    # block under the rounding of a large one. Each sample is then scaled to a diagonal of 1, whatever its gradient.
    added = torch.full_like(problem.response, gamma)
    added[~problem.is_safety] = gamma / price
    unit = (problem.gram.diagonal() + added).rsqrt()
    matrix = unit[:, None] * problem.gram * unit
    matrix.diagonal().copy_(torch.ones_like(unit))
    e = torch.where(problem.is_safety, 0.0, unit * problem.response)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0 and float(factor.diagonal().min()) > SMALLEST_PIVOT:
        return Combination(1.0, -unit * torch.cholesky_solve(e[:, None], factor)[:, 0])
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > torch.finfo(torch.float64).eps * len(values)
    return Combination(1.0, -unit * (vectors[:, kept] @ ((vectors[:, kept].T @ e) / values[kept])))


def _steer_undamped(problem: SampleSpace, price: float) -> Combination:
    """The soft rule with ``gamma = 0``, at any ratio of the two traces: what neither data set touches is dropped.

    Rows of ``D J`` are those of ``V`` in the coordinates that make ``F_s / tr F_s + F_u / tr F_u`` the identity, and
    there the shares of safety ``mu``, the eigenvalues of ``V_s^T V_s``, are 1 minus those of utility. A direction
    counts ``tr F_s mu / (tr F_s mu + price tr F_u (1 - mu))``.
    """
    values, vectors, scale = _row_space(problem)
    trace = problem.gram.diagonal()
    safety, utility = float(trace[problem.is_safety].sum()), float(trace[~problem.is_safety].sum())
    shares, rotation = torch.linalg.eigh(vectors[problem.is_safety].T @ vectors[problem.is_safety])
    shares = torch.where(shares > RANK_TOLERANCE, shares, 0.0)
    others = torch.where(1.0 - shares > RANK_TOLERANCE, 1.0 - shares, 0.0)
    kept, paid = safety * shares, price * utility * others
    weights = torch.where(kept > 0, kept / torch.where(kept > 0, kept + paid, 1.0), 0.0)
    patch = rotation.T @ (vectors.T @ (scale * problem.response))
    return Combination(0.0, scale * (vectors @ ((rotation @ (weights * patch)) / values)))


@dataclass(frozen=True)
class Eigendirections:
    """Solutions of ``(F_s + gamma I) v = lambda (F_u + eps I) v`` inside the row space of the samples."""

    values: Float64[Tensor, " directions"]
    """``lambda``, falling: safety sensitivity bought per unit of utility sensitivity."""
    neutral_value: float
    """``gamma / eps``: lambda of every direction that neither data set touches."""
    neutral_directions: int
    """How many of them there are."""
    neutral_energy: float
    """``gamma |C_0|^2`` over them: their share of the patch's energy ``C_0^T (F_s + gamma I) C_0``."""
    patch: Float64[Tensor, " directions"]
    """The patch's coordinate along each direction, ``v_i^T (F_u + eps I) C_0``."""
    to_samples: Float64[Tensor, "samples directions"]
    """``v_i = J^T to_samples[:, i]``."""

    def combine(self, problem: SampleSpace, weights: Float64[Tensor, " directions"], neutral: float) -> Combination:
        """``C' = sum_i w_i v_i v_i^T (F_u + eps I) C_0`` plus ``neutral`` times the untouched part of the patch."""
        inside = self.to_samples @ (weights * self.patch)
        return Combination(neutral, inside - neutral * _row_space_coefficients(problem))


def eigendirections(problem: SampleSpace, *, damping_safety: float, damping_utility: float) -> Eigendirections:
    """Solve the generalised eigenproblem without forming a ``p x p`` matrix.

    An orthonormal basis of the row space comes from ``K = V L V^T``; both Fishers are small and dense in it, and
    the symmetric-definite problem is solved by Cholesky whitening (Golub and Van Loan, Matrix Computations, chapter
    on the generalised eigenvalue problem).

    Args:
        problem: The samples.
        damping_safety: ``gamma`` as a fraction of ``tr(F_s)/p``, dimensionless, ``>= 0``.
        damping_utility: ``eps`` as a fraction of ``tr(F_u)/p``, dimensionless, ``> 0``.

    Raises:
        NumericalError: If ``F_u + eps I`` is not positive definite or a value is not finite.
    """
    gamma, eps = _dampings(problem, damping_safety, damping_utility)
    values, vectors, scale = _row_space(problem)
    root = values.sqrt()
    rows = vectors * root / scale[:, None]  # J in the orthonormal basis, (samples, directions)
    safety, utility = rows[problem.is_safety], rows[~problem.is_safety]
    identity = torch.eye(len(values), dtype=torch.float64)
    damped = utility.T @ utility + eps * identity
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info) != 0:
        raise _not_definite(int(info), len(values), damping_utility)
    half = torch.linalg.solve_triangular(factor, safety.T @ safety + gamma * identity, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    lambdas, whitened_vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    lambdas, whitened_vectors = lambdas.flip(0).clamp(min=0.0), whitened_vectors.flip(1)
    # What ties with the neutral directions but for rounding ties with them: nothing else says which of them come first.
    is_tied = (lambdas - gamma / eps).abs() <= max(TIE * float(lambdas.max()), NEAR_NEUTRAL * gamma / eps)
    lambdas = torch.where(is_tied, gamma / eps, lambdas)
    directions = torch.linalg.solve_triangular(factor.T, whitened_vectors, upper=True)  # columns v_i
    patch = (vectors.T @ (scale * problem.response)) / root  # C_0 in the orthonormal basis
    untouched = problem.patch_squared_norm - float(patch.square().sum())
    neutral_energy = gamma * max(0.0, untouched) if problem.coordinates > len(values) else 0.0
    return Eigendirections(
        values=lambdas,
        neutral_value=gamma / eps,
        neutral_directions=problem.coordinates - len(values),
        neutral_energy=neutral_energy,
        patch=directions.T @ (damped @ patch),
        to_samples=scale[:, None] * (vectors / root) @ directions,
    )


@dataclass(frozen=True)
class Spectrum:
    """The values of :class:`Eigendirections` without the directions."""

    values: Float64[Tensor, " directions"]
    neutral_value: float
    neutral_directions: int


def spectrum(problem: SampleSpace, *, damping_safety: float, damping_utility: float) -> Spectrum:
    """``lambda`` of :func:`eigendirections` without eigenvectors, which take most of its time.

    Since ``F_s + gamma I = F_s - (gamma / eps) F_u + (gamma / eps) (F_u + eps I)``, the ``lambda`` are ``gamma / eps``
    plus the eigenvalues of ``(F_u + eps I)^{-1} J^T T J``, ``T`` being 1 for safety and ``-gamma / eps`` for utility
    rows: in sample space those of ``T M`` with ``M = J (F_u + eps I)^{-1} J^T``, which Woodbury's identity gives from
    ``K``. Where no sample is nearly a combination of others there are as many as samples; else the eigenvalues of ``K``
    say how many, and those nearest to ``gamma / eps`` are no directions of the samples'. A sample whose gradient is
    less than about 1e-5 of the largest of its data set can be a direction here (its ``lambda`` is about
    ``gamma / eps``), and one of the untouched directions there. If ``M`` has no Cholesky factor with its rounding
    added, that function is asked.

    Args:
        problem: The samples.
        damping_safety: As for :func:`eigendirections`.
        damping_utility: As for :func:`eigendirections`.

    Raises:
        NumericalError: As :func:`eigendirections`.
    """
    gamma, eps = _dampings(problem, damping_safety, damping_utility)
    neutral = gamma / eps
    order = problem.is_safety.long().argsort(stable=True)  # utility samples first
    gram, count = problem.gram[order][:, order], len(order)
    split = int((~problem.is_safety).sum())
    utility, info = torch.linalg.cholesky_ex(gram[:split, :split] + eps * torch.eye(split, dtype=torch.float64))
    if int(info) != 0:
        raise _not_definite(int(info), split, damping_utility)
    inside = torch.cholesky_solve(gram[:split, :split], utility)
    half = torch.linalg.solve_triangular(utility, gram[:split, split:], upper=False)
    middle = torch.empty_like(gram)  # M
    middle[:split, :split] = (inside + inside.T) / 2
    middle[split:, :split] = torch.linalg.solve_triangular(utility.T, half, upper=True).T
    middle[split:, split:] = (gram[split:, split:] - half.T @ half) / eps
    size = gram.diagonal() / eps
    size[:split] = middle.diagonal()[:split]
    root, info = torch.linalg.cholesky_ex(middle)
    is_independent = int(info) == 0 and bool((root.diagonal() >= SMALLEST_PIVOT * size.sqrt()).all())
    if not is_independent:  # M is singular: with its rounding added to the diagonal it has a factor
        rounding = count * torch.finfo(torch.float64).eps * size.clamp(min=SMALLEST_SIZE)
        root, info = torch.linalg.cholesky_ex(middle + rounding.diag())
    if int(info) != 0:
        found = eigendirections(problem, damping_safety=damping_safety, damping_utility=damping_utility)
        return Spectrum(found.values, found.neutral_value, found.neutral_directions)
    shifted = root[split:].T @ root[split:]  # root^T T root, whose eigenvalues are those of T M
    shifted[:split, :split] -= neutral * root[:split, :split].T @ root[:split, :split]
    from_neutral = torch.linalg.eigvalsh(shifted)
    kept = from_neutral.abs().argsort(descending=True)[: count if is_independent else _rank(problem)]
    values = (from_neutral[kept] + neutral).clamp(min=0.0).sort(descending=True).values
    return Spectrum(values, neutral, problem.coordinates - len(values))


def _rank(problem: SampleSpace) -> int:
    """Of the row space, as :func:`_row_space` has it."""
    values = torch.linalg.eigvalsh(_balanced(problem)[0])
    return int((values > RANK_TOLERANCE * values.max()).sum())


def _dampings(problem: SampleSpace, damping_safety: float, damping_utility: float) -> tuple[float, float]:
    """``(gamma, eps)`` of a problem that can be solved."""
    _check_finite(problem)
    gamma, eps = problem.damping(safety=damping_safety, utility=damping_utility)
    if eps <= 0:
        raise NumericalError(
            "the utility Fisher has trace 0, so every direction would be free. Calibrate on utility samples whose "
            "gradient is not zero."
        )
    return gamma, eps


def _not_definite(minor: int, size: int, damping_utility: float) -> NumericalError:
    return NumericalError(
        f"utility Fisher is not positive definite: leading minor {minor} of {size} failed with "
        f"damping_utility={damping_utility}. Raise method.damping_utility, or calibrate on more samples."
    )


def _row_space_coefficients(problem: SampleSpace) -> Float64[Tensor, " samples"]:
    """``K^+ J C_0``: coefficients of the patch's projection onto the row space of the samples."""
    values, vectors, scale = _row_space(problem)
    return scale * (vectors @ (vectors.T @ (scale * problem.response) / values))


def _row_space(
    problem: SampleSpace,
) -> tuple[Float64[Tensor, " directions"], Float64[Tensor, "samples directions"], Float64[Tensor, " samples"]]:
    """Eigenvalues and eigenvectors of ``D K D`` above rounding, and the diagonal of ``D``.

    ``D`` gives both data sets the same trace, which leaves the row space of ``J`` as it is: else small gradients of a
    well-fitted utility adapter would be taken for rounding of large ones of refusals. The columns of
    ``Q = J^T D V / sqrt(values)`` are orthonormal.
    """
    balanced, scale = _balanced(problem)
    values, vectors = torch.linalg.eigh(balanced)
    kept = values > RANK_TOLERANCE * values.max()
    return values[kept], vectors[:, kept], scale


def _balanced(problem: SampleSpace) -> tuple[Float64[Tensor, "samples samples"], Float64[Tensor, " samples"]]:
    """``D K D`` and the diagonal of ``D``, by which both data sets have the trace 1."""
    diagonal = problem.gram.diagonal()
    scale = torch.ones_like(diagonal)
    for chosen in (problem.is_safety, ~problem.is_safety):
        if (trace := float(diagonal[chosen].sum())) > 0:
            scale[chosen] = trace**-0.5
    return scale[:, None] * problem.gram * scale, scale


def _check_finite(problem: SampleSpace) -> None:
    if not bool(torch.isfinite(problem.gram).all() and torch.isfinite(problem.response).all()):
        raise NumericalError(
            "the per-sample gradients hold values that are NaN or infinite; calibrate again in float32."
        )


def truncated(update: Update, rank: int) -> Update:
    """Best approximation of a given rank (Eckart and Young 1936), by QR of the factors and a small SVD.

    Never forms the dense ``(d_out, d_in)`` matrix.
    """
    if update.rank <= rank:
        return update
    q_b, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = values[:rank].sqrt()
    return Update((q_b @ left[:, :rank] * root).float(), ((q_a @ right[:rank].T) * root).T.float().contiguous())
