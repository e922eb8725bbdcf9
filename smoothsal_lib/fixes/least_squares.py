"""Fit a stage to a strided convolution by alternating least squares.

A stage computes ``y(u) = sum over t of B_t z(u + t)`` with ``z = A p``. Here u is a position of the output, t runs over
the 3 x 3 neighbourhood, and p(u) is the 3 x 3 patch of the input *after* resizing: resizing is linear and may as well
come first. So the stage is linear in A (the weights of ``before``) as long as B (those of ``after``) is held, and in B
as long as A is held. Either is a regression with one best answer. Solving them in turn can only lower the error.

Arrays with one row a position have the shape (G, R, F): channel group, row, feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from smoothsal_lib.fixes.stage import Stage

ROUNDS = 3  # of both regressions
STEPS = 3  # of conjugate gradients on A in every round: B moves too, so an exact A would be wasted
ROWS_PER_FEATURE = 20  # more rows than that no longer change the fit
RIDGE = 0.03  # times features / rows: how much noise the regressions assume, relative to the features' variance


def rows_needed(stage: Stage) -> int:
    """How many output positions the fit of ``stage`` can make use of."""
    return ROWS_PER_FEATURE * 9 * stage.geometry.channels[1] // stage.geometry.groups


@torch.no_grad()
def fit_stage(stage: Stage, x: Tensor, y: Tensor, rounds: int = ROUNDS) -> None:
    """Set the weights of ``stage`` so that it maps ``x`` to ``y`` with the least squared error.

    Args:
        stage: written to in place.
        x: (N, C_in, H, W), inputs of the strided convolution.
        y: (N, C_out, H', W'), its outputs.
        rounds: how many times both regressions are solved.
    """
    problem = _Problem(stage, x, y)
    before = problem.first_before()
    after = problem.best_after(before)
    for _ in range(rounds):
        before = problem.better_before(before, after)
        after = problem.best_after(before)
    problem.write(before, after)


class _Problem:
    """The data of one fit, centred so that the biases drop out: zero padding then pads with the mean."""

    def __init__(self, stage: Stage, x: Tensor, y: Tensor) -> None:
        self.stage, self.groups = stage, stage.geometry.groups
        self.width = stage.geometry.channels[1] // self.groups  # channels of z, and of y, in a group
        p = torch.cat([stage.resize(_patches(part)) for part in x.split(64)])
        self.p_mean, self.y_mean = p.mean((0, 2, 3), keepdim=True), y.mean((0, 2, 3), keepdim=True)
        self.p, self.y = p - self.p_mean, (y - self.y_mean).contiguous()
        self.p_rows, self.y_rows = _rows(self.p, self.groups), _rows(self.y, self.groups)

    def first_before(self) -> Tensor:
        """A start for A, (C_out, 9 C_in / G): reduced-rank regression (Izenman 1975).

        The position z(u) is read by the nine outputs around u. So A takes from each patch p(u) those combinations that
        best predict all nine, as many as there are channels: the leading singular vectors of the regression.
        """
        covariance, crossing = _second_moments(self.p_rows, _rows(_patches(self.y), self.groups))
        root = torch.linalg.cholesky(covariance)
        self.p_inverse = torch.cholesky_inverse(root).to(self.p.dtype)
        whitened = torch.linalg.solve_triangular(root, crossing, upper=False)
        strength, direction = torch.linalg.eigh(whitened @ whitened.mT)  # ascending
        strength, direction = strength[..., -self.width :].clamp(min=0), direction[..., -self.width :]
        a = torch.linalg.solve_triangular(root.mT, direction, upper=True) * strength[:, None].pow(0.25)
        a = F.pad(a, (self.width - a.shape[-1], 0))  # fewer inputs than channels: the rest stays empty
        return a.mT.reshape(-1, a.shape[-2]).to(self.p.dtype)

    def mix(self, before: Tensor) -> Tensor:
        """Z = A p, (N, C_out, H', W')."""
        return F.conv2d(self.p, before[:, :, None, None], groups=self.groups)

    def best_after(self, before: Tensor) -> Tensor:
        """B, (C_out, C_out / G, 3, 3): ridge regression of y on the 3 x 3 patches of z."""
        covariance, crossing = _second_moments(_rows(_patches(self.mix(before)), self.groups), self.y_rows)
        b = torch.cholesky_solve(crossing, torch.linalg.cholesky(covariance))
        return b.mT.reshape(-1, self.width, 3, 3).to(self.p.dtype)

    def better_before(self, before: Tensor, after: Tensor) -> Tensor:
        """A closer to the least-squares solution for this B, by a few steps of preconditioned conjugate gradients.

        The normal equations of A are too large to solve: all its entries are coupled, through the overlap of the nine
        B_t. Without the overlap they would read (sum of B_t' B_t) A cov(p) = ..., with two small matrices to invert;
        that is the preconditioner.
        """
        taps = after.reshape(self.groups, self.width, self.width, 9)
        overlap = torch.einsum("gomt,gont->gmn", taps, taps)
        overlap = torch.linalg.inv(_with_ridge(overlap, 1e-4))
        shape = before.shape
        residual = self.y - self._run(before, after)
        direction, previous = torch.zeros_like(self.p_rows[:, :0]), None
        for _ in range(STEPS):
            gradient = self._transpose(residual, after)
            step = overlap @ gradient @ self.p_inverse
            slope = (gradient * step).sum()
            direction = step if previous is None else step + slope / previous * direction
            change = self._run(direction.reshape(shape), after)
            length = slope / change.square().sum()
            before = before + length * direction.reshape(shape)
            residual = residual - length * change
            previous = slope
        return before

    def _run(self, before: Tensor, after: Tensor) -> Tensor:
        return F.conv2d(self.mix(before), after, padding=1, groups=self.groups)

    def _transpose(self, residual: Tensor, after: Tensor) -> Tensor:
        """The adjoint of A -> y: minus half the squared error's gradient, (G, C_out / G, 9 C_in / G)."""
        z = F.conv_transpose2d(residual, after, padding=1, groups=self.groups)
        return _rows(z, self.groups).mT @ self.p_rows

    def write(self, before: Tensor, after: Tensor) -> None:
        """Put A, B and the biases that undo the centring into the stage."""
        shift = before.reshape(self.groups, self.width, -1) @ self.p_mean.reshape(self.groups, -1, 1)
        for conv, weight, bias in (
            (self.stage.before, before, -shift),
            (self.stage.after, after, self.y_mean),
        ):
            assert conv.bias is not None  # every stage has biases
            conv.weight.copy_(weight.reshape(conv.weight.shape))
            conv.bias.copy_(bias.flatten())


def _patches(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, 9 C, H, W): every position with its 3 x 3 neighbourhood, zeros beyond the border."""
    n, c, h, w = maps.shape
    return F.unfold(maps.contiguous(), 3, padding=1).view(n, 9 * c, h, w)


def _rows(maps: Tensor, groups: int) -> Tensor:
    """(N, C, H, W) to (G, N H W, C / G)."""
    n, c, h, w = maps.shape
    return maps.reshape(n, groups, c // groups, h * w).permute(1, 0, 3, 2).reshape(groups, n * h * w, c // groups)


def _second_moments(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance of the features (G, F, F), with its ridge, and with the targets (G, F, T); float64."""
    rows, width = features.shape[-2:]
    covariance = (features.mT @ features).double() / rows
    return _with_ridge(covariance, RIDGE * width / rows), (features.mT @ targets).double() / rows


def _with_ridge(matrices: Tensor, strength: float) -> Tensor:
    """Add ``strength`` times the mean of the diagonal to the diagonal; a matrix of zeros gets ones."""
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    return matrices + torch.where(mean > 0, strength * mean, 1) * eye
