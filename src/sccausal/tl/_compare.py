"""Several models and simple rules on the same cells, in one table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.tl._cells import Keys, describe

if TYPE_CHECKING:
    from sccausal.baselines import Baseline

logger = logging.getLogger(__name__)

CONDITION_RULES = ("MeanShift", "NearestType", "PerGeneRegression", "RidgeOnMeans", "LatentShift")
COMBINATION_RULES = ("PerturbedMean", "Additive", "ScaledAdditive", "MatchingMean", "LatentAdditive")
SEEN_RULES = ("PerturbedMean", "MeanShift", "ShrunkShift")


def compare(
    models: Any,
    adata: AnnData,
    *,
    control: AnnData | None = None,
    interventions: Sequence[Any] | None = None,
    baselines: bool | Sequence[str | Baseline] = True,
    metrics: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    top: int = 100,
    duplicate: bool = True,
    n_samples: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Score trained models, predictions and simple rules against observed cells.

    All methods start from the same control cells and are scored on log1p of 1e4 counts per cell. The rules are fitted
    on the cells the first model was trained on, never on ``adata``.

    Parameters
    ----------
    models
        One trained model, or a mapping of names to trained models, fitted baselines or predicted cells (AnnData in the
        prediction schema). The first trained model says which column is the perturbed variable.
    adata
        Observed cells under the interventions to be judged, held out from training. Control cells among them are used
        as source cells.
    control
        Control cells to start from; default those in ``adata``, or else those of the first model's training data.
    interventions
        Interventions to score; default all in ``adata``.
    baselines
        ``True`` for the rules that fit the task, ``False`` for none, or class names of :mod:`sccausal.baselines` and
        baselines (which are fitted).
    metrics
        Names of metrics, or the groups ``"bulk"``, ``"de"``, ``"distribution"``, ``"across"``; default all.
    genes
        Genes to score, fixed in advance; default all genes of the first model.
    top
        Number of genes with the largest observed change behind the metrics that end in ``_top``.
    duplicate
        Add the technical duplicate: half of the observed cells predicting the other half, a ceiling.
    n_samples
        Draws per source cell and model.
    seed
        Seed of predictions, of the split into halves and of subsampling.

    Returns
    -------
    DataFrame with one row per method, intervention (and cell type, if the model was set up with ``labels_key``) and
    metric, as :func:`sccausal.metrics.evaluate_predictions` returns it, the floor ``"no change"`` and the ceiling
    ``"duplicate"`` included. :func:`sccausal.metrics.summarise` averages it, :func:`sccausal.pl.compare` draws it.

    Raises
    ------
    sccausal._errors.SetupError
        No trained model is given, or there is no cell to score or to start from.
    sccausal._errors.UnknownNameError
        A baseline or intervention is not known.

    Examples
    --------
    >>> import sccausal as scc
    >>> table = scc.tl.compare(model, adata, baselines=["MeanShift"], metrics=["rmse"])
    >>> table["method"].unique().tolist()
    ['ScConCRL', 'mean shift', 'no change', 'duplicate']
    """
    from sccausal.metrics import evaluate_predictions

    named = dict(models) if isinstance(models, Mapping) else {type(models).__name__: models}
    first = next((m for m in named.values() if hasattr(m, "perturbation")), None)
    if first is None:
        raise SetupError("`models` holds no trained model that predicts interventions.")
    keys = describe(first)
    order = list(map(str, first.get_var_names()))
    counts = first.prediction_units == "counts"
    true, source = _cells(first, keys, adata, control, interventions, order)
    wished = sorted(true.obs[keys.target].astype(str).unique())
    train = _training_cells(first)
    for rule in _rules(baselines, keys, wished):
        if train is None:
            raise SetupError("The model was loaded without cells, so no rule can be fitted; use baselines=False.")
        named[rule.name] = _fitted(rule, train, keys, counts)
    predictions: dict[str, AnnData] = {}
    for name, method in named.items():
        predictions[name] = _log1p(_predict(method, source, wished, n_samples, seed))[:, order]
    strata = [] if keys.labels is None or keys.labels not in true.obs else [keys.labels]
    return evaluate_predictions(
        predictions,
        _log1p(true, keys.layer, counts),
        _log1p(source, keys.layer, counts),
        by=["intervention", *strata],
        intervention_key=keys.target,
        metrics=metrics,
        genes=genes,
        top=top,
        duplicate=duplicate,
        context=_context(train, keys, counts, set(wished), order) if strata else None,
        sep=keys.sep or "+",
        seed=seed,
    )


def _context(train: AnnData | None, keys: Keys, counts: bool, wished: set[str], genes: list[str]) -> AnnData | None:
    """Training cells under the same interventions: real means of the other cell types."""
    if train is None or keys.target not in train.obs:
        return None
    here = train.obs[keys.target].astype(str).isin(wished).to_numpy()
    return _log1p(train[here, genes].copy(), keys.layer, counts) if here.any() else None


