"""Effects of concepts on genes, and what the data say about the edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from sccausal._docs import docs
from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.models._cells import comparable, take_modality
from sccausal.models.causcell._dependence import dependence

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from sccausal.models._base import CausalModel


class EffectsMixin:
    """Effects of :class:`~sccausal.models.CausCell`."""

    if TYPE_CHECKING:  # the attributes are those of the class this is a part of

        def __getattr__(self, name: str) -> Any: ...

    @docs.dedent
    def effect_of(
        self,
        concept: str,
        to: Any,
        genes: Sequence[str] | None = None,
        *,
        reference: Any = None,
        adata: AnnData | MuData | None = None,
        groupby: str | Sequence[str] | None = None,
        unit_key: str | None = None,
        mode: str = "do",
        confidence: float = 0.95,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Mean change of genes if a concept is set to a value, with intervals; counts are compared log-normalised.

        Parameters
        ----------
        concept
            The concept.
        to
            Value it is set to.
        genes
            Genes; default all.
        reference
            Level of the cells to start from; default all cells that do not have the value.
        %(query_adata)s
        groupby
            Columns of ``obs`` by which effects are separated.
        unit_key
            Column of ``obs`` with the unit of replication, such as the donor. Intervals are then over units; without
            it over cells, as if all cells were independent.
        mode
            As in :meth:`counterfactual`: ``"do"`` gives total effects, ``"hold"`` direct ones.
        confidence
            Level of the intervals.
        %(n_samples)s
        %(seed)s
        %(batch_size)s

        Returns
        -------
        DataFrame with the columns of ``groupby``, ``gene``, ``change``, ``low``, ``high``, ``n_units`` and ``n_cells``.
        Intervals say which change other units would have shown to *this* model; that the model itself was trained on
        few units is not in them. :func:`sccausal.tl.concept_de` refits and has it.

        Raises
        ------
        sccausal._errors.UnknownNameError
            A concept, level, gene or column is not known.
        sccausal._errors.InputDataError
            There is no cell to start from.
        """
        names = [str(g) for g in self.get_var_names()]
        for gene in genes or ():
            if gene not in names:
                raise unknown_name("gene", gene, names, "the model")
        if not 0 < confidence < 1:
            raise SetupError(f"confidence must lie between 0 and 1; got {confidence}.")
        cells = self.adata if adata is None else take_modality(adata)
        columns = [groupby] if isinstance(groupby, str) else list(groupby or ())
        for column in [*columns, *([unit_key] if unit_key else [])]:
            if column not in cells.obs:
                raise unknown_name("column", column, cells.obs.columns, "adata.obs")
        rows, change = self._changes(
            concept, to, reference, cells, mode=mode, n_samples=n_samples, seed=seed, batch_size=batch_size
        )
        obs = cells.obs.iloc[rows]
        picked = names if genes is None else list(genes)
        change = change[:, [names.index(g) for g in picked]]
        groups = {(): np.arange(len(rows))}
        if columns:
            keys = pd.MultiIndex.from_frame(obs[columns].astype(str))
            groups = {key: np.flatnonzero(keys == key) for key in keys.unique()}
        frames = []
        for key, here in groups.items():
            frame = _interval(change[here], obs[unit_key].iloc[here] if unit_key else None, confidence)
            frame.insert(0, "gene", picked)
            for k, column in enumerate(columns):
                frame.insert(k, column, key[k])
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def _changes(
        self, concept: str, to: Any, reference: Any, cells: AnnData, **options: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the cells to start from, and their changes (cells, genes), mean over draws."""
        _, known = self._concept(concept)
        predicted = self.counterfactual(cells, {concept: to}, **options)
        n = cells.n_obs
        own = predicted.obs[concept].to_numpy()[:n]
        shown = predicted.uns["sccausal"]["do"][concept]
        if reference is None:
            asked = own.astype(float) != float(to) if known.kind == "continuous" else own.astype(str) != shown
        elif known.kind == "continuous":
            asked = np.isclose(own.astype(float), float(reference))
        else:
            if str(reference) not in known.levels:
                raise unknown_name("level", str(reference), known.levels, f"the concept {concept!r}")
            asked = own.astype(str) == str(reference)
        rows = np.flatnonzero(asked)
        if len(rows) == 0:
            raise InputDataError(f"No cell to start from: all {n} cells have {concept}={shown}, or none the reference.")
        units = self.prediction_units
        after = comparable(predicted.X, units).reshape(-1, n, predicted.n_vars)[:, rows].mean(axis=0)
        return rows, after - comparable(self._original(cells)[rows], units)

    def _original(self, cells: AnnData) -> np.ndarray:
        from sccausal.models._cells import light_copy

        return self._values(light_copy(cast("CausalModel", self), cells))

    def edges(self) -> pd.DataFrame:
        """What the labels of the training cells say about each edge of the DAG.

        Returns
        -------
        DataFrame ``source, target, strength, information, p_value, supported``: strength of the learned edge between
        embeddings, mutual information (nats) of the two labels given the child's other parents, p-value of its test
        against independence, and whether it is below .05 after Bonferroni. A supported edge may still point the wrong
        way: only the DAG says which concept is the cause.

        Raises
        ------
        sccausal._errors.SetupError
            The model holds no cells.
        """
        if self.adata is None:
            raise SetupError("The labels are those of the training cells; load the model with `adata`.")
        codes = [w.argmax(1) for w in self._label_weights()]
        rows = []
        for (i, j), strength in self.module.scm.strengths().items():
            others = [codes[k] for k in self.module.scm.parents[j] if k != i]
            found = dependence(codes[i], codes[j], others)
            rows.append((self.concepts[i], self.concepts[j], strength, found.information, found.p_value))
        frame = pd.DataFrame(rows, columns=["source", "target", "strength", "information", "p_value"])
        return frame.assign(supported=frame["p_value"] * max(len(frame), 1) < 0.05)


def _interval(change: np.ndarray, units: pd.Series | None, confidence: float) -> pd.DataFrame:
    """Mean over units of their mean changes, with t intervals."""
    n_cells = len(change)
    if units is not None:
        change = pd.DataFrame(change).groupby(units.astype(str).to_numpy()).mean().to_numpy()
    n = len(change)
    mean = change.mean(axis=0, dtype=np.float64)
    half = np.full_like(mean, np.nan)
    if n > 1:
        half = stats.t.ppf(0.5 + confidence / 2, n - 1) * change.std(axis=0, ddof=1, dtype=np.float64) / np.sqrt(n)
    return pd.DataFrame({"change": mean, "low": mean - half, "high": mean + half, "n_units": n, "n_cells": n_cells})
