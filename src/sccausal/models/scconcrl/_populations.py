"""Mean changes of populations under intervention: what the population loss is fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

_MIN_CELLS = 5

State = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""State of features (n, m), given batch codes (n,) and doses (n, T)."""


@dataclass
class Populations:
    """Mean changes under intervention, one row per population (stratum x batch) and intervention.

    Attributes
    ----------
    dose
        Doses (R, T).
    state
        Mean state of the population's control cells (R, d).
    control
        Their mean features (R, m).
    change
        Observed mean change of the features (R, m).
    variance
        Sampling variance of the change (R, m).
    weight
        Effective number of cells behind the change (R,).
    stratum
        Code of the stratum (R,).
    treated
        Code of the treated group (R,).
    """

    dose: np.ndarray
    state: np.ndarray
    control: np.ndarray
    change: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    stratum: np.ndarray
    treated: np.ndarray

    def __len__(self) -> int:
        return len(self.weight)


@dataclass
class Groups:
    """Moments of the cells that share stratum, batch and intervention, one row per group."""

    stratum: np.ndarray
    batch: np.ndarray
    dose: np.ndarray
    n: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def changes_of(groups: Groups, state_of: State) -> tuple[Populations | None, list[tuple[int, int]]]:
    """Changes of every treated group against the control cells of its stratum and batch, and the groups without any."""
    is_control: np.ndarray = np.abs(groups.dose).sum(axis=1) == 0
    control = {(s, b): i for i, (s, b) in enumerate(zip(groups.stratum, groups.batch, strict=True)) if is_control[i]}
    # the variance of a gene in a handful of cells is drawn towards its variance everywhere
    pooled = (groups.n[:, None] * groups.var).sum(0) / groups.n.sum()
    var = (groups.n[:, None] * groups.var + 10 * pooled) / (groups.n[:, None] + 10) + 1e-3
    treated, matched, unmatched = [], [], []
    for i in np.flatnonzero(~is_control):
        key = (groups.stratum[i], groups.batch[i])
        j = control.get(key)
        if groups.n[i] < _MIN_CELLS:
            continue
        if j is None or groups.n[j] < _MIN_CELLS:
            unmatched.append((int(key[0]), int(key[1])))
            continue
        treated.append(i)
        matched.append(j)
    if not treated:
        return None, unmatched
    n1, n0 = groups.n[treated], groups.n[matched]
    populations = Populations(
        dose=groups.dose[treated],
        state=state_of(groups.mean[matched], groups.batch[matched], groups.dose[matched]),
        control=groups.mean[matched],
        change=groups.mean[treated] - groups.mean[matched],
        variance=var[treated] / n1[:, None] + var[matched] / n0[:, None],
        weight=n1 * n0 / (n1 + n0),
        stratum=np.asarray(matched),
        treated=np.asarray(treated),
    )
    return populations, unmatched


def over_batches(rows: Populations, groups: Groups) -> Populations:
    """Average the changes of one stratum under one intervention over its batches.

    They are differences within a batch, so no batch effect is left in them; kept apart, the small differences in state
    between batches of one stratum would stand beside large differences in noise, and slopes would be fitted to those.
    """
    keys = np.column_stack([groups.stratum[rows.treated], rows.dose])
    _, first, code = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    share = np.zeros((len(first), len(rows)))
    share[np.ravel(code), np.arange(len(rows))] = rows.weight
    weight = share.sum(1)
    share /= weight[:, None]
    return Populations(
        dose=rows.dose[first],
        state=share @ rows.state,
        control=share @ rows.control,
        change=share @ rows.change,
        variance=share**2 @ rows.variance,
        weight=weight,
        stratum=groups.stratum[rows.treated[first]],
        treated=rows.treated[first],
    )


def on_log_of_means(rows: Populations, groups: Groups, natural: Groups) -> Populations:
    """Changes of the logarithm of mean counts: a count model predicts means, and is compared on their scale."""
    level = np.log1p(natural.mean)
    spread = (natural.var + 1e-3) / (1 + natural.mean) ** 2
    one, zero = rows.treated, rows.stratum
    change = level[one] - level[zero]
    variance = spread[one] / groups.n[one, None] + spread[zero] / groups.n[zero, None]
    return replace(rows, change=change, variance=variance)
