"""``model.perturbation``: what a trained model says about interventions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from sccausal._compat import setup_args
from sccausal._docs import docs
from sccausal._errors import InputDataError, NumericalError, SetupError, unknown_name
from sccausal.data import Intervention, prediction_anndata
from sccausal.models._cells import (
    check_condition,
    checked_times,
    comparable,
    comparison_units,
    control_positions,
    local_seed,
    registered,
    take_modality,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from sccausal.models._base import CausalModel

Interventions = str | Mapping[str, float] | Sequence[Intervention]


class PerturbationAccessor:
    """Predict, judge and rank interventions with a trained model.

    The wished intervention is always an argument; nothing has to be written into ``obs``. Source cells are control
    cells: those of the training data, or new ones.

    Parameters
    ----------
    model
        The model; use ``model.perturbation`` instead of calling this class.

    Examples
    --------
    >>> import sccausal as scc
    >>> model.perturbation.targets
    ['stimulated']
    >>> predicted = model.perturbation.predict(interventions=["stimulated"])
    >>> model.perturbation.effects(["stimulated"], groupby="cell_type").shape
    (60, 6)
    """

    def __init__(self, model: CausalModel) -> None:
        self._model = model

    @property
    def targets(self) -> list[str]:
        """Targets an intervention can name."""
        return list(self._model.codec.targets)

    @docs.dedent
    def predict(
        self,
        adata: AnnData | MuData | None = None,
        interventions: Interventions | None = None,
        condition: str | None = None,
        times: Sequence[float] | float | None = None,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> AnnData:
        """Predict control cells under interventions.

        Parameters
        ----------
        adata
            Control cells to start from, with the genes and columns of the training data; cells with another
            intervention are left out with a warning, and without the intervention column all cells count as control.
            The object is left as it is. Default: the control cells of the training data.
        %(interventions)s
            Default: each single target.
        %(condition)s
        %(times)s
        %(n_samples)s
        %(seed)s
        %(batch_size)s

        Returns
        -------
        AnnData with one row per source cell, intervention, time and draw: ``obs[intervention, condition, time,
        source_cell, sample]`` beside batch and labels of the source cell; the unit of ``X`` is in
        ``uns["sccausal"]["units"]``.

        Raises
        ------
        sccausal._errors.UnknownNameError
            A target or the condition is not known; close names are suggested.
        sccausal._errors.InputDataError
            Genes are missing, values are not finite, or there is no control cell.
        """
        rows = self._rows(interventions)
        if len(rows) == 0:
            raise SetupError("There is no intervention to predict; `interventions` is empty.")
        moments = checked_times(self._model, times)
        check_condition(self._model, condition)
        if n_samples < 1:
            raise SetupError(f"n_samples must be at least 1, got {n_samples}.")
        blocks: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        time: list[np.ndarray] = []
        with self._control_cells(adata) as cells:
            n = cells.n_obs * n_samples
            for row in rows:
                for moment in moments:
                    blocks.append(self._predict_row(cells, row, condition, moment, n_samples, seed, batch_size))
                    labels.append(np.full(n, self._model.codec.label(row, with_dose=True), dtype=object))
                    time.append(np.full(n, np.nan if moment is None else moment))
            source = self._source_obs(cells)
        repeats = len(blocks) * n_samples
        sample = np.tile(np.repeat(np.arange(n_samples), len(source)), len(blocks))
        return prediction_anndata(
            np.concatenate(blocks),
            source.iloc[np.tile(np.arange(len(source)), repeats)],
            pd.DataFrame(index=pd.Index([str(g) for g in self._model.get_var_names()])),
            interventions=list(np.concatenate(labels)),
            condition=condition,
            time=None if moments == [None] else list(np.concatenate(time)),
            sample=list(sample),
            units=self._model.prediction_units,
            method=type(self._model).__name__,
            extra={"seed": int(seed), "control": self._model.codec.control},
        )

    @docs.dedent
    def effects(
        self,
        interventions: Interventions | None = None,
        adata: AnnData | MuData | None = None,
        *,
        groupby: str | None = None,
        condition: str | None = None,
        time: float | None = None,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Mean effect of interventions on each gene.

        The effect is the model's prediction under the intervention minus its prediction of the same cells under
        control, so that errors of reconstruction cancel.

        Parameters
        ----------
        %(interventions)s
            Default: each single target.
        adata
            Control cells to start from, as in :meth:`predict`.
        groupby
            Column of the set-up (batch or labels) by which effects are separated.
        %(condition)s
        time
            Time to predict, for models of time.
        %(n_samples)s
        %(seed)s
        %(batch_size)s

        Returns
        -------
        DataFrame with ``intervention``, the column ``groupby`` if given, ``gene``, ``mean_control``,
        ``mean_predicted`` and ``change``. Counts are brought to log1p of 1e4 per cell first; ``.attrs["units"]`` names
        the unit.
        """
        rows = self._rows(interventions)
        check_condition(self._model, condition)
        moment = checked_times(self._model, time)[0]
        genes = [str(g) for g in self._model.get_var_names()]
        frames = []
        with self._control_cells(adata) as cells:
            groups = self._groups(cells, groupby, n_samples)
            base = self._group_means(
                self._predict_row(cells, self._control_row(), condition, moment, n_samples, seed, batch_size), groups
            )
            for row in rows:
                values = self._predict_row(cells, row, condition, moment, n_samples, seed, batch_size)
                label = self._model.codec.label(row, with_dose=True)
                for name, mean in self._group_means(values, groups).items():
                    part = {"intervention": label, "gene": genes, "mean_control": base[name], "mean_predicted": mean}
                    frame = pd.DataFrame(part).assign(change=mean - base[name])
                    if groupby is not None:
                        frame.insert(1, groupby, name)
                    frames.append(frame)
        result = pd.concat(frames, ignore_index=True)
        result.attrs["units"] = comparison_units(self._model.prediction_units)
        return result

    @docs.dedent
    def rank(
        self,
        target_state: AnnData | np.ndarray,
        interventions: Interventions | None = None,
        *,
        adata: AnnData | MuData | None = None,
        max_size: int = 2,
        beam: int | None = None,
        metric: str = "energy",
        genes: Sequence[str] | None = None,
        max_cells: int = 500,
        condition: str | None = None,
        time: float | None = None,
        n_samples: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Which interventions bring control cells closest to a wanted state.

        Parameters
        ----------
        target_state
            Cells in the wanted state (AnnData as given to ``setup_anndata``), or their mean expression as a vector
            (genes,) in the unit of :meth:`effects`.
        interventions
            Candidates; default all combinations of up to ``max_size`` targets. "Do nothing" is always among them.
        adata
            Control cells to start from, as in :meth:`predict`.
        max_size
            Largest combination tried if ``interventions`` is not given.
        beam
            Build combinations only from the ``beam`` best smaller ones; ``None`` tries all.
        metric
            ``"energy"``, the energy distance between predicted and wanted cells, or ``"mean"``, the Euclidean distance
            between their means.
        genes
            Genes that count; default all.
        max_cells
            Cells drawn from each side, at most.
        %(condition)s
        time
            Time to predict, for models of time.
        %(n_samples)s
        %(seed)s
        %(batch_size)s

        Returns
        -------
        DataFrame, best first: ``rank``, ``intervention``, ``size``, ``distance`` and ``improvement``, the share of
        the distance of untreated cells that is gained (1 reaches the target, 0 is no better than doing nothing).
        """
        from sccausal.models._rank import Ranking

        check_condition(self._model, condition)
        ranking = Ranking(self._model, target_state, metric, genes, max_cells, seed)
        moment = checked_times(self._model, time)[0]
        with self._control_cells(adata, limit=max_cells, seed=seed) as cells:

            def score(row: np.ndarray) -> float:
                return ranking.distance(self._predict_row(cells, row, condition, moment, n_samples, seed, batch_size))

            listed = None if interventions is None else self._rows(interventions)
            return ranking.table(score, listed, max_size, beam)

    @docs.dedent
    def evaluate(
        self,
        adata_true: AnnData | MuData,
        *,
        control: AnnData | MuData | None = None,
        interventions: Sequence[Intervention] | None = None,
        baselines: bool | Sequence[Any] = True,
        genes: Sequence[str] | None = None,
        top: int = 100,
        duplicate: bool = True,
        n_samples: int = 1,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Score the model on observed cells, with simple rules and the technical duplicate in the same table.

        The rules are fitted on the cells the model was trained on and start from the same control cells.

        Parameters
        ----------
        adata_true
            Observed cells under the interventions to be judged, held out from training. Control cells among them are
            the source cells.
        control
            Control cells to start from; default those in ``adata_true``, or else those of the training data.
        interventions
            Interventions to score; default all in ``adata_true``.
        baselines
            ``True`` for the rules that fit the task, ``False`` for none, or names of :mod:`sccausal.baselines`.
        genes
            Genes to score, fixed in advance; default all.
        top
            Number of genes with the largest observed change behind the metrics that end in ``_top``.
        duplicate
            Add the technical duplicate, a ceiling: half of the observed cells predicting the other half.
        %(n_samples)s
        %(seed)s

        Returns
        -------
        DataFrame with one row per method, intervention (and cell type) and metric; see :func:`sccausal.tl.compare`,
        which takes several models.
        """
        from sccausal.tl import compare

        return compare(
            self._model,
            take_modality(adata_true),
            control=None if control is None else take_modality(control),
            interventions=interventions,
            baselines=baselines,
            genes=genes,
            top=top,
            duplicate=duplicate,
            n_samples=n_samples,
            seed=seed,
        )

    def __repr__(self) -> str:
        shown = ", ".join(self.targets[:6]) + (", ..." if len(self.targets) > 6 else "")
        return f"Interventions of {type(self._model).__name__}: {len(self.targets)} targets ({shown})"

    # inner parts -----------------------------------------------------------------------------------------------------

    def _rows(self, interventions: Interventions | None) -> np.ndarray:
        codec = self._model.codec
        return codec.parse_many(list(codec.targets) if interventions is None else interventions)

    def _control_row(self) -> np.ndarray:
        return np.zeros(len(self._model.codec), dtype=np.float32)

    @contextmanager
    def _control_cells(
        self, adata: AnnData | MuData | None, limit: int | None = None, seed: int = 0
    ) -> Iterator[AnnData]:
        """Control cells, registered with the model for the length of the block."""
        model = self._model
        model._check_if_trained(warn=False)
        model.module.eval()
        source = model.adata if adata is None else take_modality(adata)
        if source is None:
            raise SetupError("The model was loaded without cells; pass control cells as `adata`.")
        rows = control_positions(model, source)
        if len(rows) == 0:
            raise InputDataError(
                f"There is no control cell ({model.codec.control!r}) among the {source.n_obs} cells to start from."
            )
        if limit is not None and len(rows) > limit:
            rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
        with registered(model, source, as_control=True, rows=rows) as cells:
            yield cells

    @torch.inference_mode()
    def _predict_row(
        self,
        cells: AnnData,
        row: np.ndarray,
        condition: str | None,
        time: float | None,
        n_samples: int,
        seed: int,
        batch_size: int | None,
    ) -> np.ndarray:
        model = self._model
        with local_seed(seed, model.device):
            values = model._predict_cells(
                cells, row, condition=condition, time=time, n_samples=n_samples, seed=seed, batch_size=batch_size
            )
        values = np.asarray(values, dtype=np.float32)
        expected = (cells.n_obs * n_samples, cells.n_vars)
        if values.shape != expected:
            raise RuntimeError(f"{type(model).__name__}._predict_cells gave {values.shape}, expected {expected}.")
        if not np.isfinite(values).all():
            raise NumericalError(f"{type(model).__name__} predicts values that are not finite; was training stable?")
        return values

    def _source_obs(self, cells: AnnData) -> pd.DataFrame:
        args = setup_args(self._model.registry_)
        names = {args.get(k): r for k, r in (("batch_key", ""), ("labels_key", ""), ("time_key", "time"))}
        if args.get("intervention_key") is not None:
            names[args.get("condition_key")] = "condition"
        kept = {c: (r or c) for c, r in names.items() if isinstance(c, str) and c in cells.obs}
        return cells.obs[list(kept)].rename(columns=kept)

    def _groups(self, cells: AnnData, groupby: str | None, n_samples: int) -> dict[str, np.ndarray]:
        if groupby is None:
            return {"": np.ones(cells.n_obs * n_samples, dtype=bool)}
        known = list(self._source_obs(cells).columns)
        if groupby not in known:
            raise unknown_name("column", groupby, known, "the set-up of the model")
        column = np.tile(self._source_obs(cells)[groupby].astype(str).to_numpy(), n_samples)
        return {str(level): column == level for level in np.unique(column)}

    def _group_means(self, values: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shown = comparable(values, self._model.prediction_units)
        return {name: shown[mask].mean(axis=0, dtype=np.float64) for name, mask in groups.items()}
