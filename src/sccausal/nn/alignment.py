r"""How well latent variables measure known activities one by one, and the linear map that makes them do so best.

Everything rests on second moments. With :math:`P` the inverse correlation matrix of the activities and :math:`C` their
correlations with a latent, the partial correlation of activity i and the latent given all other activities is
:math:`(PC)_i / \sqrt{P_{ii}(v - C^T P C) + (PC)_i^2}`, v the variance of the latent. A permutation of the activities
changes the small matrices only, so thousands of them cost seconds, whatever the number of cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sccausal._errors import InputDataError, SetupError

Constraint = Literal["orthogonal", "invertible"]
_RIDGE = 1e-6


@dataclass(frozen=True)
class Moments:
    """Correlations of activities T (k) and latents Z (d).

    Attributes
    ----------
    tt, tz, zz
        (..., k, k), (..., k, d) and (..., d, d); activities have unit variance, latents too unless said otherwise.
    n
        Cells behind them.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import moments
    >>> found = moments(torch.eye(4)[:, :2], torch.eye(4)[:, 1:])
    >>> found.tz.shape, found.n
    (torch.Size([2, 3]), 4)
    """

    tt: Tensor
    tz: Tensor
    zz: Tensor
    n: int


def moments(activities: Tensor | np.ndarray, latents: Tensor | np.ndarray) -> Moments:
    """Correlations of activities (n, k) and latents (n, d), in double precision for arrays.

    Parameters
    ----------
    activities, latents
        (n, k) and (n, d), of the same cells.

    Raises
    ------
    sccausal._errors.InputDataError
        The numbers of cells differ, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.nn import moments
    >>> activities, latents = np.random.default_rng(0).normal(size=(2, 50, 3))
    >>> moments(activities, latents).tz.shape  # activities x latents
    torch.Size([3, 3])
    """
    t, z = _tensor(activities), _tensor(latents)
    if len(t) != len(z) or len(t) < 3:
        raise InputDataError(
            f"Activities and latents must cover the same cells, three at least; got {len(t)}, {len(z)}."
        )
    if not (bool(torch.isfinite(t).all()) and bool(torch.isfinite(z).all())):
        raise InputDataError("Activities and latents must be finite; found NaN or infinity.")
    t, z = _standardised(t), _standardised(z)
    n = len(t)
    return Moments(t.T @ t / n, t.T @ z / n, z.T @ z / n, n)


def partial_correlation(
    activities: Tensor | np.ndarray | Moments, latents: Tensor | np.ndarray | None = None, ridge: float = _RIDGE
) -> Tensor:
    r"""Partial correlation of each activity and each latent given all other activities.

    Parameters
    ----------
    activities
        Activities (n, k), or the :class:`Moments` of activities and latents.
    latents
        Latents (n, d); not with moments.
    ridge
        Added to the variances of the activities, for activities that are nearly combinations of each other.

    Returns
    -------
    :math:`\rho(Z_j, T_i \mid T_{-i})` as (..., k, d), differentiable.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import partial_correlation
    >>> activities = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> partial_correlation(activities, activities).round().abs().tolist()  # activities x latents
    [[1.0, 0.0], [0.0, 1.0]]
    """
    m = activities if isinstance(activities, Moments) else moments(activities, _given(latents))
    P = _precision(m.tt, ridge)
    return _partial(P, m.tz, m.zz.diagonal(dim1=-2, dim2=-1))


def _partial(P: Tensor, C: Tensor, variance: Tensor) -> Tensor:
    PC = P @ C
    unexplained = (variance - (C * PC).sum(-2)).clamp_min(1e-9)
    own = P.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return PC / torch.sqrt(own * unexplained.unsqueeze(-2) + PC.square() + 1e-12)


def tmex_score(
    activities: Tensor | np.ndarray | Moments,
    latents: Tensor | np.ndarray | None = None,
    *,
    columns: np.ndarray | Tensor | None = None,
    exclusive: float = 0.0,
    ridge: float = _RIDGE,
) -> Tensor:
    r"""Mean partial correlation of matched activities and latents, gCRL's score of measurement exclusivity.

    Parameters
    ----------
    activities, latents
        As in :func:`partial_correlation`.
    columns
        Latent of each activity (k,); default activity i and latent i.
    exclusive
        Weight of the mean \|partial correlation\| of the pairs that do not match, which is subtracted.
    ridge
        As in :func:`partial_correlation`.

    Returns
    -------
    Differentiable tensor (...) in -1..1; 1 is perfect. It is another quantity than :func:`tmex_distance`, the original
    of :cite:p:`Yao2025`.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import tmex_score
    >>> activities = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> round(tmex_score(activities, activities).item(), 2)
    1.0
    """
    rho = partial_correlation(activities, latents, ridge)
    k, d = rho.shape[-2:]
    matched = torch.arange(k) if columns is None else torch.as_tensor(np.asarray(columns), dtype=torch.long)
    if len(matched) != k or k > d:
        raise SetupError(f"{k} activities need a latent each; there are {d} latents and {len(matched)} matches.")
    picked = rho[..., torch.arange(k), matched]
    score = picked.mean(-1)
    if exclusive and k * d > k:
        rest = (rho.abs().sum((-2, -1)) - picked.abs().sum(-1)) / (k * d - k)
        score = score - exclusive * rest
    return score


def tmex_distance(
    activities: Tensor | np.ndarray,
    latents: Tensor | np.ndarray,
    *,
    expected: np.ndarray | None = None,
    alpha: float = 0.05,
    ridge: float = _RIDGE,
) -> int:
    """Test-based measurement exclusivity: wrong decisions of conditional-independence tests :cite:p:`Yao2025`.

    Parameters
    ----------
    activities, latents
        (n, k) and (n, d).
    expected
        Boolean (k, d): which latent is to measure which activity; default the identity.
    alpha
        Level of all tests together (Bonferroni); Fisher's z of the partial correlations.
    ridge
        As in :func:`partial_correlation`.

    Returns
    -------
    Hamming distance between ``expected`` and the decisions; 0 is best, k * d worst.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import tmex_distance
    >>> activities = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> tmex_distance(activities, activities), tmex_distance(activities, activities.flip(1))
    (0, 4)
    """
    from scipy.stats import norm

    rho = partial_correlation(activities, latents, ridge).detach().numpy()
    k, d = rho.shape
    pattern = np.eye(k, d, dtype=bool) if expected is None else np.asarray(expected, dtype=bool)
    if pattern.shape != (k, d):
        raise SetupError(f"`expected` is {pattern.shape}; {k} activities and {d} latents need {(k, d)}.")
    free = len(activities) - (k - 1) - 3
    if free < 1:
        raise InputDataError(f"{len(activities)} cells are too few to condition on {k - 1} activities.")
    z = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12)) * np.sqrt(free)
    dependent = np.abs(z) > norm.isf(alpha / (2 * k * d))
    return int((dependent != pattern).sum())


# ------------------------------------------------------------------ the best linear map


@dataclass(frozen=True)
class Alignment:
    """Linear map from latents to activities.

    Attributes
    ----------
    A
        (d, k): aligned latents are ``standardised latents @ A``.
    scores
        Partial correlation of each activity with its aligned latent (k,).
    tmex
        Their mean.
    condition
        Condition number of ``A``: large where two activities ask for nearly the same direction.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import align
    >>> activities = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> found = align(activities, activities @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]))  # latents mix them
    >>> found.A.shape, round(found.tmex, 2)
    ((2, 2), 1.0)
    """

    A: np.ndarray
    scores: np.ndarray
    tmex: float
    condition: float


def best_scores(m: Moments, ridge: float = _RIDGE) -> Tensor:
    """Largest partial correlation any linear combination of the latents has with each activity (..., k).

    The objective splits by column, and its optimum is the multiple partial correlation,
    ``sqrt(1 - P_ii / J_ii)`` with P the precision of the activities and J that of activities and latents together.

    Parameters
    ----------
    m
        Moments of k activities and d latents.
    ridge
        As in :func:`partial_correlation`.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import best_scores, moments
    >>> activities = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> (best_scores(moments(activities, activities)) > 0.99).tolist()
    [True, True]
    """
    alone = _precision(m.tt, ridge).diagonal(dim1=-2, dim2=-1)
    given = _conditional(m, ridge)
    together = torch.linalg.inv(given).diagonal(dim1=-2, dim2=-1)
    return torch.sqrt((1 - alone / together).clamp(0.0, 1.0))


def align(
    activities: Tensor | np.ndarray | Moments,
    latents: Tensor | np.ndarray | None = None,
    *,
    constraint: Constraint | None = None,
    exclusive: float = 0.0,
    ridge: float = _RIDGE,
    n_steps: int = 600,
    lr: float = 0.02,
    n_starts: int = 1,
    seed: int = 0,
) -> Alignment:
    """Linear map of the latents that maximises :func:`tmex_score`.

    Parameters
    ----------
    activities, latents
        (n, k) and (n, d), or their :class:`Moments`.
    constraint
        ``None``: closed form, the regression of each activity on the latents given the other activities.
        ``"orthogonal"``: a rotation of whitened latents, ``"invertible"``: a penalty on a small determinant; both by
        gradient, for k = d.
    exclusive
        As in :func:`tmex_score`; above 0 the map is found by gradient.
    ridge
        As in :func:`partial_correlation`.
    n_steps, lr
        Steps and learning rate of Adam.
    n_starts
        Random starts of the gradient besides the closed form; the best result counts.
    seed
        Seed of the starts.

    Raises
    ------
    sccausal._errors.SetupError
        A constraint is unknown or needs as many latents as activities.

    Examples
    --------
    >>> import torch
    >>> from sccausal.nn import align
    >>> activities = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> latents = activities @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])  # a mixture of them
    >>> round(align(activities, latents).tmex, 2)
    1.0
    """
    m = activities if isinstance(activities, Moments) else moments(activities, _given(latents))
    k, d = m.tz.shape[-2:]
    start = _closed_form(m, ridge)
    if constraint is None and not exclusive:
        A = start
    else:
        A = constrained_maps(m, constraint, exclusive, ridge, n_steps, lr, n_starts, seed)[0]
    rho = partial_correlation(Moments(m.tt, m.tz @ A, A.T @ m.zz @ A, m.n), ridge=ridge)
    scores = rho.diagonal().double().numpy()
    return Alignment(A.double().numpy(), scores, float(scores.mean()), float(np.linalg.cond(A.double().numpy())))


def _closed_form(m: Moments, ridge: float) -> Tensor:
    # coefficients of the latents in the regression of T_i on the latents and T_-i, up to a positive factor
    K = torch.linalg.inv(_conditional(m, ridge))
    zz = _with_ridge(m.zz, ridge)
    A = torch.linalg.solve(zz, m.tz.transpose(-1, -2)) @ K
    return A / torch.sqrt((A * (m.zz @ A)).sum(-2, keepdim=True).clamp_min(1e-12))


@torch.enable_grad()
def constrained_maps(
    m: Moments,
    constraint: Constraint | None,
    exclusive: float = 0.0,
    ridge: float = _RIDGE,
    n_steps: int = 600,
    lr: float = 0.02,
    n_starts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Maps (1 + n_starts, d, k) found from the closed form and from random starts at once, best first."""
    k, d = m.tz.shape[-2:]
    if constraint not in (None, "orthogonal", "invertible"):
        raise SetupError(f"Unknown constraint {constraint!r}; use 'orthogonal', 'invertible' or None.")
    if constraint is not None and k != d:
        raise SetupError(f"constraint={constraint!r} needs as many latents as activities; there are {d} and {k}.")
    m = Moments(m.tt.double(), m.tz.double(), m.zz.double(), m.n)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n_starts, d, k, generator=generator, dtype=torch.float64)
    whiten = torch.eye(d, dtype=torch.float64)
    first = _closed_form(m, ridge)
    if constraint == "orthogonal":
        value, vector = torch.linalg.eigh(m.zz)
        whiten = vector @ torch.diag(value.clamp_min(1e-9).rsqrt()) @ vector.T
        first = torch.linalg.solve(whiten, first)
    B = torch.cat([first[None], random]).requires_grad_(True)
    optimiser = torch.optim.Adam([B], lr=lr)

    def of(B: Tensor) -> Tensor:
        if constraint != "orthogonal":
            return B
        u, _, v = torch.linalg.svd(B)  # the nearest rotation
        return whiten @ (u @ v)

    def score(A: Tensor) -> Tensor:
        return tmex_score(
            Moments(m.tt, m.tz @ A, A.transpose(-1, -2) @ m.zz @ A, m.n), exclusive=exclusive, ridge=ridge
        )

    for _ in range(n_steps):
        optimiser.zero_grad()
        A = of(B)
        loss = -score(A).sum()
        if constraint == "invertible":
            unit = A / A.norm(dim=-2, keepdim=True).clamp_min(1e-9)
            loss = loss - 0.01 * torch.linalg.slogdet(unit)[1].sum()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        A = of(B)
        return A[torch.argsort(score(A), descending=True)]


