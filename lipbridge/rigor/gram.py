"""A proved largest eigenvalue of a batch of complex Gram matrices: Gram iteration with the rounding of each step.

Complex matrices are pairs (real part, imaginary part) of float64 tensors ``(batch, m, n)``, and ``B B*`` is two real
products of ``[Re B, Im B]``, so that the a-priori error of a real dot product is all that is assumed: each part is off,
entry by entry, by at most gamma times the product of magnitudes, hence the Gram matrix by at most
``2 gamma |B|_F^2`` in spectral norm. A squaring H -> H H* of an exactly Hermitian H is the same product.

Gram iteration (Delattre et al. 2023) then proves a bound from its last step backwards:
``lambda(H_t)^2 <= lambda(H_(t+1)) + error_t``, and at the last step the Frobenius norm. Matrices whose bound falls
below what another one is seen to reach take no further part: they cannot hold the maximum. For those left at the end
the bound is sharpened by one Cholesky factorisation ``s I - G = L L* + R``, whose residual R is computed and bounded
(as in ``rigor``): within about 1e-10 of the true value, flat spectra included, where Gram iteration is slow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.linalg import torch_linalg
from lipbridge.rounding.scalars import UNIT, add_up, gamma, mul_up

#: A complex matrix (or a batch) as real and imaginary part.
Pair = tuple[Tensor, Tensor]

#: Squarings before the Cholesky test, for matrices up to a size: more, or of larger ones, cost what they spare.
SQUARINGS, SQUARED = 2, 64
#: The relative distance at which no more is to be gained.
CLOSE = 1e-9
#: Power steps that find a matrix with a large eigenvalue, which sets the mark for the others.
POWER_STEPS = 16
#: More than all underflows together can add up to, on matrices with a largest magnitude near one.
UNDERFLOW = 1e-290
#: What is not worth sharpening, beside magnitudes near one: zero matrices, whose bound is the root of the underflows.
ZERO = 1e-140


def gram_pair(B: Pair) -> tuple[Pair, Tensor]:
    """``(G, e)`` with G exactly Hermitian and ``||B B* - G||_2 <= e`` for each matrix of the batch."""
    C, D = torch.cat(B, dim=-1), torch.cat((B[1], -B[0]), dim=-1)
    re, im = C @ C.mT, D @ C.mT
    # The average with the transpose is within the same error of the true Hermitian matrix, but for one rounding more.
    error = squared_norm_up(B) * (2.0 * gamma(C.shape[-1] + 4)) + UNDERFLOW
    return ((re + re.mT) / 2, (im - im.mT) / 2), error


def squared_norm_up(B: Pair) -> Tensor:
    """Upper bound of the squared Frobenius norm of each matrix."""
    terms = 2 * B[0].shape[-1] * B[0].shape[-2]
    return (B[0].square() + B[1].square()).sum(dim=(-2, -1)) * (1.0 + 2.0 * gamma(terms + 4)) + UNDERFLOW


def largest_eigenvalue_of_batch_up(G: Pair, known: float) -> tuple[float, float]:
    """``(bound, seen)``: a proved upper bound of the eigenvalues of all matrices, and about what they reach.

    Args:
        G: exactly Hermitian, positive semidefinite up to rounding, entries of magnitude near one or below.
        known: what other batches were seen to reach: a bound is not made sharper than that. Zero at first.
    """
    proved = 0.0
    H, errors, scales = G, list[Tensor](), list[Tensor]()
    squarings = SQUARINGS if G[0].shape[-1] <= SQUARED else 0
    for squaring in range(squarings + 1):
        bounds = bounds_of_iterates(H, errors, scales)
        known = max(known, _seen(G, H, known, POWER_STEPS if squaring == 0 else 0))
        open_ = bounds > known * (1.0 + CLOSE) + ZERO
        proved = max(proved, float(torch.where(open_, 0.0, bounds).max()))
        if not bool(open_.any()):
            return proved, known
        G, H = (G[0][open_], G[1][open_]), (H[0][open_], H[1][open_])
        errors, scales = [error[open_] for error in errors], [scale[open_] for scale in scales]
        if squaring < squarings:
            H, error, scale = scaled_square(H)
            errors, scales = [*errors, error], [*scales, scale]
    sharpened, known = _cholesky_up(G, known)
    return max(proved, sharpened), known


def scaled_square(H: Pair) -> tuple[Pair, Tensor, Tensor]:
    """``(K, e, s)`` with ``||(H / s)^2 - K||_2 <= e`` for an exactly Hermitian H; s is a power of two near its size."""
    size = squared_norm_up(H).sqrt()
    scale = size / torch.frexp(size).mantissa  # a power of two, so that both this division and the next are exact
    square, error = gram_pair((H[0] / scale[:, None, None], H[1] / scale[:, None, None]))
    return square, error, scale


def bounds_of_iterates(H: Pair, errors: list[Tensor], scales: list[Tensor]) -> Tensor:
    """Upper bound of the largest eigenvalue of what H was squared from, by each step's error and scale."""
    bound = squared_norm_up(H).sqrt() * (1.0 + 4.0 * UNIT)
    for error, scale in zip(reversed(errors), reversed(scales), strict=True):
        bound = ((bound + error) * (1.0 + 4.0 * UNIT)).sqrt() * (1.0 + 4.0 * UNIT) * scale
    if not bool(torch.isfinite(bound).all()):
        raise NumericalFailure("The kernel holds NaN, or Gram iteration overflowed.")
    return bound


