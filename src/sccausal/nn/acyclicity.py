"""How far a weighted graph is from having no directed cycle, differentiably; and exact checks for a DAG.

Rows are sources and columns are targets.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.autograd.function import once_differentiable

from sccausal._errors import NumericalError, SetupError

AcyclicityKind = Literal["logdet", "expm", "polynomial", "spectral"]


def _is_m_matrix(factors: Tensor, pivots: Tensor) -> bool:
    # A matrix with non-positive off-diagonal is a non-singular M-matrix iff some x > 0 is mapped to a positive vector.
    # x = M^-1 1 is such a vector whenever one exists, and costs one triangular solve on the LU at hand.
    x = torch.linalg.lu_solve(factors, pivots, factors.new_ones(factors.shape[0], 1))
    return bool((torch.isfinite(x) & (x > 0)).all())


class _LogDet(torch.autograd.Function):
    """``-log det(sI - A∘A) + m log s`` with gradient ``2 A ∘ (sI - A∘A)^-T``; one LU for value, check and gradient."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, s: float) -> Tensor:
        matrix = torch.diag(A.new_full((A.shape[0],), s)).sub_(A * A)
        factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
        if int(info) != 0 or not _is_m_matrix(factors, pivots):
            raise NumericalError(
                f"s = {s:g} lies outside the domain of the log-det penalty (sI - A∘A is no M-matrix: the spectral "
                f"radius of A∘A reaches s), where its value rewards cycles. A safe s is {logdet_domain(A):g} "
                "(`logdet_domain(A)`); or shrink the step that led here (`project_to_domain`)."
            )
        ctx.save_for_backward(A, factors, pivots)
        return A.shape[0] * math.log(s) - factors.diagonal().abs().log().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        A, factors, pivots = ctx.saved_tensors
        eye = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        inverse_t = torch.linalg.lu_solve(factors, pivots, eye, adjoint=True)
        return inverse_t.mul_(A).mul_(2 * grad), None


