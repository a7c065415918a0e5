"""Direct effects between genes from what perturbations do: the algebra behind CLIPR, on arrays.

Arrays of perturbations have perturbations in rows and genes in columns (K, d). Drift matrices ``A`` of
``dx = (A x + b) dt`` have targets in rows and sources in columns, as in the differential equation; everything a user
sees is turned so that rows are sources.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr

from sccausal._errors import InputDataError, SetupError

_DENSE_GENES = 60  # up to here the antisymmetric part is solved exactly


class Diagnostics(NamedTuple):
    """How well posed an estimate is.

    Attributes
    ----------
    rank
        Numerical rank of the states or responses.
    singular_values
        Their singular values, largest first.
    condition_number
        Largest over smallest non-zero singular value.
    symmetry
        ``|A - A^T| / |A + A^T|`` over pairs of genes (Frobenius): 0 for a symmetric matrix, which has no direction,
        about 1 for one without any symmetry.
    """

    rank: int
    singular_values: np.ndarray
    condition_number: float
    symmetry: float


def diagnostics(states: np.ndarray, matrix: np.ndarray) -> Diagnostics:
    """Diagnostics of ``states`` (K, d) an estimate rests on, and of a square ``matrix`` it gave."""
    values = np.linalg.svd(states, compute_uv=False)
    cut = max(states.shape) * np.finfo(np.float64).eps * (values[0] if values.size else 0.0)
    kept = values[values > cut]
    condition = float(kept[0] / kept[-1]) if kept.size else float("inf")
    return Diagnostics(int(kept.size), values, condition, symmetry(matrix))


def symmetry(matrix: np.ndarray) -> float:
    """``|A - A^T| / |A + A^T|`` without the diagonal."""
    off = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(off, 0.0)
    total = np.linalg.norm(off + off.T)
    return float(np.linalg.norm(off - off.T) / total) if total > 0 else float("nan")


def drift_form(drifts: np.ndarray, states: np.ndarray, tikhonov: float = 0.0) -> np.ndarray:
    r"""Drift matrix from drifts at a common point and the points of rest they lead to.

    If :math:`f_k(x) = A x + b + c_k` rests at :math:`X_k`, then :math:`A (X_k - x_0) = -f_k(x_0)` for every point
    :math:`x_0`. With :math:`K \ge d` points of full rank A follows; with fewer the answer is its projection on their
    span, the solution of smallest norm.

    Parameters
    ----------
    drifts
        :math:`f_k(x_0)`, (K, d).
    states
        :math:`X_k - x_0`, (K, d).
    tikhonov
        Penalty relative to the mean eigenvalue of the Gram matrix of the states.

    Returns
    -------
    A (d, d), rows are targets.

    Raises
    ------
    sccausal._errors.InputDataError
        Shapes differ or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> drift = np.array([[-1.0, 0.0], [0.8, -1.0]])  # rows are targets
    >>> pushes = np.eye(2)  # drift under each perturbation at the control state
    >>> states = -pushes @ np.linalg.inv(drift).T  # where cells rest
    >>> np.allclose(scc.grn.drift_form(pushes, states), drift)
    True
    """
    phi, x = _pair(drifts, states)
    if tikhonov == 0:
        return -np.linalg.lstsq(x, phi, rcond=None)[0].T
    tau = tikhonov * _mean_eigenvalue(x)
    if x.shape[0] < x.shape[1]:  # the smaller of the two Gram matrices
        return -(phi.T @ np.linalg.solve(x @ x.T + tau * np.eye(len(x)), x))
    return -np.linalg.solve(x.T @ x + tau * np.eye(x.shape[1]), x.T @ phi).T


def response_form(responses: np.ndarray, acts_on: np.ndarray, sources: np.ndarray, tikhonov: float = 0.0) -> np.ndarray:
    r"""Direct effects from responses, knowing which genes each perturbation acts on.

    In rest, :math:`\sum_j A_{ij} R_{kj} = 0` for each perturbation k that does not act on gene i. With
    :math:`A_{ii} = -1` (the time constant of a gene cannot be seen in states of rest) this is one regression per gene.
    With one perturbation of every gene and no penalty it is :math:`-R^{-1}/\mathrm{diag}(R^{-1})`, whatever the sizes
    of the perturbations. Sources are perturbed genes; what goes through genes that are not perturbed counts as direct.

    Parameters
    ----------
    responses
        Changes of state from control (K, d).
    acts_on
        Boolean (K, d): whether the perturbation acts on the gene.
    sources
        Positions of the genes that may be sources (S,).
    tikhonov
        Penalty relative to the mean eigenvalue of the Gram matrix of the sources' responses.

    Returns
    -------
    Effects (S, d), rows are sources; -1 where a source is its own target.

    Raises
    ------
    sccausal._errors.InputDataError
        Shapes differ, a value is not finite, or without a penalty the responses do not determine the effects.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> responses = np.array([[1.0, 0.5, 0.25], [0, 1.0, 0.5], [0, 0, 1.0]])  # a chain
    >>> effects = scc.grn.response_form(responses, np.eye(3, dtype=bool), np.arange(3))  # sources x genes
    >>> np.allclose(effects, [[-1, 0.5, 0], [0, -1, 0.5], [0, 0, -1]])  # nothing acts directly over two steps
    True
    """
    r, acts = _checked_responses(responses, acts_on)
    sources = np.asarray(sources, dtype=int)
    x = r[:, sources]  # (K, S)
    k, s = x.shape
    exact = _exact_inverse(r, acts, sources, tikhonov)
    if exact is not None:
        return exact
    gram = x.T @ x
    tau = tikhonov * max(float(np.trace(gram)) / s, 1e-300)
    try:
        lower = np.linalg.cholesky(gram + tau * np.eye(s))
    except np.linalg.LinAlgError as error:
        raise InputDataError(
            f"The responses of {s} sources to {k} perturbations do not determine their effects (rank "
            f"{np.linalg.matrix_rank(x)}). Give tikhonov > 0, e.g. 1e-3, or fewer sources."
        ) from error
    inverse = np.linalg.inv(lower)
    p = inverse.T @ inverse  # (S, S)
    xp = x @ p  # (K, S)
    out = p @ (x.T @ r)  # all perturbations count; corrected below for genes some of them act on
    place = {int(g): j for j, g in enumerate(sources)}
    for gene in np.flatnonzero(acts.any(axis=0) | np.isin(np.arange(r.shape[1]), sources)):
        left = np.flatnonzero(acts[:, gene])
        out[:, gene] = _without(left, x, xp, p, r[:, gene], place.get(int(gene)))
    return out


def _without(
    left: np.ndarray, x: np.ndarray, xp: np.ndarray, p: np.ndarray, y: np.ndarray, own: int | None
) -> np.ndarray:
    """Ridge coefficients (S,) of one gene without the perturbations ``left`` that act on it, by a low-rank downdate."""
    middle = np.eye(len(left)) - xp[left] @ x[left].T
    if own is None:  # a gene that is no source: plain regression on the remaining perturbations
        rest = x.T @ y - x[left].T @ y[left]
        base = p @ rest
        return base + xp[left].T @ np.linalg.solve(middle, x[left] @ base)
    # regression of a column on the others is a column of the inverse Gram matrix, scaled
    column = p[:, own] + xp[left].T @ np.linalg.solve(middle, xp[left, own])
    return -column / column[own]


def _exact_inverse(r: np.ndarray, acts: np.ndarray, sources: np.ndarray, tikhonov: float) -> np.ndarray | None:
    """The closed form without penalty, where there is one perturbation of each source and of nothing else."""
    own = acts[:, sources]
    if tikhonov > 0 or own.shape[0] != own.shape[1] or not (own.sum(0) == 1).all() or not (acts.sum(1) == 1).all():
        return None
    x = r[:, sources]
    if np.linalg.matrix_rank(x) < len(x):
        return None
    inverse = np.linalg.inv(x)  # (S, K)
    out = inverse @ r
    of = own.argmax(axis=0)  # the perturbation that acts on each source
    for j, gene in enumerate(sources):
        out[:, gene] = -inverse[:, of[j]] / inverse[j, of[j]]
    return out


def sparse_response_form(
    responses: np.ndarray,
    acts_on: np.ndarray,
    sources: np.ndarray,
    l1: float = 0.05,
    tikhonov: float = 1e-3,
    *,
    n_iter: int = 100,
    tolerance: float = 1e-3,
) -> np.ndarray:
    r"""As :func:`response_form` with an L1 penalty: for fewer perturbations than genes, where few edges are expected.

    All genes are solved together by the alternating direction method of multipliers :cite:p:`Boyd2011`: one
    factorisation for all, a correction of low rank for the perturbations that act on a gene.

    Parameters
    ----------
    responses, acts_on, sources, tikhonov
        As for :func:`response_form`. Any gene may be a source here.
    l1
        Penalty of each gene, as a share of the smallest one that leaves it without any source.
    n_iter
        Most iterations.
    tolerance
        Largest change of a weight at which to stop, relative to the largest weight.

    Returns
    -------
    Effects (S, d), rows are sources, with exact zeros; -1 where a source is its own target.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> responses = np.array([[1.0, 0.5, 0.25], [0, 1.0, 0.5], [0, 0, 1.0]])  # a chain
    >>> effects = scc.grn.sparse_response_form(responses, np.eye(3, dtype=bool), np.arange(3))
    >>> effects.shape, bool(abs(effects[0, 2]) < abs(effects[0, 1]))
    ((3, 3), True)
    """
    r, acts = _checked_responses(responses, acts_on)
    if not 0 < l1 < 1:
        raise SetupError(f"l1 is a share between 0 and 1, got {l1}.")
    sources = np.asarray(sources, dtype=int)
    scale = np.sqrt((r**2).mean(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    kind = np.float32 if r.size > 1e6 else np.float64  # half the time and memory where it counts
    y = (r / scale).astype(kind)
    x = np.ascontiguousarray(y[:, sources])
    s = x.shape[1]
    gram = x.T @ x
    ridge = tikhonov * max(float(np.trace(gram)) / s, 1e-12)
    rho = max(float(np.trace(gram)) / s, 1e-12)
    lower = np.linalg.cholesky(gram.astype(np.float64) + (ridge + rho) * np.eye(s))
    p = np.linalg.inv(lower)
    p = (p.T @ p).astype(kind)
    weighted = np.where(acts, 0, y).astype(kind)  # perturbations of a gene say nothing about what acts on it
    target = x.T @ weighted
    own = np.zeros((s, y.shape[1]), dtype=bool)
    own[np.arange(s), sources] = True
    target[own] = 0
    downdate = _Downdate(x, p, acts)
    penalty = l1 * np.abs(target).max(axis=0) / rho
    z = np.zeros_like(target)
    dual = np.zeros_like(target)
    for _ in range(n_iter):
        beta = downdate(p @ (target + rho * (z - dual)))
        before, total = z, beta + dual
        z = np.sign(total) * np.maximum(np.abs(total) - penalty, 0)
        z[own] = 0
        dual = total - z
        if np.abs(z - before).max() <= tolerance * max(float(np.abs(z).max()), 1e-12):
            break
    out = z.astype(np.float64) * scale / scale[sources][:, None]
    out[own] = -1.0
    return out


class _Downdate:
    """Solutions of the regularised normal equations without the perturbations that act on each gene."""

    def __init__(self, x: np.ndarray, p: np.ndarray, acts: np.ndarray) -> None:
        self._genes = np.flatnonzero(acts.sum(axis=0) == 1)
        rows = acts[:, self._genes].argmax(axis=0)
        self._x = x[rows].T  # (S, genes)
        self._px = p @ self._x
        self._gap = 1 - (self._x * self._px).sum(axis=0)
        self._several = {}
        for gene in np.flatnonzero(acts.sum(axis=0) > 1):
            e = x[acts[:, gene]]
            pe = p @ e.T
            self._several[int(gene)] = (e, pe @ np.linalg.inv(np.eye(len(e)) - e @ pe))

    def __call__(self, solution: np.ndarray) -> np.ndarray:
        g = self._genes
        part = solution[:, g]
        solution[:, g] = part + self._px * ((self._x * part).sum(axis=0) / self._gap)
        for gene, (e, correction) in self._several.items():
            solution[:, gene] += correction @ (e @ solution[:, gene])
        return solution


def directed_drift(
    precision: np.ndarray,
    responses: np.ndarray,
    acts_on: np.ndarray,
    *,
    damp: float = 0.0,
    n_iter: int = 2000,
) -> np.ndarray:
    r"""Drift matrix with the stationary covariance at hand whose perturbations act on their targets only.

    Every drift :math:`A = -(I + Q) S^{-1}` with antisymmetric Q has the same stationary law under unit diffusion
    (:math:`dx = A x\,dt + \sqrt 2\,dW`). A score network gives Q = 0. Here Q is the one for which
    :math:`(I + Q) S^{-1} R` vanishes off the targets, by least squares; d - 1 perturbed genes determine it.

    Parameters
    ----------
    precision
        :math:`S^{-1}`, minus the Jacobian of the score at the control state (d, d).
    responses
        Changes of the stationary mean (K, d).
    acts_on
        Boolean (K, d).
    damp
        Ridge penalty on Q, relative to the mean square of the equations' coefficients.
    n_iter
        Most iterations beyond 60 genes, where the equations are solved iteratively.

    Returns
    -------
    A (d, d), rows are targets. Its unit of time is that of unit diffusion.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.linalg import solve_continuous_lyapunov
    >>> import sccausal as scc
    >>> drift = np.array([[-1.0, 0.0], [0.8, -1.0]])  # rows are targets: the first gene acts on the second
    >>> covariance = solve_continuous_lyapunov(drift, -2 * np.eye(2))
    >>> responses = -np.linalg.inv(drift).T  # one perturbation of each gene
    >>> found = scc.grn.directed_drift(np.linalg.inv(covariance), responses, np.eye(2, dtype=bool))
    >>> np.allclose(found, drift)
    True
    """
    r, acts = _checked_responses(responses, acts_on)
    s = np.asarray(precision, dtype=np.float64)
    d = r.shape[1]
    if s.shape != (d, d):
        raise InputDataError(f"The precision is {s.shape}, but there are {d} genes.")
    s = (s + s.T) / 2
    y = r @ s  # (K, d): row k is S^-1 times the response
    free = ~acts
    if d <= _DENSE_GENES:
        q = _antisymmetric_exact(y, free, damp)
    else:
        q = _antisymmetric_iterative(y, free, damp, n_iter)
    return -(np.eye(d) + q) @ s


def _antisymmetric_exact(y: np.ndarray, free: np.ndarray, damp: float) -> np.ndarray:
    d = y.shape[1]
    first, second = np.triu_indices(d, k=1)
    unknowns = np.arange(len(first))
    rows = []
    right = []
    for i in range(d):
        used = np.flatnonzero(free[:, i])
        block = np.zeros((len(used), len(first)))
        up, down = first == i, second == i  # Q_ij = q for i < j and -q for the turned pair
        block[:, unknowns[up]] = y[np.ix_(used, second[up])]
        block[:, unknowns[down]] = -y[np.ix_(used, first[down])]
        rows.append(block)
        right.append(-y[used, i])
    matrix, target = np.concatenate(rows), np.concatenate(right)
    if damp > 0:
        size = np.sqrt(damp * max(float((matrix**2).sum()) / len(first), 1e-300))
        matrix = np.concatenate([matrix, size * np.eye(len(first))])
        target = np.concatenate([target, np.zeros(len(first))])
    found = np.linalg.lstsq(matrix, target, rcond=None)[0]
    q = np.zeros((d, d))
    q[first, second] = found
    return q - q.T


def _antisymmetric_iterative(y: np.ndarray, free: np.ndarray, damp: float, n_iter: int) -> np.ndarray:
    k, d = y.shape
    mask = free.astype(np.float64)

    def forward(flat: np.ndarray) -> np.ndarray:
        q = flat.reshape(d, d)
        return (mask * (y @ (q - q.T).T)).ravel()

    def backward(flat: np.ndarray) -> np.ndarray:
        part = (mask * flat.reshape(k, d)).T @ y
        return (part - part.T).ravel()

    operator = LinearOperator((k * d, d * d), matvec=forward, rmatvec=backward, dtype=np.float64)
    # with every unknown written twice the coefficients are twice as large
    size = np.sqrt(damp * 2 * float((y**2).sum()) / d) if damp > 0 else 0.0
    found = lsmr(operator, -(mask * y).ravel(), damp=size, atol=1e-13, btol=1e-13, maxiter=n_iter)[0].reshape(d, d)
    return found - found.T


def _mean_eigenvalue(x: np.ndarray) -> float:
    return max(float((x**2).sum()) / min(x.shape), 1e-300)


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise InputDataError(f"Drifts and states must be (perturbations, genes) both; got {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputDataError("Drifts or states hold values that are not finite.")
    return a, b


def _checked_responses(responses: np.ndarray, acts_on: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r, acts = np.asarray(responses, dtype=np.float64), np.asarray(acts_on, dtype=bool)
    if r.ndim != 2 or r.shape != acts.shape:
        raise InputDataError(f"Responses and `acts_on` must be (perturbations, genes); got {r.shape} and {acts.shape}.")
    if not np.isfinite(r).all():
        raise InputDataError("The responses hold values that are not finite.")
    return r, acts


__all__ = [
    "Diagnostics",
    "diagnostics",
    "directed_drift",
    "drift_form",
    "response_form",
    "sparse_response_form",
    "symmetry",
]
