"""Ceilings that see the true cells, and a negative control that sees shuffled labels."""

from __future__ import annotations

from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pandas as pd

from sccausal._errors import SetupError
from sccausal.baselines._base import Baseline, Source, _dense
from sccausal.baselines._shift import shift_cells
from sccausal.data import prediction_anndata


class TechnicalDuplicate(Baseline):
    """Ceiling: one half of the true cells predicts the other half.

    ``fit`` takes the *test* cells (and their controls). ``predict`` returns the first half of the cells of each
    intervention, drawn within cell types; score it against :meth:`held_back`, the other half. The seed of the halves is
    that of the constructor; source cells given to ``predict`` only say which cell types are asked for.

    Parameters
    ----------
    seed
        Seed of the split.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> ceiling = scc.baselines.TechnicalDuplicate().fit(adata, intervention_key="intervention", control="control")
    >>> half, other = ceiling.predict(interventions=["G0007"]), ceiling.held_back(["G0007"])
    >>> half.n_obs, other.n_obs
    (13, 14)
    """

    name: ClassVar[str] = "duplicate"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(clip="zero")
        self.seed = int(seed)

    def fit(self, adata: ad.AnnData, **keys: Any) -> TechnicalDuplicate:
        """Read the true cells; keys as for :meth:`Baseline.fit`."""
        super().fit(adata, **keys)
        self._obs = adata.obs.copy()
        return self

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        rng = np.random.default_rng(self.seed)
        self._X, self._types, self._codes = X, types, codes
        self._first = np.zeros(len(codes), dtype=bool)
        for group in pd.Series(range(len(codes))).groupby([codes, types], sort=True).indices.values():
            self._first[rng.permutation(group)[: len(group) // 2]] = True

    def held_back(self, interventions: Any = None) -> ad.AnnData:
        """The other half of the cells, in the prediction schema: what the duplicate is scored against."""
        setup = self._fitted()
        cells, frames, labels = [], [], []
        for row in self._wanted(interventions, None):
            here = self._half(row, None, first=False)
            cells.append(_dense(self._X[here]))
            frames.append(self._obs.iloc[here])
            labels += [self._codec.label(row, with_dose=True)] * len(here)
        return prediction_anndata(
            np.concatenate(cells),
            self._carried(pd.concat(frames), setup),
            self._var,
            interventions=labels,
            condition=labels if setup.condition_key is not None else None,
            units="log1p_norm",
            method="held-back half",
        )

    def _half(self, row: np.ndarray, types: np.ndarray | None, *, first: bool) -> np.ndarray:
        k = self._effects.find(row)
        here = (self._codes == (-1 if k is None else k)) & (self._first == first)
        if types is not None:
            here &= np.isin(self._types.astype(str), np.unique(types.astype(str)))
        if not here.any():
            raise SetupError(
                f"There are no true cells of {self._codec.label(row, with_dose=True)!r} to split in halves "
                f"(two per cell type at least); seen: {', '.join(self.interventions[:8])}."
            )
        return np.flatnonzero(here)

    def _cells(self, source: Source, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        here = self._half(row, source.types, first=True)
        return _dense(self._X[here]).copy(), self._obs.iloc[here]


class InterpolatedDuplicate(TechnicalDuplicate):
    """Ceiling with less noise: half of the true cells, pulled per gene towards the mean of the other interventions.

    A gene keeps the share ``max(0, 1 - v / d^2)`` of its deviation d from the mean of all other interventions of its
    type (the control mean if there is none), v the squared standard error of the half's mean: where half of the cells
    says nothing reliable, the mean baseline speaks. After the interpolated duplicate of :cite:p:`Mejia2025`.

    Parameters
    ----------
    seed
        Seed of the halves.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> ceiling = scc.baselines.InterpolatedDuplicate().fit(adata, intervention_key="intervention", control="control")
    >>> ceiling.predict(interventions=["G0007"]).n_obs  # half of the cells
    13
    """

    name: ClassVar[str] = "interpolated duplicate"

    def _cells(self, source: Source, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        X, obs = super()._cells(source, row, rng)
        types = self._types[self._half(row, source.types, first=True)]
        k = self._effects.find(row)
        for name in pd.unique(pd.Series(types)):
            here = np.flatnonzero(types == name)
            control = self._effects.controls.get(str(name), self._effects.pooled_control)
            others = [e.delta for (t, i), e in self._effects.effects.items() if t == str(name) and i != k]
            anchor = control + (np.mean(others, axis=0) if others else 0.0)
            mean, variance = X[here].mean(axis=0), X[here].var(axis=0, ddof=1) / len(here) if len(here) > 1 else np.inf
            gap = mean - anchor
            keep = np.maximum(1.0 - np.divide(variance, gap**2, out=np.full_like(gap, np.inf), where=gap != 0), 0.0)
            X[here] = shift_cells(X[here], (keep - 1.0) * gap, "mean")
        return X, obs


class PermutedLabels(Baseline):
    """Negative control: another baseline, trained on labels of the perturbed variable shuffled within cell types.

    Parameters
    ----------
    base
        Unfitted baseline to train on shuffled labels, e.g. ``Additive()``.
    seed
        Seed of the shuffle.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> wrong = scc.baselines.PermutedLabels(scc.baselines.Additive()).fit(
    ...     adata, intervention_key="intervention", control="control"
    ... )
    >>> wrong.predict(interventions=["G0007"]).shape
    (40, 30)
    """

    name: ClassVar[str] = "permuted labels"

    def __init__(self, base: Baseline, *, seed: int = 0) -> None:
        super().__init__(clip=base.clip)
        self.base, self.seed = base, int(seed)

    def fit(self, adata: ad.AnnData, **keys: Any) -> PermutedLabels:
        """Shuffle the labels of a copy and train on it; keys as for :meth:`Baseline.fit`."""
        super().fit(adata, **keys)
        setup = self._fitted()
        key = setup.condition_key if setup.intervention_key is None else setup.intervention_key
        order = self._shuffled(adata, setup.labels_key)
        shuffled = ad.AnnData(adata.X, obs=adata.obs.copy(), var=adata.var, layers=dict(adata.layers))
        if key in adata.obs:
            shuffled.obs[key] = adata.obs[key].to_numpy()[order]
        else:
            shuffled.obsm[key] = adata.obsm[key].iloc[order].set_axis(adata.obs_names)
        self.base.fit(shuffled, **keys)
        return self

    def _shuffled(self, adata: ad.AnnData, labels_key: str | None) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        order = np.arange(adata.n_obs)
        groups = np.zeros(adata.n_obs) if labels_key is None else adata.obs[labels_key].astype(str).to_numpy()
        for group in pd.unique(pd.Series(groups)):
            here = np.flatnonzero(groups == group)
            order[here] = rng.permutation(here)
        return order

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return self.base._delta(row, name, self.base._effects.controls.get(name, control))