class _ExpTrace(torch.autograd.Function):
    """``tr exp(A∘A) - m``; the gradient ``2 A ∘ exp(A∘A)^T`` reuses the exponential of the value."""

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        exponential = torch.linalg.matrix_exp(A * A)
        ctx.save_for_backward(A, exponential)
        return exponential.diagonal().sum() - A.shape[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        A, exponential = ctx.saved_tensors
        return 2 * grad * A * exponential.T


class _PolynomialTrace(torch.autograd.Function):
    """``tr (I + A∘A/m)^m - m``; the gradient ``2 A ∘ ((I + A∘A/m)^(m-1))^T`` reuses the power of the value."""

    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        m = A.shape[0]
        base = torch.eye(m, dtype=A.dtype, device=A.device).add_(A * A, alpha=1 / m)
        power = torch.linalg.matrix_power(base, m - 1)
        ctx.save_for_backward(A, power)
        return (power * base.T).sum() - m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        A, power = ctx.saved_tensors
        return 2 * grad * A * power.T


class _SpectralRadius(torch.autograd.Function):
    """Perron root of ``A∘A`` by power iteration from both sides; gradient ``2 A ∘ u v^T / (u^T v)``."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, n_iter: int) -> Tensor:
        left, right = A.new_zeros(A.shape[0]), A.new_zeros(A.shape[0])
        W, best = A * A, A.new_zeros(())
        # the radius is that of the worst strongly connected part; a part converges where the whole graph need not
        for part in _cyclic_parts(A):
            u, v = _perron_vectors(W[part][:, part], n_iter)
            u = u / torch.dot(u, v).clamp_min(torch.finfo(W.dtype).tiny)
            root = torch.dot(u, W[part][:, part] @ v)
            if root > best:
                best = root
                left, right = left.zero_(), right.zero_()
                left[part], right[part] = u, v
        ctx.save_for_backward(A, left, right)
        return best.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        A, left, right = ctx.saved_tensors
        return 2 * grad * A * torch.outer(left, right), None


def _perron_vectors(W: Tensor, n_iter: int) -> tuple[Tensor, Tensor]:
    # The shift keeps the eigenvectors and makes the Perron root the only one of its modulus (cycles of even length).
    shift = 0.1 * torch.minimum(W.sum(0).max(), W.sum(1).max())
    left = right = torch.full_like(W[0], 1 / W.shape[0])
    tolerance = 50 * torch.finfo(W.dtype).eps
    for step in range(n_iter):
        new_left, new_right = left @ W + shift * left, W @ right + shift * right
        new_left, new_right = new_left / new_left.norm(), new_right / new_right.norm()
        done = step % 10 == 9 and float(torch.maximum((new_left - left).norm(), (new_right - right).norm())) < tolerance
        left, right = new_left, new_right
        if done:
            break
    return left, right


def acyclicity(A: Tensor, kind: AcyclicityKind = "logdet", s: float | None = None, *, n_iter: int = 1000) -> Tensor:
    r"""Measure how far a weighted graph is from having no directed cycle; zero exactly for a DAG.

    With :math:`W = A \circ A`:

    ``"logdet"``
        :math:`-\log\det(sI - W) + m \log s` :cite:p:`Bello2022`. Defined only where :math:`sI - W` is an M-matrix
        (spectral radius of :math:`W` below :math:`s`); this is tested by the existence of a positive vector with
        positive image, never by the sign of the determinant, which is positive again beyond an even number of poles.
    ``"expm"``
        :math:`\operatorname{tr} e^{W} - m` :cite:p:`Zheng2018`.
    ``"polynomial"``
        :math:`\operatorname{tr}(I + W/m)^m - m` :cite:p:`Yu2019`.
    ``"spectral"``
        The spectral radius of :math:`W` :cite:p:`Lee2019`, by power iteration. Its gradient at a DAG is taken as zero.

    Parameters
    ----------
    A
        Weights, shape (m, m); rows are sources, columns targets. The diagonal counts as self loops.
    kind
        Which function. All are differentiable once, with closed-form gradients that reuse the work of the value.
    s
        Scale of the log-det domain; must exceed the spectral radius of :math:`W`. ``None`` takes
        ``max(1, logdet_domain(A))``, a constant in the gradient. Keep it fixed while one problem is being minimised:
        values at two ``s`` cannot be compared.
    n_iter
        Most power iterations of ``"spectral"``.

    Returns
    -------
    0-d tensor, not negative up to rounding.

    Raises
    ------
    NumericalError
        If ``kind="logdet"`` and ``s`` is too small for ``A``.
    SetupError
        If ``A`` is not square or ``kind`` is unknown.
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise SetupError(f"A graph is a square matrix, found shape {tuple(A.shape)}.")
    A = full_precision(A)
    if kind == "logdet":
        return _LogDet.apply(A, max(1.0, logdet_domain(A)) if s is None else float(s))
    if kind == "expm":
        return _ExpTrace.apply(A)
    if kind == "polynomial":
        return _PolynomialTrace.apply(A)
    if kind == "spectral":
        return _SpectralRadius.apply(A, n_iter)
    raise SetupError(f"Unknown acyclicity {kind!r}; choose one of {', '.join(get_args(AcyclicityKind))}.")


def full_precision(x: Tensor) -> Tensor:
    """Half precision to float32: LAPACK has no half precision, and the graph is worth more digits anyway."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@torch.no_grad()
def logdet_domain(A: Tensor, n_iter: int = 20) -> float:
    r"""Scale ``s`` that is safe for the log-det penalty of ``A``: 1.1 times an upper bound of the spectral radius.

    The bound is the smallest of the largest row sum and the largest column sum of :math:`W = A \circ A` and the
    Collatz-Wielandt quotient :math:`\max_i (Wx)_i / x_i` of a positive vector ``x`` after ``n_iter`` power iterations;
    each of them is rigorous for a non-negative matrix.

    Returns
    -------
    The scale; 0 for an empty graph.
    """
    W = full_precision(A.detach()).square()
    if not bool(W.any()):
        return 0.0
    bound = torch.minimum(W.sum(0).max(), W.sum(1).max())
    x = torch.ones_like(W[0])
    for _ in range(n_iter):
        image = W @ x
        bound = torch.minimum(bound, (image / x).max())
        x = image / image.max().clamp_min(torch.finfo(W.dtype).tiny) + 1e-3  # the floor keeps x positive
    return 1.1 * float(bound)


@torch.no_grad()
def in_logdet_domain(A: Tensor, s: float = 1.0) -> bool:
    """Whether ``sI - A∘A`` is an M-matrix (exact up to rounding; sums first, one LU only where they do not decide)."""
    W = full_precision(A.detach()).square()
    if not bool(torch.isfinite(W).all()):
        return False
    if W.numel() == 0:
        return True
    if float(torch.minimum(W.sum(0).max(), W.sum(1).max())) < s:
        return True
    factors, pivots, info = torch.linalg.lu_factor_ex(torch.diag(W.new_full((W.shape[0],), s)) - W)
    return int(info) == 0 and _is_m_matrix(factors, pivots)


@torch.no_grad()
def project_to_domain(A: Tensor, previous: Tensor, s: float = 1.0, *, shrink: float = 0.5, n_steps: int = 30) -> Tensor:
    """Shorten the step from ``previous`` to ``A`` until it ends inside the log-det domain.

    Parameters
    ----------
    A, previous
        Weights after and before a step, shape (m, m). ``previous`` must lie in the domain.
    s
        Scale of the domain.
    shrink
        Factor of the step at each trial.
    n_steps
        Trials before ``previous`` itself is returned.

    Raises
    ------
    NumericalError
        If ``previous`` lies outside the domain as well.
    """
    if in_logdet_domain(A, s):
        return A
    if not in_logdet_domain(previous, s):
        raise NumericalError(f"The step starts outside the log-det domain of s = {s:g}; no shorter step can mend it.")
    step = torch.nan_to_num(A - previous, posinf=0.0, neginf=0.0)
    for _ in range(n_steps):
        step = step * shrink
        if in_logdet_domain(previous + step, s):
            return previous + step
    return previous.clone()


def is_dag(A: Tensor | np.ndarray) -> bool:
    """Whether the non-zero entries of ``A`` form no directed cycle (self loops count as cycles)."""
    dense = A.detach().cpu().numpy() if isinstance(A, Tensor) else np.asarray(A)
    return _acyclic(dense != 0)


def _cyclic_parts(A: Tensor) -> list[Tensor]:
    """Positions of the strongly connected parts that hold a cycle."""
    edges = (A.detach() != 0).cpu().numpy()
    _, label = connected_components(csr_matrix(edges), directed=True, connection="strong")
    cyclic = (np.bincount(label)[label] > 1) | np.diagonal(edges)
    return [torch.from_numpy(np.flatnonzero(label == k)).to(A.device) for k in np.unique(label[cyclic])]


def _acyclic(edges: np.ndarray) -> bool:
    if edges.shape[0] == 0:
        return True
    if np.diagonal(edges).any():
        return False
    n_components, _ = connected_components(csr_matrix(edges), directed=True, connection="strong")
    return bool(n_components == edges.shape[0])


def forward_edges(A: np.ndarray) -> np.ndarray:
    """Edges that agree with an order of the nodes in which as little weight as possible runs backwards.

    The order is the greedy one for the feedback arc set :cite:p:`Eades1993`: nodes whose outgoing weight exceeds their
    incoming weight most come first, after those without regulators and before those without targets. Unlike a
    threshold that leaves no cycle (:func:`dag_threshold`), it keeps the stronger edge of a pair that runs both ways,
    however weak both are.

    Parameters
    ----------
    A
        Weights, shape (m, m); rows are sources. The diagonal is ignored.

    Returns
    -------
    Boolean matrix (m, m); what it leaves of ``A`` is a DAG.
    """
    size = np.abs(np.asarray(A, dtype=np.float64))
    np.fill_diagonal(size, 0.0)
    edge = size > 0
    n_in, n_out = edge.sum(0), edge.sum(1)
    surplus = size.sum(1) - size.sum(0)
    rank = np.empty(len(size), dtype=int)
    left = np.ones(len(size), dtype=bool)
    first, last = 0, len(size) - 1
    while first <= last:
        sources, sinks = left & (n_in == 0), left & (n_out == 0)
        at_end = not sources.any() and bool(sinks.any())
        open_nodes = sources if sources.any() else sinks if at_end else left
        node = int(np.where(open_nodes, surplus, -np.inf).argmax())
        rank[node] = last if at_end else first
        first, last = (first, last - 1) if at_end else (first + 1, last)
        left[node] = False
        n_in, n_out = n_in - edge[node], n_out - edge[:, node]
        surplus += size[node] - size[:, node]
    return rank[:, None] < rank[None, :]


def dag_threshold(A: Tensor | np.ndarray) -> float:
    """Smallest ``t`` such that the edges with ``|A| > t`` form a DAG, by bisection over the sorted weights.

    Parameters
    ----------
    A
        Weights, shape (m, m). The diagonal is ignored.

    Returns
    -------
    0 if ``A`` is a DAG already, otherwise the weight of the strongest edge that has to go.
    """
    size = np.abs(A.detach().cpu().numpy() if isinstance(A, Tensor) else np.asarray(A)).copy()
    np.fill_diagonal(size, 0)
    levels = np.concatenate([[0.0], np.unique(size[size > 0])])
    low, high = 0, len(levels) - 1  # the highest level leaves no edge, hence a DAG
    while low < high:
        middle = (low + high) // 2
        if _acyclic(size > levels[middle]):
            high = middle
        else:
            low = middle + 1
    return float(levels[low])
