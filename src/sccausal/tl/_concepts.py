"""Genes that change with a concept, and scores of gene sets over several concepts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, unknown_name

if TYPE_CHECKING:
    from anndata import AnnData


def concept_de(
    model: Any,
    concept: str,
    to: Any,
    *,
    reference: Any = None,
    unit_key: str,
    groupby: str | Sequence[str] | None = None,
    n_refits: int = 20,
    mode: str = "do",
    warm_start: bool = False,
    train: Mapping[str, Any] | None = None,
    n_jobs: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Genes that change if a concept is set to another value, tested over units of replication.

    Counterfactual cells are no observations: as many can be made as one likes. So the *units* (donors, mice) are drawn
    with replacement, the model is trained anew on the cells of each draw, and the spread of its effects over the draws
    is the standard error. Tests are t tests whose degrees of freedom count units and refits, 1 / (1 / (units - 1) +
    1 / (refits - 1)): with few refits the standard error is itself uncertain.

    Parameters
    ----------
    model
        A trained :class:`~sccausal.models.CausCell` with its cells.
    concept, to, reference, mode
        As in :meth:`sccausal.models.CausCell.effect_of`.
    unit_key
        Column of ``obs`` with the units of replication.
    groupby
        Columns of ``obs``, e.g. cell type and domain, by which effects are separated.
    n_refits
        Draws of units.
    warm_start
        Refits start from the weights of ``model`` and so need fewer epochs (``train={"max_epochs": ...}``). With too
        few of them the refits stay near the model and standard errors come out too small: after 40 epochs about a tenth
        of the genes without a trend had p < .05 in simulations.
    train
        Arguments of ``train``; default those of a run on the CPU without progress bar.
    n_jobs
        Refits at the same time (joblib).
    seed
        Seed of draws and refits.

    Returns
    -------
    DataFrame with the columns of ``groupby``, ``gene``, ``change`` (mean over the refits), ``se``, ``low`` and ``high``
    (95 %), ``p_value``, ``p_adjusted`` (Benjamini and Hochberg within each group) and ``n_units``.

    Raises
    ------
    sccausal._errors.InputDataError
        There are fewer than three units, or no draw of units has the values that are compared.
    sccausal._errors.SetupError
        The model holds no cells, or ``n_refits`` is below 3.

    Examples
    --------
    >>> import sccausal as scc
    >>> table = scc.tl.concept_de(model, "age", 80, reference=20, unit_key="donor")  # doctest: +SKIP
    >>> table[table["p_adjusted"] < 0.05].groupby("cell_type").size()  # doctest: +SKIP
    """
    from joblib import Parallel, delayed
    from scipy import stats
    from statsmodels.stats.multitest import fdrcorrection

    cells = model.adata
    if cells is None:
        raise SetupError("Refits need cells; load the model with `adata`.")
    if n_refits < 3:
        raise SetupError(f"n_refits must be at least 3; got {n_refits}.")
    if unit_key not in cells.obs:
        raise unknown_name("column", unit_key, cells.obs.columns, "adata.obs")
    units = cells.obs[unit_key].astype(str).to_numpy()
    n_units = len(np.unique(units))
    if n_units < 3:
        raise InputDataError(f"adata.obs[{unit_key!r}] has {n_units} unit(s); a test over units needs 3 or more.")
    columns = [groupby] if isinstance(groupby, str) else list(groupby or ())
    options = {"reference": reference, "groupby": columns or None, "mode": mode}
    draws = _draws(model, units, n_refits, seed)
    run = delayed(_refitted)
    effects = Parallel(n_jobs=n_jobs)(
        run(model, rows, concept, to, options, dict(train or {}), warm_start, seed + 1 + k)
        for k, rows in enumerate(draws)
    )
    table = effects[0][[*columns, "gene"]].copy()
    found = np.stack([e["change"].to_numpy() for e in effects])
    # the spread of a bootstrap over n units is too small by this factor
    se = found.std(axis=0, ddof=1) * np.sqrt(n_units / (n_units - 1))
    # a variance of few refits is itself uncertain; its relative variance adds to that of the units
    freedom = 1 / (1 / (n_units - 1) + 1 / (n_refits - 1))
    change = found.mean(axis=0)
    t = change / np.maximum(se, 1e-12)
    half = stats.t.ppf(0.975, freedom) * se
    table = table.assign(
        change=change, se=se, low=change - half, high=change + half, p_value=2 * stats.t.sf(np.abs(t), freedom)
    )
    groups = table.groupby(columns, sort=False)["p_value"] if columns else table.groupby(lambda _: 0)["p_value"]
    table["p_adjusted"] = groups.transform(lambda p: fdrcorrection(p)[1])
    return table.assign(n_units=n_units)