# ------------------------------------------------------------------ matchings


def matching(scores: Tensor | np.ndarray) -> np.ndarray:
    """Column of each row with the largest sum of scores (Hungarian method), (k,) for scores (k, d) with k <= d."""
    from scipy.optimize import linear_sum_assignment

    values = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    if values.shape[0] > values.shape[1]:
        raise SetupError(f"{values.shape[0]} activities cannot be matched to {values.shape[1]} latents one by one.")
    return linear_sum_assignment(-values)[1]


def sinkhorn(logits: Tensor, n_iter: int = 50) -> Tensor:
    """Nearly doubly stochastic matrix from logits (k, k) by alternating normalisation :cite:p:`Mena2018`."""
    log_p = logits
    for _ in range(n_iter):
        log_p = log_p - torch.logsumexp(log_p, -1, keepdim=True)
        log_p = log_p - torch.logsumexp(log_p, -2, keepdim=True)
    return log_p.exp()


def straight_through_permutation(logits: Tensor, temperature: float = 0.1, n_iter: int = 50) -> Tensor:
    """Permutation matrix (k, k) nearest to the logits, with the gradient of :func:`sinkhorn`."""
    soft = sinkhorn(logits / temperature, n_iter)
    hard = torch.zeros_like(soft)
    hard[torch.arange(len(soft)), torch.as_tensor(matching(soft))] = 1.0
    return hard + soft - soft.detach()


# ------------------------------------------------------------------ inner parts


def _conditional(m: Moments, ridge: float) -> Tensor:
    """Covariance of the activities given all latents."""
    zz = _with_ridge(m.zz, ridge)
    return _with_ridge(m.tt - m.tz @ torch.linalg.solve(zz, m.tz.transpose(-1, -2)), ridge)


def _precision(tt: Tensor, ridge: float) -> Tensor:
    return torch.linalg.inv(_with_ridge(tt, ridge))


def _with_ridge(matrix: Tensor, ridge: float) -> Tensor:
    return matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _given(latents: Tensor | np.ndarray | None) -> Tensor | np.ndarray:
    if latents is None:
        raise SetupError("Latents are missing; pass them beside the activities, or pass Moments.")
    return latents


def _tensor(x: Tensor | np.ndarray) -> Tensor:
    t = x if isinstance(x, Tensor) else torch.as_tensor(np.ascontiguousarray(x, dtype=np.float64))
    return t.unsqueeze(1) if t.ndim == 1 else t


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    spread = centred.square().mean(0).sqrt()
    # a constant column is correlated with nothing
    return centred / torch.where(spread > 1e-8, spread, torch.full_like(spread, float("inf")))