def _seen(G: Pair, H: Pair, known: float, steps: int) -> float:
    """What some eigenvalue of G reaches: Rayleigh quotients after power steps from the largest column of a power H."""
    best = H[0].diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    v = torch.complex(*(part.gather(-1, best[:, None, None].expand(-1, part.shape[-1], 1)) for part in H))
    matrix = torch.complex(*G)
    for _ in range(steps):
        v = matrix @ (v / v.abs().square().sum((-2, -1), keepdim=True).sqrt().clamp_min(UNDERFLOW))
    image = matrix @ v
    quotients = (v.conj() * image).real.sum((-2, -1)) / v.abs().square().sum((-2, -1)).clamp_min(UNDERFLOW)
    top = int(quotients.argmax())
    # One exact value is worth its price where it sets the mark for all other matrices.
    return (
        float(_eigenvalues(matrix[top])[-1])
        if steps and float(quotients[top]) > 0.98 * known
        else float(quotients[top])
    )


def _eigenvalues(matrix: Tensor) -> Tensor:
    return torch_linalg.eigvalsh(matrix)


def _cholesky_up(G: Pair, known: float) -> tuple[float, float]:
    """A proved upper bound of the eigenvalues of all matrices, close above ``known`` or the true value."""
    n = G[0].shape[-1]
    step = 16.0 * n * UNIT
    for _ in range(40):
        shift = known * (1.0 + step)
        S = (-G[0], -G[1])
        S[0].diagonal(dim1=-2, dim2=-1).add_(shift)
        factor, info = torch_linalg.cholesky_ex(torch.complex(*S))
        failed = (info != 0) | ~torch.isfinite(torch.view_as_real(factor)).flatten(1).all(dim=1)
        if not bool(failed.any()):
            factor = torch.tril(factor)
            product, error = gram_pair((factor.real, factor.imag))
            residual = squared_norm_up((S[0] - product[0], S[1] - product[1])).sqrt()
            # The roundings of the shift's subtraction, and of the sums and roots here.
            rounding = squared_norm_up(S).sqrt() * (8.0 * UNIT)
            slack = float((residual + error + rounding).max())
            return add_up(shift, mul_up(slack, 1.0 + 16.0 * UNIT)), known
        values = _eigenvalues(torch.complex(G[0][failed], G[1][failed]))
        known, step = max(known, float(values.max())), 4.0 * step
    raise NumericalFailure("No upper bound of a convolution's frequency blocks could be proved.")
