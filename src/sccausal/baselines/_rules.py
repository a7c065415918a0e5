"""Rules that copy, average or add mean effects."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from sccausal._errors import SetupError, unknown_name
from sccausal.baselines._base import Baseline
from sccausal.baselines._effects import Effect
from sccausal.baselines._shift import Clip

logger = logging.getLogger(__name__)


class NoChange(Baseline):
    """Predicts the control cells as they are: the floor every score is read against.

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.NoChange().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('no change', (40, 30))
    """

    name: ClassVar[str] = "no change"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return np.zeros_like(control)


class PerturbedMean(Baseline):
    """Predicts the mean of all training interventions, whichever is asked for.

    Every intervention and type that was seen counts once. :cite:p:`Vinas2025` shows how far this goes on data where
    most perturbations share a response.

    Parameters
    ----------
    within_type
        Average over the interventions of the cell's own type where it has any (the per-covariate perturbed mean).
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.PerturbedMean().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('perturbed mean', (40, 30))
    """

    name: ClassVar[str] = "perturbed mean"

    def __init__(self, *, within_type: bool = False, clip: Clip = "mean") -> None:
        super().__init__(clip=clip)
        self.within_type = within_type

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        own = [k for k in self._effects.effects if k[0] == name] if self.within_type else []
        used = own or list(self._effects.effects)
        means = [self._effects.controls.get(t, control) + self._effects.effects[t, k].delta for t, k in used]
        return np.mean(means, axis=0) - control


class MeanShift(Baseline):
    """Adds the mean effect of the intervention over the *other* cell types (its own effect if there is no other).

    Parameters
    ----------
    weights
        ``"types"`` counts each type once, ``"cells"`` by its cells under the intervention.
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, n_types=3, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> rule = scc.baselines.MeanShift().fit(
    ...     adata, intervention_key="intervention", control="control", labels_key="cell_type"
    ... )
    >>> predicted = rule.predict(interventions=["G0007"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('mean shift', (40, 30))
    """

    name: ClassVar[str] = "mean shift"

    def __init__(self, *, weights: Literal["types", "cells"] = "types", clip: Clip = "mean") -> None:
        super().__init__(clip=clip)
        if weights not in ("types", "cells"):
            raise SetupError(f"Unknown weights {weights!r}; use 'types' or 'cells'.")
        self.weights = weights

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        others = self._others(row, name)
        w = [e.n if self.weights == "cells" else 1.0 for e in others.values()]
        return np.average([e.delta for e in others.values()], axis=0, weights=w)

    def _others(self, row: np.ndarray, name: str) -> dict[str, Effect]:
        """Effects of the intervention in the other types, or in the type itself if it is the only one."""
        found = self._effects.of(_seen(self, row))
        return {t: e for t, e in found.items() if t != name} or found


class ShrunkShift(MeanShift):
    """Mean shift with each gene pulled towards no change by how uncertain its effect is.

    The factor of a gene is ``max(0, 1 - v / d^2)``, d its mean effect over the other types and v the squared standard
    error of d: sampling of cells, plus the spread between types where there are several. Genes without a clear effect
    stay where they are (positive-part shrinkage, :cite:p:`Efron1973`).

    Parameters
    ----------
    weights
        ``"types"`` counts each type once, ``"cells"`` by its cells under the intervention.
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, n_types=3, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> rule = scc.baselines.ShrunkShift().fit(
    ...     adata, intervention_key="intervention", control="control", labels_key="cell_type"
    ... )
    >>> predicted = rule.predict(interventions=["G0007"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('shrunk shift', (40, 30))
    """

    name: ClassVar[str] = "shrunk shift"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        others = list(self._others(row, name).values())
        mean = super()._delta(row, name, control)
        w = np.array([e.n if self.weights == "cells" else 1.0 for e in others], dtype=np.float64)
        w /= w.sum()
        if len(others) > 1:
            # the spread of the types' estimates holds both kinds of uncertainty
            spread = w @ np.square([e.delta - mean for e in others]) / max(1 - np.sum(w**2), 1e-12)
            variance = spread * np.sum(w**2)
        else:
            variance = others[0].variance
        keep = 1.0 - np.divide(variance, mean**2, out=np.full_like(mean, np.inf), where=mean != 0)
        return np.maximum(keep, 0.0) * mean


class NearestType(MeanShift):
    """Copies the effect from the cell type whose control mean is nearest (Euclidean distance over all genes).

    Parameters
    ----------
    weights
        ``"types"`` counts each type once, ``"cells"`` by its cells under the intervention.
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(200, 30, 4, n_types=3, seed=0)
    >>> adata = scc.metrics.log1p_norm(cells)
    >>> rule = scc.baselines.NearestType().fit(
    ...     adata, intervention_key="intervention", control="control", labels_key="cell_type"
    ... )
    >>> predicted = rule.predict(interventions=["G0007"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('nearest type', (40, 30))
    """

    name: ClassVar[str] = "nearest type"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        others = self._others(row, name)
        bases = {t: self._effects.controls.get(t, self._effects.pooled_control) for t in others}
        nearest = min(others, key=lambda t: float(np.sum((bases[t] - control) ** 2)))
        return others[nearest].delta


class NearestPerturbation(Baseline):
    """Copies the effect of the training intervention that is most like the one asked for.

    Parameters
    ----------
    embedding
        Features of the targets (targets x features), combinations are sums; likeness is the cosine. Default: the cosine
        of the dose rows, i.e. the share of common targets. Among equally like ones the strongest effect wins.
    clip
        As in :class:`Baseline`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.NearestPerturbation().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0026"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('nearest perturbation', (40, 30))
    """

    name: ClassVar[str] = "nearest perturbation"

    def __init__(self, *, embedding: pd.DataFrame | None = None, clip: Clip = "mean") -> None:
        super().__init__(clip=clip)
        self.embedding = embedding

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        seen = [k for k in self._effects.interventions if self._effects.delta(int(k), name) is not None]
        features = np.eye(len(row)) if self.embedding is None else target_features(self, self.embedding)
        wanted, known = row @ features, self._effects.rows[seen] @ features
        norm = np.linalg.norm(known, axis=1) * np.linalg.norm(wanted)
        like = np.divide(known @ wanted, norm, out=np.zeros(len(seen)), where=norm > 0)
        best = np.flatnonzero(like >= like.max() - 1e-9)
        deltas = [self._effects.delta(int(seen[i]), name) for i in best]
        return max((d for d in deltas if d is not None), key=lambda d: float(np.linalg.norm(d)))


class Additive(Baseline):
    """Adds the effects of the single targets: ``y0 + (yA - y0) + (yB - y0)``.

    Effects of a target at other doses are scaled linearly. A target that was only seen in combinations gets the mean
    effect of all single targets (logged). Seen combinations are still predicted from their singles.

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.Additive().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('additive', (40, 30))
    """

    name: ClassVar[str] = "additive"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return np.sum([row[j] * self._unit_effect(int(j), name) for j in np.flatnonzero(row)], axis=0)

    def _unit_effect(self, target: int, name: str) -> np.ndarray:
        """Effect of one target at dose 1 (g,), by regression through the origin over its doses."""
        parts = self._seen_alone(target, name)
        if parts:
            return np.sum([dose * delta for dose, delta in parts], axis=0) / sum(dose**2 for dose, _ in parts)
        logger.warning(
            "%r was never seen alone; the mean of all single targets stands in.", self._codec.targets[target]
        )
        return self._mean_single(name)

    def _seen_alone(self, target: int, name: str) -> list[tuple[float, np.ndarray]]:
        """Dose and effect of the training interventions on this target only."""
        parts = []
        for k in self._effects.interventions:
            row, delta = self._effects.rows[k], self._effects.delta(int(k), name)
            if delta is not None and np.count_nonzero(row) == 1 and row[target] != 0:
                parts.append((float(row[target]), delta))
        return parts

    def _mean_single(self, name: str) -> np.ndarray:
        found = []
        for k in self._effects.interventions:
            row, delta = self._effects.rows[k], self._effects.delta(int(k), name)
            if delta is not None and np.count_nonzero(row) == 1:
                found.append(delta / row[np.flatnonzero(row)[0]])
        if not found:
            raise SetupError(f"{type(self).__name__} needs interventions on single targets in the training data.")
        return np.mean(found, axis=0)


class ScaledAdditive(Additive):
    """Additive rule times one factor, fitted by least squares on training combinations of known singles (else 1).

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.ScaledAdditive().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('scaled additive', (40, 30))
    """

    name: ClassVar[str] = "scaled additive"
    factor: float = 1.0

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        self.factor = 1.0
        top, bottom = 0.0, 0.0
        for (name, k), effect in self._effects.effects.items():
            targets = np.flatnonzero(self._effects.rows[k])
            if len(targets) > 1 and all(self._seen_alone(int(j), name) for j in targets):
                added = Additive._delta(self, self._effects.rows[k], name, self._effects.pooled_control)
                top, bottom = top + float(added @ effect.delta), bottom + float(added @ added)
        if bottom > 0:
            self.factor = top / bottom

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        added = super()._delta(row, name, control)
        return self.factor * added if np.count_nonzero(row) > 1 else added


class MatchingMean(Additive):
    """Predicts the mean of the single interventions on the combination's targets, ``(yA + yB) / 2``.

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, n_doubles=2, seed=0))
    >>> rule = scc.baselines.MatchingMean().fit(adata, intervention_key="intervention", control="control")
    >>> predicted = rule.predict(interventions=["G0007+G0010"])
    >>> predicted.uns["sccausal"]["method"], predicted.shape  # as many cells as control has
    ('matching mean', (40, 30))
    """

    name: ClassVar[str] = "matching mean"

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        return super()._delta(row, name, control) / np.count_nonzero(row)


def target_features(rule: Baseline, embedding: pd.DataFrame) -> np.ndarray:
    """Features (targets, d) in the order of the rule's targets."""
    frame = embedding.set_axis([str(i) for i in embedding.index])
    missing = [t for t in rule._codec.targets if t not in frame.index]
    if missing:
        raise unknown_name("intervention target", missing[0], frame.index, "the embedding")
    return frame.loc[list(rule._codec.targets)].to_numpy(dtype=np.float64)


def _seen(rule: Baseline, row: np.ndarray) -> int:
    """Number of a training intervention; an error with its name if no type has seen it."""
    k = rule._effects.find(row)
    if k is None or not rule._effects.of(k):
        raise unknown_name(
            "intervention", rule._codec.label(row, with_dose=True), rule.interventions, "the training data"
        )
    return k
