"""What all baselines share: reading the data, choosing source cells, and the prediction schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from sccausal._errors import InputDataError, NotSupportedError, SetupError, unknown_name
from sccausal.baselines._effects import POOLED, Effects
from sccausal.baselines._shift import Clip, shift_cells
from sccausal.data import Intervention, InterventionCodec, prediction_anndata
from sccausal.metrics._input import log1p_norm, matrix


class Source(NamedTuple):
    """Cells to predict from."""

    X: np.ndarray  # (n, g)
    obs: pd.DataFrame
    types: np.ndarray  # (n,) names


class Setup(NamedTuple):
    """Columns and scale the data were read with."""

    intervention_key: str | None
    condition_key: str | None
    labels_key: str | None
    batch_key: str | None
    layer: str | None
    counts: bool
    size_key: str | None


class Baseline:
    """A simple rule with the interface of the models: ``fit(adata)``, then ``predict(...)``.

    A rule states how the mean expression of a cell type changes; predicted cells are control cells moved by that change
    (:func:`sccausal.baselines.shift_cells`), so that distributions can be scored as well as means.

    Parameters
    ----------
    clip
        What happens to values that would become negative, see :func:`sccausal.baselines.shift_cells`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.metrics.log1p_norm(scc.datasets.simulate_perturb_seq(200, 30, 4, seed=0))
    >>> rule = scc.baselines.PerturbedMean()
    >>> isinstance(rule, scc.baselines.Baseline)
    True
    >>> rule = rule.fit(adata, intervention_key="intervention", control="control")
    >>> sorted(rule.interventions)
    ['G0007', 'G0010', 'G0019', 'G0026']
    """

    name: ClassVar[str] = "baseline"

    def __init__(self, *, clip: Clip = "mean") -> None:
        self.clip: Clip = clip
        self._setup: Setup | None = None

    def fit(
        self,
        adata: ad.AnnData,
        *,
        intervention_key: str | None = None,
        condition_key: str | None = None,
        control: str | None = None,
        labels_key: str | None = None,
        batch_key: str | None = None,
        layer: str | None = None,
        sep: str | None = "+",
        counts: bool = False,
        size_key: str | None = None,
    ) -> Baseline:
        """Read training cells. ``adata`` is not changed.

        Parameters
        ----------
        adata
            Training cells only: what is held out must not be in it.
        intervention_key, condition_key
            Exactly one: column of ``obs`` (or, for interventions, an ``obsm`` frame of doses) with the perturbed
            variable. Labels of ``condition_key`` are not split at ``sep``.
        control
            Label of the cells without intervention.
        labels_key
            Column of ``obs`` with cell types; default one type.
        batch_key
            Column of ``obs`` with batches; effects are then compared within batches.
        layer
            Layer with log1p(1e4) values, or with counts if ``counts``; default ``X``.
        sep
            String between the targets of a combination.
        counts
            The layer holds counts; they are brought to log1p(1e4) first.
        size_key
            With ``counts``, the column of ``obs`` with the library size.

        Returns
        -------
        The baseline itself.

        Raises
        ------
        sccausal._errors.SetupError
            Both or neither of the two keys are given, or the control is not among the labels.
        sccausal._errors.UnknownNameError
            A column does not exist; close names are given.
        sccausal._errors.InputDataError
            Values are not finite, or look like counts without ``counts=True``.
        """
        if (intervention_key is None) == (condition_key is None):
            raise SetupError("Name the perturbed variable by exactly one of `intervention_key` and `condition_key`.")
        setup = Setup(intervention_key, condition_key, labels_key, batch_key, layer, counts, size_key)
        labels = _perturbed_labels(adata, setup)
        codec = InterventionCodec.fit(labels, control, sep if condition_key is None else None)
        rows, codes = np.unique(codec.encode(labels), axis=0, return_inverse=True)
        types = _column(adata, labels_key)
        batches = _column(adata, batch_key)
        expression = _expression(adata, setup, adata.var_names.astype(str))
        codes = np.ravel(codes)
        is_control = np.asarray(~np.any(rows, axis=1))[codes]
        if not is_control.any():
            raise SetupError(f"No cell is control ({codec.control!r}); baselines move control cells.")
        self._setup, self._codec = setup, codec
        self._genes = adata.var_names.astype(str)
        self._var = adata.var.copy()
        self._effects = Effects(expression, types, batches, codes, rows)
        self._fit_rule(expression, types, codes)
        kept = np.flatnonzero(is_control)
        self._default = Source(_dense(expression[kept]), adata.obs.iloc[kept].copy(), types[kept])
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
        """Predict cells under interventions.

        Parameters
        ----------
        adata
            Source (control) cells with the genes, layer and columns of the training data; default its control cells.
        interventions
            Labels, tuples of targets or doses; default every intervention seen in training.
        condition
            Same as ``interventions`` when ``condition_key`` is the perturbed variable.
        times
            Not used by rules without time.
        n_samples
            Draws per source cell; a rule without chance repeats itself.
        seed
            Seed of rules with chance.

        Returns
        -------
        AnnData in the prediction schema of the package, unit ``log1p_norm``: interventions one after the other, source
        cells in their order, samples innermost blocks.

        Raises
        ------
        sccausal._errors.UnknownNameError
            An intervention or a column is not known; close names are given.
        sccausal._errors.SetupError
            The baseline is not fitted.
        """
        setup = self._fitted()
        if times is not None:
            raise NotSupportedError(f"{type(self).__name__} knows no time; leave `times` out.")
        if n_samples < 1:
            raise SetupError(f"`n_samples` must be at least 1, got {n_samples}.")
        source = self._default if adata is None else self._read_source(adata, setup)
        return self._predicted(source, self._wanted(interventions, condition), n_samples, seed)

    def _predicted(
        self, source: Source, wanted: np.ndarray, n_samples: int, seed: int, time: float | None = None
    ) -> ad.AnnData:
        """Cells of ``source`` under each row of ``wanted``, in the prediction schema."""
        setup = self._fitted()
        cells, obs, labels, samples = [], [], [], []
        for row in wanted:
            for draw in range(n_samples):
                rng = np.random.default_rng([seed, draw])
                X, frame = self._cells(source, row, rng)
                cells.append(X.astype(np.float32))
                obs.append(frame)
                labels += [self._codec.label(row, with_dose=True)] * len(frame)
                samples += [draw] * len(frame)
        return prediction_anndata(
            np.concatenate(cells),
            self._carried(pd.concat(obs), setup),
            self._var,
            interventions=labels,
            condition=labels if setup.condition_key is not None else None,
            time=time,
            sample=samples,
            units="log1p_norm",
            method=self.name,
        )

    @property
    def interventions(self) -> list[str]:
        """Labels of the interventions seen in training."""
        self._fitted()
        return [self._codec.label(self._effects.rows[k]) for k in self._effects.interventions]

    def _fit_rule(self, X: Any, types: np.ndarray, codes: np.ndarray) -> None:
        """Estimate what the rule needs beyond the mean effects; nothing by default."""

    def _delta(self, row: np.ndarray, name: str, control: np.ndarray) -> np.ndarray:
        """Predicted change of the mean (g,) of a type whose control mean is ``control`` (g,)."""
        raise NotImplementedError

    def _cells(self, source: Source, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
        """Predicted cells (n, g) and the ``obs`` of their source cells."""
        out = source.X.copy()
        if row.any():
            for name in pd.unique(pd.Series(source.types)):
                here = np.flatnonzero(source.types == name)
                own = source.X[here].mean(axis=0)
                delta = self._delta(row, str(name), self._effects.controls.get(str(name), own))
                out[here] = shift_cells(source.X[here], delta, self.clip)
        return out, source.obs

    def _fitted(self) -> Setup:
        if self._setup is None:
            raise SetupError(f"{type(self).__name__} is not fitted; call fit(adata, ...) first.")
        return self._setup

    def _read_source(self, adata: ad.AnnData, setup: Setup) -> Source:
        X = matrix(_named(adata, setup), "The source cells", self._genes)
        return Source(X, adata.obs, _column(adata, setup.labels_key))

    def _wanted(self, interventions: Any, condition: str | None) -> np.ndarray:
        if condition is not None:
            if self._fitted().condition_key is None or interventions is not None:
                raise SetupError(
                    "`condition` is another word for `interventions`, if fitted with `condition_key` only."
                )
            interventions = condition
        if interventions is None:
            return self._effects.rows[self._effects.interventions]
        rows = self._codec.parse_many(interventions)
        if not len(rows):
            raise SetupError("`interventions` is empty; name at least one.")
        return rows

    @staticmethod
    def _carried(obs: pd.DataFrame, setup: Setup) -> pd.DataFrame:
        # the perturbed variable of the source cell no longer holds after the intervention
        gone = [k for k in (setup.intervention_key, setup.condition_key) if k in obs.columns]
        return obs.drop(columns=gone)

    def __repr__(self) -> str:
        state = f"fitted on {len(self._effects.interventions)} interventions" if self._setup else "not fitted"
        return f"{type(self).__name__}({state})"


def _perturbed_labels(adata: ad.AnnData, setup: Setup) -> pd.Series | pd.DataFrame:
    key = setup.condition_key if setup.intervention_key is None else setup.intervention_key
    if key in adata.obs:
        return adata.obs[key]
    if setup.intervention_key is not None and key in adata.obsm:
        frame = adata.obsm[key]
        if not isinstance(frame, pd.DataFrame):
            raise SetupError(f"adata.obsm[{key!r}] must be a DataFrame cells x targets; got {type(frame).__name__}.")
        return frame
    raise unknown_name("column", str(key), [*adata.obs.columns, *adata.obsm.keys()], "adata.obs and adata.obsm")


def _column(adata: ad.AnnData, key: str | None) -> np.ndarray:
    if key is None:
        return np.full(adata.n_obs, POOLED, dtype=object)
    if key not in adata.obs:
        raise unknown_name("column", key, adata.obs.columns, "adata.obs")
    if adata.obs[key].isna().any():
        raise SetupError(f"adata.obs[{key!r}] is missing in {int(adata.obs[key].isna().sum())} cells.")
    return adata.obs[key].astype(str).to_numpy(dtype=object)


def _named(adata: ad.AnnData, setup: Setup) -> ad.AnnData:
    """The cells with log1p(1e4) values in ``X``."""
    if setup.counts:
        return log1p_norm(adata, layer=setup.layer, size_key=setup.size_key)
    if setup.layer is None:
        return adata
    if setup.layer not in adata.layers:
        raise unknown_name("layer", setup.layer, adata.layers.keys(), "adata.layers")
    return ad.AnnData(adata.layers[setup.layer], obs=adata.obs, var=adata.var)


def _expression(adata: ad.AnnData, setup: Setup, genes: pd.Index) -> Any:
    """Checked values (n, g): CSR if they came sparse, else dense float64."""
    cells = _named(adata, setup)
    if not genes.is_unique:
        raise InputDataError(f"Gene {genes[genes.duplicated()][0]!r} stands twice; make var_names unique first.")
    if not sparse.issparse(cells.X):
        return matrix(cells, "The training cells", genes)
    values = sparse.csr_matrix(cells.X, dtype=np.float64)
    if not np.isfinite(values.data).all():
        raise InputDataError("The training cells hold values that are not finite.")
    if values.data.size and values.data.max() > 20 and (values.data == np.rint(values.data)).all():
        raise InputDataError("The training cells hold counts; pass counts=True, or a layer with log1p(1e4) values.")
    return values


def _dense(X: Any) -> np.ndarray:
    return X.toarray() if sparse.issparse(X) else np.asarray(X)
