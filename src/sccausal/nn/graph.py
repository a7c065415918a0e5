"""Linear structural equations ``z = n + z A``, solved by LU with the cells as right-hand sides.

Rows of ``A`` are sources and columns are targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sccausal._errors import NumericalError, SetupError
from sccausal.nn.acyclicity import (
    AcyclicityKind,
    acyclicity,
    dag_threshold,
    forward_edges,
    full_precision,
    in_logdet_domain,
    is_dag,
    logdet_domain,
    project_to_domain,
)

__all__ = [
    "AcyclicityKind",
    "SEMFactorisation",
    "SEMGraph",
    "acyclicity",
    "dag_threshold",
    "forward_edges",
    "factorise_sem",
    "in_logdet_domain",
    "is_dag",
    "logdet_domain",
    "project_to_domain",
    "solve_sem",
]


def _lu(matrix: Tensor) -> tuple[Tensor, Tensor]:
    factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
    if int(info) != 0:
        raise NumericalError("I - A is singular: a feedback loop has gain one. Shrink the weights of the graph.")
    return factors, pivots


class _SolveSEM(torch.autograd.Function):
    """``b (I - A)^-1`` on a given LU of ``I - A``; the adjoint solve of the backward pass uses the same LU."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, b: Tensor, factors: Tensor, pivots: Tensor) -> Tensor:
        z = torch.linalg.lu_solve(factors, pivots, b.T, adjoint=True).T
        ctx.save_for_backward(z, factors, pivots)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        z, factors, pivots = ctx.saved_tensors
        grad_b = torch.linalg.lu_solve(factors, pivots, grad.T).T
        grad_A = z.T @ grad_b if ctx.needs_input_grad[0] else None
        return grad_A, grad_b, None, None


class SEMFactorisation(NamedTuple):
    """LU of ``I - A``, valid until ``A`` changes; made by :func:`factorise_sem`."""

    A: Tensor
    factors: Tensor
    pivots: Tensor

    def solve(self, b: Tensor) -> Tensor:
        """Solve ``z = b (I - A)^-1`` for rows ``b``, shape (n, m), differentiably in ``A`` and ``b``."""
        return _SolveSEM.apply(self.A, full_precision(b), self.factors, self.pivots)


def factorise_sem(A: Tensor) -> SEMFactorisation:
    """LU of ``I - A``, to be shared by all solves of one training step.

    Raises
    ------
    NumericalError
        If ``I - A`` is singular.
    """
    A = full_precision(A)
    factors, pivots = _lu(torch.eye(A.shape[0], dtype=A.dtype, device=A.device) - A.detach())
    return SEMFactorisation(A, factors, pivots)


def solve_sem(A: Tensor, b: Tensor) -> Tensor:
    r"""Solve the linear structural equations ``z = b + z A`` for the rows of ``b``.

    The cells are right-hand sides of one LU factorisation, and no inverse is formed:
    :math:`z_i^T = (I - A^T)^{-1} b_i^T`.

    Parameters
    ----------
    A
        Weights, shape (m, m); rows are sources.
    b
        Exogenous part, shape (n, m).

    Returns
    -------
    ``z``, shape (n, m).

    Raises
    ------
    NumericalError
        If ``I - A`` is singular.
    """
    return factorise_sem(A).solve(b)


def _renew_forbidden(graph: SEMGraph, _: object) -> None:
    graph._forbidden.copy_(~graph.allowed)