def _cells(
    model: Any,
    keys: Keys,
    adata: AnnData,
    control: AnnData | None,
    interventions: Sequence[Any] | None,
    genes: list[str],
) -> tuple[AnnData, AnnData]:
    """Cells to score, with canonical labels in ``obs[keys.target]``, and control cells to start from."""
    if keys.target not in adata.obs:
        raise unknown_name("column", keys.target, adata.obs.columns, "adata.obs")
    rows, code = model.codec.encode_levels(adata.obs[keys.target])
    labels = np.asarray([model.codec.label(r) for r in rows], dtype=object)[code]
    wanted = labels != keys.control
    if interventions is not None:
        asked = [model.codec.label(r) for r in model.codec.parse_many(list(interventions))]
        for name in asked:
            if name not in set(labels):
                raise unknown_name("intervention", name, sorted(set(labels)), f"adata.obs[{keys.target!r}]")
        wanted &= np.isin(labels, asked)
    if not wanted.any():
        raise SetupError(f"There is no cell to score: all {adata.n_obs} cells are control ({keys.control!r}).")
    true = _take(adata, wanted, genes)
    true.obs[keys.target] = pd.Categorical(labels[wanted])
    source = control if control is not None else _control_cells(model, keys, adata, labels == keys.control)
    source = _take(source, np.ones(source.n_obs, dtype=bool), genes)
    if keys.labels is not None and keys.labels in source.obs and keys.labels in true.obs:
        known = source.obs[keys.labels].astype(str).isin(true.obs[keys.labels].astype(str).unique()).to_numpy()
        if not known.any():
            raise SetupError("No control cell has a cell type of the cells to score; pass such cells as `control`.")
        source = source[known].copy()
    return true, source


def _control_cells(model: Any, keys: Keys, adata: AnnData, is_control: np.ndarray) -> AnnData:
    if is_control.any():
        return adata[is_control]
    if model.adata is None:
        raise SetupError("There is no control cell in `adata`, and the model was loaded without cells; pass `control`.")
    held = model.adata
    return held[(held.obs[keys.target].astype(str) == keys.control).to_numpy()]


def _take(adata: AnnData, rows: np.ndarray, genes: list[str]) -> AnnData:
    missing = [g for g in genes if g not in adata.var_names]
    if missing:
        raise InputDataError(f"{len(missing)} of the model's {len(genes)} genes are missing, e.g. {missing[0]!r}.")
    return adata[rows, genes].copy()


def _training_cells(model: Any) -> AnnData | None:
    """Cells the model has learned from or stopped on; cells it was told to leave for testing are not among them."""
    if model.adata is None:
        return None
    seen = [rows for rows in (model.train_indices, model.validation_indices) if rows is not None]
    return model.adata if not seen else model.adata[np.sort(np.concatenate(seen))]


def _rules(baselines: bool | Sequence[Any], keys: Keys, wished: Sequence[str]) -> list[Any]:
    from sccausal import baselines as room

    if baselines is False:
        return []
    if baselines is not True:
        known = [n for n in room.__all__ if isinstance(getattr(room, n), type)]
        for name in baselines:
            if isinstance(name, str) and name not in known:
                raise unknown_name("baseline", name, known, "sccausal.baselines")
        return [getattr(room, b)() if isinstance(b, str) else b for b in baselines]
    combined = keys.sep is not None and not keys.is_condition and any(keys.sep in w for w in wished)
    names = COMBINATION_RULES if combined else CONDITION_RULES if keys.labels is not None else SEEN_RULES
    return [getattr(room, n)() for n in names]


def _fitted(rule: Baseline, train: AnnData, keys: Keys, counts: bool) -> Baseline:
    target = {"condition_key" if keys.is_condition else "intervention_key": keys.target}
    return rule.fit(
        train, **target, control=keys.control, labels_key=keys.labels, batch_key=keys.batch, layer=keys.layer,
        sep=keys.sep, counts=counts,
    )  # fmt: skip


def _predict(method: Any, source: AnnData, wished: Sequence[str], n_samples: int, seed: int) -> AnnData:
    if isinstance(method, AnnData):
        return method
    predict = method.perturbation.predict if hasattr(method, "perturbation") else method.predict
    return predict(source, list(wished), n_samples=n_samples, seed=seed)


def _log1p(adata: AnnData, layer: str | None = None, counts: bool | None = None) -> AnnData:
    """The cells with log1p(1e4) values in ``X``; predictions say themselves whether they are counts."""
    from sccausal.metrics import log1p_norm

    if counts is None:
        counts = adata.uns.get("sccausal", {}).get("units") == "counts"
    if counts:
        return log1p_norm(adata, layer=layer)
    return adata if layer is None else AnnData(adata.layers[layer], obs=adata.obs, var=adata.var)
