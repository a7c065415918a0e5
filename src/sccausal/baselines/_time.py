"""Rules for interventions observed at several times."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.baselines._base import Baseline, Source, _column, _dense
from sccausal.baselines._regression import principal_axes
from sccausal.baselines._rules import target_features
from sccausal.baselines._shift import Clip
from sccausal.data import Intervention

logger = logging.getLogger(__name__)

_STRATUM = "_sccausal_stratum"
_AT = " @ "


class TimeRule(Baseline):
    """A rule that knows times: strata are cell types x times, and cells are predicted from control cells of the time.

    Parameters
    ----------
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_time_course(10, 30, 3, times=(1, 2), seed=0))
    >>> rule = scc.baselines.TimeAdditive().fit(
    ...     adata, intervention_key="intervention", control="control", time_key="time"
    ... )
    >>> isinstance(rule, scc.baselines.TimeRule)
    True
    >>> rule.predict(interventions=rule.interventions[0], times=[1, 2]).obs["time"].unique().tolist()
    [1.0, 2.0]
    """

    name: ClassVar[str] = "time rule"

    def fit(self, adata: ad.AnnData, *, time_key: str | None = None, **keys: Any) -> Baseline:
        """Read training cells.

        Parameters
        ----------
        adata
            Training cells; it is not changed.
        time_key
            Numeric column of ``obs`` with the time of observation; default one time.
        **keys
            As for :meth:`Baseline.fit`.

        Returns
        -------
        The baseline itself.

        Raises
        ------
        As :meth:`Baseline.fit`; also if a time is missing or no number.
        """
        self._labels_key, self._time_key = keys.pop("labels_key", None), time_key
        strata = self._strata(adata, _times(adata, time_key))
        marked = ad.AnnData(
            adata.X,
            obs=adata.obs.assign(**{_STRATUM: strata}),
            var=adata.var,
            layers=dict(adata.layers),
            obsm=dict(adata.obsm),
        )
        super().fit(marked, labels_key=_STRATUM, **keys)
        self._default = self._default._replace(obs=self._default.obs.drop(columns=_STRATUM))
        return self

    def predict(
        self,
        adata: ad.AnnData | None = None,
        interventions: Sequence[Intervention] | Intervention | None = None,
        condition: str | None = None,
        times: Sequence[float] | None = None,
        n_samples: int = 1,
        seed: int = 0,
    ) -> ad.AnnData:
        """Predict cells under interventions at given times.

        Parameters
        ----------
        adata
            Control cells to start from; default those of the training. Cells of the asked time are moved; where there
            are none, those of the latest time before it.
        interventions, condition, n_samples, seed
            As for :meth:`Baseline.predict`.
        times
            Times to predict; default all times of the source cells.

        Returns
        -------
        AnnData in the prediction schema; times one after the other.
        """
        if n_samples < 1:
            raise SetupError(f"`n_samples` must be at least 1, got {n_samples}.")
        setup = self._fitted()
        wanted = self._wanted(interventions, condition)
        if adata is None:
            source = self._default
        else:
            X = self._read_source(adata, setup._replace(labels_key=None)).X
            source = Source(X, adata.obs, self._strata(adata, _times(adata, self._time_key)))
        at = np.array([_parse(name)[1] for name in source.types])
        asked = np.unique(at).tolist() if times is None else [float(t) for t in times]
        parts = [self._predicted(self._moved_to(source, at, t), wanted, n_samples, seed, _or_none(t)) for t in asked]
        if len(parts) == 1:
            return parts[0]
        out = ad.concat(parts, index_unique="-", keys=[f"{t:g}" for t in asked])
        out.var, out.uns = parts[0].var.copy(), parts[0].uns
        return out

    def _moved_to(self, source: Source, at: np.ndarray, time: float) -> Source:
        """Source cells of ``time``, or of the nearest time before it, named as cells of ``time``."""
        if np.isnan(at).all():
            return source
        used = _latest(sorted(set(at)), time, inclusive=True)
        if used != time:
            logger.info("No control cells at time %g; those at time %g stand in.", time, used)
        here = np.flatnonzero(at == used)
        names = np.array([_parse(n)[0] + _AT + f"{time:g}" for n in source.types[here]], dtype=object)
        return Source(source.X[here], source.obs.iloc[here], names)

    def _strata(self, adata: ad.AnnData, times: np.ndarray) -> np.ndarray:
        types = _column(adata, self._labels_key)
        return np.array([f"{k}{_AT}{t:g}" for k, t in zip(types, times, strict=True)], dtype=object)

    def _seen_times(self, kind: str, k: int | None) -> list[float]:
        """Times at which a type was seen under intervention ``k``; under control for ``None``."""
        names = list(self._effects.controls) if k is None else [t for t, i in self._effects.effects if i == k]
        return sorted(t for n, t in map(_parse, names) if n == kind)

    def _single_effects(self, row: np.ndarray) -> list[tuple[float, int | None]]:
        """Dose and number of the intervention, or of each of its targets alone if the combination was never seen."""
        k = self._effects.find(row)
        if k is not None and self._effects.of(k):
            return [(1.0, k)]
        parts: list[tuple[float, int | None]] = []
        for j in np.flatnonzero(row):
            alone = np.zeros_like(row)
            alone[j] = row[j]
            k = self._effects.find(alone)
            parts.append((1.0, k if k is not None and self._effects.of(k) else None))
        return parts

    def _mean_effect(self, kind: str, time: float | None = None) -> np.ndarray:
        """Mean effect over interventions: at the nearest time at which there are any, or over all times."""
        found: dict[float, list[np.ndarray]] = {}
        for (name, _), effect in self._effects.effects.items():
            n, t = _parse(name)
            if n == kind:
                found.setdefault(t, []).append(effect.delta)
        if not found:
            raise SetupError(f"No intervention was seen in {kind!r}; {type(self).__name__} has nothing to average.")
        if time is None or np.isnan(time):
            return np.mean([d for deltas in found.values() for d in deltas], axis=0)
        nearest = min(found, key=lambda t: (abs(t - time), t))
        return np.mean(found[nearest], axis=0)


class Persistence(TimeRule):
    """Predicts that nothing changes after the last observation of the intervention.

    The mean at time t is the mean under the same intervention at the latest time before t (the earliest one if there is
    none before). An intervention that was never seen stays at the control cells of that time.

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_time_course(10, 30, 3, times=(1, 2), seed=0))
    >>> rule = scc.baselines.Persistence().fit(
    ...     adata, intervention_key="intervention", control="control", time_key="time"
    ... )
    >>> target = rule.interventions[0]
    >>> predicted = rule.predict(interventions=[target], times=[2])
    >>> predicted.obs["time"].unique().tolist()
    [2.0]
    """

    name: ClassVar[str] = "persistence"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        kind, time = _parse(name)
        k = self._effects.find(row)
        seen = [] if k is None else self._seen_times(kind, k)
        if seen:
            before = f"{kind}{_AT}{_latest(seen, time):g}"
            base = self._effects.controls.get(before, self._effects.pooled_control)
            return base + self._effects.effects[before, int(k or 0)].delta - control
        known = self._seen_times(kind, None)
        if not known:
            return np.zeros_like(control)
        return self._effects.controls[f"{kind}{_AT}{_latest(known, time):g}"] - control


class TimeMean(TimeRule):
    """Adds the mean effect of all training interventions at the time (or the nearest time with any).

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_time_course(10, 30, 3, times=(1, 2), seed=0))
    >>> rule = scc.baselines.TimeMean().fit(adata, intervention_key="intervention", control="control", time_key="time")
    >>> target = rule.interventions[0]
    >>> predicted = rule.predict(interventions=[target], times=[2])
    >>> predicted.obs["time"].unique().tolist()
    [2.0]
    """

    name: ClassVar[str] = "time mean"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return self._mean_effect(*_parse(name))


class TimeAdditive(TimeRule):
    """Time plus intervention, without interaction: control at the time plus the intervention's mean effect over times.

    Unseen combinations add the effects of their targets; a target that was never seen gets the mean effect of all
    interventions (logged).

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_time_course(10, 30, 3, times=(1, 2), seed=0))
    >>> rule = scc.baselines.TimeAdditive().fit(
    ...     adata, intervention_key="intervention", control="control", time_key="time"
    ... )
    >>> target = rule.interventions[0]
    >>> predicted = rule.predict(interventions=[target], times=[2])
    >>> predicted.obs["time"].unique().tolist()
    [2.0]
    """

    name: ClassVar[str] = "time additive"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        kind, _ = _parse(name)
        total = np.zeros_like(control)
        for dose, k in self._single_effects(row):
            seen = [] if k is None else self._seen_times(kind, k)
            if k is None or not seen:
                logger.warning("%s: a target was never seen; the mean effect stands in.", self._codec.label(row))
                total += dose * self._mean_effect(kind)
            else:
                deltas = [self._effects.effects[f"{kind}{_AT}{t:g}", k].delta for t in seen]
                total += dose * np.mean(deltas, axis=0)
        return total


class ElasticNetEmbedding(TimeRule):
    """Elastic net from features of the intervention (and time) to its effect: what an embedding gives without depth.

    Effects are written in their first principal components; features of a combination are the sum over its targets,
    with time as one column per time and per product of time and feature. The penalty is chosen by cross-validation
    over interventions.

    Parameters
    ----------
    embedding
        Features of the targets (targets x features), standardised here. Default: loadings of the target's own gene on
        principal components of the training control cells; a target that is not measured gets zeros, so that it is
        predicted by the mean effect.
    n_components
        Principal components of the effects.
    n_features
        Features of the default embedding.
    l1_ratio
        Share of the L1 part.
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_time_course(10, 30, 3, times=(1, 2), seed=0))
    >>> rule = scc.baselines.ElasticNetEmbedding(n_features=5).fit(
    ...     adata, intervention_key="intervention", control="control", time_key="time"
    ... )
    >>> target = rule.interventions[0]
    >>> predicted = rule.predict(interventions=[target], times=[2])
    >>> predicted.obs["time"].unique().tolist()
    [2.0]
    """

    name: ClassVar[str] = "elastic net on embedding"

    def __init__(
        self,
        embedding: pd.DataFrame | None = None,
        *,
        n_components: int = 20,
        n_features: int = 20,
        l1_ratio: float = 0.5,
        clip: Clip = "mean",
    ) -> None:
        super().__init__(clip=clip)
        self.embedding, self.l1_ratio = embedding, float(l1_ratio)
        self.n_components, self.n_features = int(n_components), int(n_features)

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        from sklearn.decomposition import PCA

        control = np.asarray(~np.any(self._effects.rows, axis=1))[codes]
        features = self._loadings(X[np.flatnonzero(control)]) if self.embedding is None else self._given()
        spread = features.std(axis=0)
        self._features = np.divide(
            features - features.mean(axis=0), spread, out=np.zeros_like(features), where=spread > 0
        )
        keys = list(self._effects.effects)
        if len(keys) < 3:
            raise InputDataError(f"{type(self).__name__} needs at least three (intervention, time) groups.")
        self._times = sorted({_parse(name)[1] for name, _ in keys})
        Y = np.asarray([self._effects.effects[key].delta for key in keys])
        self._pca = PCA(min(self.n_components, *Y.shape), svd_solver="full").fit(Y)
        design = np.asarray([self._design(self._effects.rows[k], _parse(name)[1]) for name, k in keys])
        self._centre = design.mean(axis=0)
        self._net = self._penalised(design - self._centre, self._pca.transform(Y), [k for _, k in keys])

    def _penalised(self, design: np.ndarray, scores: np.ndarray, groups: Sequence[int]) -> Any:
        from sklearn.linear_model import MultiTaskElasticNet, MultiTaskElasticNetCV
        from sklearn.model_selection import GroupKFold

        n_folds = min(5, len(set(groups)))
        if n_folds < 2:
            return MultiTaskElasticNet(alpha=1.0, l1_ratio=self.l1_ratio, fit_intercept=False).fit(design, scores)
        folds = list(GroupKFold(n_folds).split(design, groups=groups))
        net = MultiTaskElasticNetCV(l1_ratio=self.l1_ratio, alphas=30, cv=folds, fit_intercept=False, max_iter=5000)
        return net.fit(design, scores)

    def _given(self) -> np.ndarray:
        assert self.embedding is not None
        return target_features(self, self.embedding)

    def _loadings(self, control: Any) -> np.ndarray:
        at = self._genes.get_indexer(pd.Index(self._codec.targets))
        axes = principal_axes(_dense(control), self.n_features).T
        return np.where((at >= 0)[:, None], axes[at], 0.0)

    def _design(self, row: np.ndarray, time: float) -> np.ndarray:
        own = row @ self._features
        if len(self._times) < 2:
            return own
        nearest = min(self._times, key=lambda t: (abs(t - time), t))
        at = np.array([t == nearest for t in self._times], dtype=np.float64)
        return np.concatenate([own, at, np.outer(at, own).ravel()])

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        design = self._design(row, _parse(name)[1]) - self._centre
        return self._pca.inverse_transform(self._net.predict(design[None]))[0]


def _times(adata: ad.AnnData, key: str | None) -> np.ndarray:
    if key is None:
        return np.full(adata.n_obs, np.nan)
    if key not in adata.obs:
        raise unknown_name("column", key, adata.obs.columns, "adata.obs")
    values = pd.to_numeric(adata.obs[key].astype(object), errors="coerce").to_numpy(dtype=np.float64)
    if np.isnan(values).any():
        raise SetupError(f"adata.obs[{key!r}] is no number in {int(np.isnan(values).sum())} cells.")
    return values


def _parse(name: str) -> tuple[str, float]:
    kind, _, time = name.rpartition(_AT)
    return kind, float(time)


def _latest(times: Sequence[float], time: float, *, inclusive: bool = False) -> float:
    """The latest of ``times`` before ``time``, else the earliest of all."""
    if np.isnan(time):
        return times[-1]
    before = [t for t in times if t < time or (inclusive and t == time)]
    return before[-1] if before else times[0]


def _or_none(time: float) -> float | None:
    return None if np.isnan(time) else float(time)