class SEMGraph(nn.Module):
    r"""Learned weights of a linear SEM over genes, with rows for regulators only.

    Genes that regulate nothing are sinks: they lie on no cycle and change no other gene. The system therefore splits
    exactly into a solve of the T x T block among regulators and one product,
    :math:`z_R = n_R (I - B)^{-1}`, :math:`z = n + z_R A`, and every acyclicity function of the whole graph equals that
    of the block (``"polynomial"`` up to its scaling by the size). Self loops are masked always: otherwise
    reconstruction of a gene from itself would be the best graph.

    Parameters
    ----------
    n_genes
        Number of genes m.
    regulators
        Positions of the T genes that may regulate; ``None`` for all.
    allowed
        Edges that may exist, boolean (T, m); ``None`` for all. Other weights stay zero.
    init_scale
        Standard deviation of the initial weights; ``None`` takes 1 / (m - 1).

    Attributes
    ----------
    weight
        Parameter of shape (T, m); read it through :meth:`matrix`, which masks the self loops.
    scale
        Scale ``s`` of the log-det domain (buffer), constant until :meth:`update_scale`.
    """

    def __init__(
        self,
        n_genes: int,
        regulators: Sequence[int] | np.ndarray | None = None,
        *,
        allowed: np.ndarray | Tensor | None = None,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        index = np.arange(n_genes) if regulators is None else np.asarray(regulators, dtype=np.int64)
        if index.ndim != 1 or len(np.unique(index)) != len(index) or not np.isin(index, np.arange(n_genes)).all():
            raise SetupError(f"`regulators` must be different positions within 0..{n_genes - 1}.")
        mask = torch.ones(len(index), n_genes, dtype=torch.bool)
        if allowed is not None:
            given = torch.as_tensor(allowed).bool()
            if given.shape != mask.shape:
                raise SetupError(f"`allowed` must have shape {tuple(mask.shape)}, found {tuple(given.shape)}.")
            mask = given.clone()
        mask[torch.arange(len(index)), torch.from_numpy(index)] = False
        self.n_genes, self.n_regulators = n_genes, len(index)
        self.is_square = bool(np.array_equal(index, np.arange(n_genes)))
        std = 1 / max(n_genes - 1, 1) if init_scale is None else init_scale
        self.weight = nn.Parameter(torch.randn(len(index), n_genes) * std * mask)
        self.register_buffer("regulators", torch.from_numpy(index.copy()))
        self.register_buffer("allowed", mask)
        self.register_buffer("_forbidden", ~mask, persistent=False)
        self.register_load_state_dict_post_hook(_renew_forbidden)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("_inside", torch.zeros(len(index), len(index)), persistent=False)
        self.regulators: Tensor
        self.allowed: Tensor
        self._forbidden: Tensor
        self.scale: Tensor
        self._inside: Tensor

    def matrix(self) -> Tensor:
        """Weights with forbidden edges at zero, shape (T, m)."""
        return self.weight.masked_fill(self._forbidden, 0.0)

    def block(self) -> Tensor:
        """Weights among regulators, shape (T, T)."""
        return self.matrix() if self.is_square else self.matrix()[:, self.regulators]

    def dense(self) -> Tensor:
        """Weights among all genes, shape (m, m); rows of genes that regulate nothing are zero."""
        if self.is_square:
            return self.matrix()
        empty = self.weight.new_zeros(self.n_genes, self.n_genes)
        return empty.index_copy(0, self.regulators, self.matrix())

    def exogenous(self, z: Tensor) -> Tensor:
        """What the regulators do not explain, ``n = z - z A``, shape (n, m)."""
        return z - (z if self.is_square else z[:, self.regulators]) @ self.matrix()

    def factorise(self) -> SEMFactorisation:
        """LU of ``I - B`` on the block among regulators, to share between the solves of one step.

        The log-det penalty factorises another matrix, ``sI - B∘B``, and shares its own LU between value, domain
        check and gradient.
        """
        return factorise_sem(self.block())

    def solve(self, n: Tensor, factorisation: SEMFactorisation | None = None) -> Tensor:
        """Expression that the exogenous part ``n`` leads to, ``z = n (I - A)^-1``, shape (n, m)."""
        lu = self.factorise() if factorisation is None else factorisation
        if self.is_square:
            return lu.solve(n)
        n = full_precision(n)
        return n + lu.solve(n[:, self.regulators]) @ self.matrix()

    def penalty(self, kind: AcyclicityKind = "logdet", s: float | None = None) -> Tensor:
        """Acyclicity of the graph (see :func:`acyclicity`), computed on the block; ``s=None`` takes :attr:`scale`."""
        return acyclicity(self.block(), kind, s=float(self.scale) if s is None else s)

    @torch.no_grad()
    def update_scale(self) -> bool:
        """Set :attr:`scale` to ``max(1, logdet_domain)``, between sub-problems; True if it changed.

        After a change, a stored earlier value of the penalty has to be computed again.
        """
        new = max(1.0, logdet_domain(self.block()))
        changed = new != float(self.scale)
        self.scale.fill_(new)
        return changed

    @torch.no_grad()
    def guard(self) -> bool:
        """Shorten the last step if it left the log-det domain of :attr:`scale`; call after each optimiser step.

        Returns
        -------
        True if the step was shortened. Only weights among regulators are touched.
        """
        block = self.block()
        s = float(self.scale)
        shortened = not in_logdet_domain(block, s)
        safe = block
        if shortened:
            previous = self._inside.to(block)
            if not in_logdet_domain(previous, s):  # the scale has shrunk since; the empty graph is always inside
                previous = torch.zeros_like(block)
            safe = project_to_domain(block, previous, s)
            self.weight.index_copy_(1, self.regulators, safe)
        self._inside = safe.clone()
        return shortened

    @torch.no_grad()
    def prune(self) -> tuple[Tensor, float]:
        """Cut the graph at the smallest threshold that leaves no cycle.

        Returns
        -------
        Weights (m, m) with ``|A| <= threshold`` at zero, and the threshold (0 if the graph was a DAG already).
        """
        threshold = dag_threshold(self.block())
        dense = self.dense().clone()
        dense[dense.abs() <= threshold] = 0
        return dense, threshold

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"n_genes={self.n_genes}, n_regulators={self.n_regulators}"
