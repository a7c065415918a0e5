"""Bagged ridge regression of every target on its candidate regulators, from moments that the targets share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sccausal.grn._edge_test import bag_p_values, moderated_p_values, residual_variance
from sccausal.grn._parallel import run_tasks

PValue = Literal["bootstrap", "bags"]
_SHARE_FROM = 4  # targets with the same candidates, from which one factorisation for all pays
_STACK = 2**22  # entries of the systems that are solved at once (32 MB)


@dataclass(frozen=True)
class Edges:
    """Edges with their bagged coefficients, arrays of shape (n_edges,)."""

    source: np.ndarray  # position among the regulators
    target: np.ndarray  # position among the targets
    weight: np.ndarray  # mean coefficient over the bags that hold the regulator
    std: np.ndarray  # standard deviation over these bags
    n_bags: np.ndarray  # number of these bags
    p_value: np.ndarray


@dataclass(frozen=True)
class _Stack:
    """Targets with equally many candidates, each with its own."""

    candidates: np.ndarray  # (m, K) positions among the regulators
    targets: np.ndarray  # (m,)
    edges: np.ndarray  # (m, K) places of the coefficients


@dataclass(frozen=True)
class _Shared:
    """Targets with one set of candidates; those that are regulators themselves stand in it and are left out."""

    candidates: np.ndarray  # (K,)
    outside: np.ndarray  # targets that are no candidates
    outside_edges: np.ndarray  # (m_out, K)
    inside: np.ndarray  # targets that are candidates
    inside_at: np.ndarray  # their place in `candidates`
    inside_edges: np.ndarray  # (m_in, K); -1 at the target itself


def fit_edges(
    regulators: np.ndarray,
    targets: np.ndarray,
    candidates: Sequence[np.ndarray],
    own: np.ndarray,
    *,
    alpha: float = 10.0,
    n_bags: int = 20,
    feature_share: float = 0.8,
    p_value: PValue = "bootstrap",
    n_jobs: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Edges:
    r"""Ridge regression of each target on its candidates, over bootstraps of the cells.

    Each bag draws cells with replacement and, for each target, a share of its candidates. A bag costs one product
    :math:`X^T W [X, Y]` for all targets; the target's system is then cut out of it. Candidates are drawn by one random
    order of the regulators per bag, so that targets with the same candidates share one factorisation, and a regulator's
    own regression is read from the inverse of that system: :math:`\beta_i = -P_{ij} / P_{jj}`.

    Parameters
    ----------
    regulators
        Standardised expression of the regulators, (n_cells, n_regulators).
    targets
        Expression of the targets, (n_cells, n_targets).
    candidates
        For each target the positions of its candidates among the regulators, ascending, itself not among them.
    own
        For each target its own position among the regulators, or -1.
    alpha
        Ridge penalty on the sum of squared residuals.
    n_bags
        Number of bootstraps.
    feature_share
        Share of the candidates in a bag.
    p_value
        ``"bootstrap"``: mean over the standard deviation of the bags, moderated
        (:func:`~sccausal.grn._edge_test.moderated_p_values`); ``"bags"``: one-sample t-test over the bags.
    n_jobs, progress, seed
        As for :func:`~sccausal.grn.bagged_ridge`.
    """
    sizes = np.array([len(c) for c in candidates], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    source = np.concatenate([*candidates, np.empty(0, np.int64)]).astype(np.int64)
    plan = _plan(candidates, starts, own)
    n_cells, n_regulators = regulators.shape
    rng = np.random.default_rng(seed)
    # a target that is a regulator is a multiple of its column in the shared system
    own_scale = np.where(own >= 0, targets.std(0), 1.0)
    tasks: list[tuple[Any, ...]] = []
    for _ in range(n_bags):
        drawn = np.bincount(rng.integers(n_cells, size=n_cells), minlength=n_cells)
        order = rng.permutation(n_regulators)
        tasks.append(
            (regulators, targets, own_scale, plan, drawn, order, float(alpha), float(feature_share), len(source))
        )
    total, squares, count = np.zeros(len(source)), np.zeros(len(source)), np.zeros(len(source))
    shift: np.ndarray | None = None
    for coefficients in run_tasks(
        _bag, tasks, n_jobs=n_jobs, prefer="threads", progress=progress, description="regression"
    ):
        held = np.isfinite(coefficients)
        if shift is None:  # squares about a first guess of the mean lose no digits
            shift = np.where(held, coefficients, 0.0)
        change = np.where(held, coefficients - shift, 0.0)
        total += change
        squares += change * change
        count += held
    if shift is None:
        shift = np.zeros(len(source))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / count
        spread = np.sqrt(np.maximum(squares - count * mean**2, 0.0) / (count - 1))
        weight = np.where(count > 0, mean + shift, 0.0)
    target = np.repeat(np.arange(len(candidates)), sizes)
    if p_value == "bags":
        p = bag_p_values(weight, spread, count)
    else:
        gram = regulators.T @ regulators  # standardised, so already centred
        gram[np.diag_indices_from(gram)] += alpha
        dof = np.maximum(n_cells - 1 - sizes, 1)[target]
        residual = residual_variance(regulators, targets, source, target, weight)[target] * n_cells / dof
        p = moderated_p_values(
            weight, spread, count, np.sqrt(residual * _inverse_diagonals(gram, plan, len(source))), dof
        )
    return Edges(source, target, weight, spread, count.astype(np.int64), p)


def _plan(candidates: Sequence[np.ndarray], starts: np.ndarray, own: np.ndarray) -> list[_Stack | _Shared]:
    """Targets grouped by their candidates where that saves work, else by the number of candidates."""
    groups: dict[bytes, list[int]] = {}
    for j, held in enumerate(candidates):
        if len(held):
            united = held if own[j] < 0 else np.insert(held, np.searchsorted(held, own[j]), own[j])
            groups.setdefault(np.asarray(united, np.int64).tobytes(), []).append(j)
    plan: list[_Stack | _Shared] = []
    alone: dict[int, list[int]] = {}
    for key, members in groups.items():
        united = np.frombuffer(key, np.int64)
        if len(members) >= _SHARE_FROM and len(united) > 2:
            plan.append(_shared(united, np.array(members), starts, own))
            continue
        for j in members:
            alone.setdefault(len(candidates[j]), []).append(j)
    for size, members in alone.items():
        rows = max(1, _STACK // size**2)
        for k in range(0, len(members), rows):
            part = np.array(members[k : k + rows])
            where = starts[part][:, None] + np.arange(size)
            plan.append(_Stack(np.stack([candidates[j] for j in part]), part, where))
    return plan


def _shared(united: np.ndarray, members: np.ndarray, starts: np.ndarray, own: np.ndarray) -> _Shared:
    inside = members[own[members] >= 0]
    outside = members[own[members] < 0]
    at = np.searchsorted(united, own[inside])
    places = np.arange(len(united))
    before = places[None] < at[:, None]
    edges = starts[inside][:, None] + places - np.where(before, 0, 1)
    edges[np.arange(len(inside)), at] = -1
    return _Shared(united, outside, starts[outside][:, None] + places, inside, at, edges)


def _bag(
    regulators: np.ndarray,
    targets: np.ndarray,
    own_scale: np.ndarray,
    plan: Sequence[_Stack | _Shared],
    drawn: np.ndarray,
    order: np.ndarray,
    alpha: float,
    feature_share: float,
    n_edges: int,
) -> np.ndarray:
    """Coefficients of one bag, (n_edges,), NaN where the regulator was not drawn."""
    weighted = regulators * drawn[:, None]
    centre = weighted.sum(0)
    n_cells = len(regulators)
    gram = weighted.T @ regulators - np.outer(centre, centre) / n_cells
    cross = weighted.T @ targets - np.outer(centre, drawn @ targets) / n_cells
    gram[np.diag_indices_from(gram)] += alpha
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    out = np.full(n_edges, np.nan)
    for part in plan:
        if isinstance(part, _Stack):
            _solve_stack(part, gram, cross, rank, feature_share, out)
        else:
            _solve_shared(part, gram, cross, own_scale, rank, feature_share, out)
    return out


def _n_drawn(n: int, share: float) -> int:
    return max(1, int(share * n))


def _solve_stack(
    part: _Stack, gram: np.ndarray, cross: np.ndarray, rank: np.ndarray, share: float, out: np.ndarray
) -> None:
    k = _n_drawn(part.candidates.shape[1], share)
    first = np.argsort(rank[part.candidates], axis=1)[:, :k]
    chosen = np.take_along_axis(part.candidates, first, 1)
    systems = gram[chosen[:, :, None], chosen[:, None, :]]
    right = cross[chosen, part.targets[:, None]]
    solved = np.linalg.solve(systems, right[..., None])[..., 0]
    out[np.take_along_axis(part.edges, first, 1)] = solved


def _solve_shared(
    part: _Shared,
    gram: np.ndarray,
    cross: np.ndarray,
    own_scale: np.ndarray,
    rank: np.ndarray,
    share: float,
    out: np.ndarray,
) -> None:
    n = len(part.candidates)
    order = np.argsort(rank[part.candidates])  # places in `candidates`, by the order of this bag
    if len(part.outside):
        first = order[: _n_drawn(n, share)]
        out[part.outside_edges[:, first]] = _solve(gram, cross, part.candidates[first], part.outside).T
    if not len(part.inside):
        return
    k = _n_drawn(n - 1, share)
    # without the target itself, the first k of the order are the first k + 1 if it is among them
    first = order[: k + 1]
    drawn = np.isin(part.inside_at, first)
    rest = order[:k]
    if (~drawn).any():
        out[part.inside_edges[~drawn][:, rest]] = _solve(gram, cross, part.candidates[rest], part.inside[~drawn]).T
    if drawn.any():
        chosen = part.candidates[first]
        inverse = np.linalg.inv(gram[np.ix_(chosen, chosen)])
        place = np.argsort(first)[np.searchsorted(np.sort(first), part.inside_at[drawn])]
        coefficients = -inverse[:, place] / inverse[place, place] * own_scale[part.inside[drawn]]
        where = part.inside_edges[drawn][:, first]
        out[where[where >= 0]] = coefficients.T[where >= 0]


def _solve(gram: np.ndarray, cross: np.ndarray, chosen: np.ndarray, targets: np.ndarray) -> np.ndarray:
    from scipy.linalg import cho_factor, cho_solve

    factor = cho_factor(gram[np.ix_(chosen, chosen)], lower=True, check_finite=False)
    return cho_solve(factor, cross[np.ix_(chosen, targets)], check_finite=False)


def _inverse_diagonals(gram: np.ndarray, plan: Sequence[_Stack | _Shared], n_edges: int) -> np.ndarray:
    """For every edge its entry on the diagonal of the inverse of its target's system, (n_edges,)."""
    out = np.zeros(n_edges)
    for part in plan:
        if isinstance(part, _Stack):
            systems = gram[part.candidates[:, :, None], part.candidates[:, None, :]]
            out[part.edges] = np.diagonal(np.linalg.inv(systems), axis1=1, axis2=2)
            continue
        inverse = np.linalg.inv(gram[np.ix_(part.candidates, part.candidates)])
        diagonal = np.diagonal(inverse)
        out[part.outside_edges] = diagonal
        # without the target itself: the inverse of a system from which one row and column were taken
        at = part.inside_at
        left = diagonal - inverse[at] ** 2 / diagonal[at, None]
        held = part.inside_edges >= 0
        out[part.inside_edges[held]] = left[held]
    return out