def _draws(model: Any, units: np.ndarray, n: int, seed: int) -> list[np.ndarray]:
    """Rows of the cells of drawn units; every level must be there, or the model could not be trained."""
    rows_of = {u: np.flatnonzero(units == u) for u in np.unique(units)}
    names = np.array(list(rows_of), dtype=object)
    known = zip(model.module.concepts, model._label_weights(), strict=True)
    levels = {c.name: w.argmax(1) for c, w in known if not c.is_number}
    for name, codes in levels.items():
        alone = [k for k in np.unique(codes) if len(np.unique(units[codes == k])) < 2]
        if alone:
            level = model.module.concepts[model.concepts.index(name)].levels[alone[0]]
            raise InputDataError(
                f"{name}={level} occurs in one unit only, so nothing about it can be tested over units. Leave such "
                "concepts (the unit itself) out of the model."
            )
    wanted = {name: np.unique(codes) for name, codes in levels.items()}
    rng = np.random.default_rng([seed, 17])
    draws: list[np.ndarray] = []
    for _ in range(200 * n):
        rows = np.concatenate([rows_of[u] for u in rng.choice(names, len(names))])
        if all(np.isin(w, levels[name][rows]).all() for name, w in wanted.items()):
            draws.append(rows)
        if len(draws) == n:
            return draws
    raise InputDataError(
        f"Hardly a draw of {len(names)} units holds all levels of all concepts; merge levels that few units have."
    )


def _arguments(model: Any) -> dict[str, Any]:
    """Arguments of a refit, with the model's levels and knots: a draw of units need not show all of them."""
    known = {c.name: list(c.values) for c in model.module.concepts if c.kind == "continuous"}
    known |= {c.name: list(c.levels) for c in model.module.concepts if c.kind == "intervention"}
    return {**model.init_params_["non_kwargs"], "levels": known}


def _refitted(
    model: Any,
    rows: np.ndarray,
    concept: str,
    to: Any,
    options: dict[str, Any],
    train: dict[str, Any],
    warm_start: bool,
    seed: int,
) -> pd.DataFrame:
    """Effects in all cells of the model, as a model sees them that was trained on ``rows``."""
    import scvi

    from sccausal._compat import setup_args
    from sccausal.models._cells import light_copy

    before = scvi.settings.seed
    scvi.settings.seed = seed
    try:
        with warnings.catch_warnings():  # units that are drawn twice
            warnings.filterwarnings("ignore", message="Observation names are not unique")
            cells = light_copy(model, model.adata, rows)
        cells.obs_names_make_unique()
        cls = type(model)
        cls.setup_anndata(cells, **setup_args(model.registry_))
        twin = cls(cells, **_arguments(model))
        if warm_start:
            twin.module.load_state_dict(model.module.state_dict())
            train = {**train, "plan_kwargs": {"warmup_fraction": 0.0, **train.get("plan_kwargs", {})}}
        twin.train(**{"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
                      "train_size": 1.0, **train})  # fmt: skip
        return twin.effect_of(concept, to, adata=model.adata, seed=seed, **options)
    finally:
        scvi.settings.seed = before


def gene_set_response(
    models: Mapping[str, Any],
    do: Mapping[str, Sequence[Any]],
    genes: Sequence[str],
    *,
    adata: AnnData | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Score of a gene set in counterfactual cells over all combinations of several concepts.

    Parameters
    ----------
    models
        Trained :class:`~sccausal.models.CausCell` by name, e.g. with and without a DAG.
    do
        Concept -> values to set it to; all combinations are taken.
    genes
        The gene set; the score is the mean of its genes, counts being log-normalised.
    adata
        Cells to start from; default those of each model.
    seed
        Seed of the counterfactuals, the same for all combinations.

    Returns
    -------
    DataFrame with ``model``, one column per concept of ``do``, ``score`` (mean over cells) and ``observed``, the mean
    of the observed cells with these labels (NaN where there are none).

    Raises
    ------
    sccausal._errors.UnknownNameError
        A gene, concept or value is not known.

    Examples
    --------
    >>> import sccausal as scc
    >>> do = {"a": ["a0", "a1"], "b": ["b0", "b1"]}
    >>> table = scc.tl.gene_set_response({"with DAG": model}, do, adata.var_names[:5])
    >>> table.columns.tolist()
    ['model', 'a', 'b', 'score', 'observed']
    """
    from sccausal.models._cells import comparable

    rows = []
    for name, model in models.items():
        known = [str(g) for g in model.get_var_names()]
        for gene in genes:
            if gene not in known:
                raise unknown_name("gene", str(gene), known, "the model")
        picked = [known.index(g) for g in genes]
        source = model.adata if adata is None else adata
        for values in product(*do.values()):
            asked = dict(zip(do, values, strict=True))
            predicted = model.counterfactual(source, asked, keep_own=False, seed=seed)
            here = np.ones(predicted.n_obs, dtype=bool)
            for concept, value in asked.items():
                here &= predicted.obs[concept].astype(str).to_numpy() == str(value)
            observed = comparable(model._original(source)[here], model.prediction_units)[:, picked]
            score = float(comparable(predicted.X, model.prediction_units)[:, picked].mean())
            rows.append({"model": name, **asked, "score": score, "observed": observed.mean() if here.any() else np.nan})
    return pd.DataFrame(rows)
