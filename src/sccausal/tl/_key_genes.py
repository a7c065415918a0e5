"""The genes through which a condition or intervention acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import SetupError

if TYPE_CHECKING:
    from anndata import AnnData


def key_genes(
    model: Any,
    intervention: Any = None,
    *,
    adata: AnnData | None = None,
    n_top: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Genes ranked by how far an intervention moves them in the eyes of a model.

    The score of a gene is the size of its decoded shift: the predicted expression of control cells under the
    intervention minus that of the same cells under control. The weights on the way there (of scConCRL: the edges from a
    domain to the genes, :cite:p:`Dong2025`) are no score, since what a unit of them means differs from gene to gene.
    The change that is simply observed stands beside it: where both rank alike, the model adds no knowledge about single
    genes.

    Parameters
    ----------
    model
        A trained model with the accessor ``perturbation``.
    intervention
        Intervention or condition as in ``model.perturbation.predict``; may be left out if the model knows just one.
    adata
        Cells to use, control cells for the score and both kinds for the observed change; default: those of the model.
    n_top
        Number of genes to return; default all.
    batch_size
        Cells per mini-batch.
    seed
        Seed of the prediction.

    Returns
    -------
    DataFrame, best first, one row per gene: ``gene``, ``score`` (size of the predicted change, in the unit named by
    ``.attrs["units"]``), ``sign`` (-1, 0, 1), ``log_fc`` (observed change, mean over the strata that hold both control
    and treated cells), ``abs_log_fc``, ``rank`` and ``rank_log_fc`` (1 is the largest). The observed change is NaN if
    the model holds no cell under the intervention.

    Raises
    ------
    sccausal._errors.NotSupportedError
        The model predicts no interventions.
    sccausal._errors.SetupError
        The intervention was left out and the model knows several.
    sccausal._errors.UnknownNameError
        The intervention is not known.

    Examples
    --------
    >>> import sccausal as scc
    >>> table = scc.tl.key_genes(model, "stimulated", n_top=5)
    >>> len(table), table["rank"].tolist()
    (5, [1, 2, 3, 4, 5])
    """
    wished = _single(model, intervention)
    change = model.perturbation.effects([wished], adata, seed=seed, batch_size=batch_size)
    units = change.attrs.get("units", "as_given")
    shift = change["change"].to_numpy(dtype=float)
    observed = _observed_change(model, wished, adata)
    frame = pd.DataFrame(
        {
            "gene": change["gene"].astype(str),
            "score": np.abs(shift),
            "sign": np.sign(shift).astype(int),
            "log_fc": observed,
            "abs_log_fc": np.abs(observed),
        }
    )
    frame["rank"] = frame["score"].rank(ascending=False, method="first").astype(int)
    frame["rank_log_fc"] = frame["abs_log_fc"].rank(ascending=False, method="min").astype("Int64")
    frame = frame.sort_values("rank", ignore_index=True)
    frame.attrs["units"] = units
    frame.attrs["intervention"] = str(change["intervention"].iloc[0])
    return frame if n_top is None else frame.head(n_top)


def _single(model: Any, intervention: Any) -> Any:
    known = model.perturbation.targets
    if intervention is not None:
        return intervention
    if len(known) != 1:
        raise SetupError(
            f"The model knows {len(known)} targets ({', '.join(known[:5])}{', ...' if len(known) > 5 else ''}); "
            "name one as `intervention`."
        )
    return known[0]


def _observed_change(model: Any, intervention: Any, adata: AnnData | None) -> np.ndarray:
    """Mean expression under the intervention minus that of control cells, averaged over strata, (genes,)."""
    from sccausal.models._perturbation import comparable
    from sccausal.tl._cells import describe

    cells = model.adata if adata is None else adata
    genes = [str(g) for g in model.get_var_names()]
    if cells is None:
        return np.full(len(genes), np.nan)
    keys = describe(model)
    if keys.target not in cells.obs and keys.target not in cells.obsm:
        return np.full(len(genes), np.nan)
    source = cells.obsm[keys.target] if keys.target in cells.obsm else cells.obs[keys.target]
    rows, code = model.codec.encode_levels(source)
    treated = (rows == model.codec.parse(intervention)).all(axis=1)[code]
    control = ~rows.any(axis=1)[code]
    strata = cells.obs[keys.labels].astype(str).to_numpy() if keys.labels in cells.obs else np.zeros(cells.n_obs, str)
    X = cells[:, genes].X if keys.layer is None else cells[:, genes].layers[keys.layer]
    units = model.prediction_units
    changes = [
        comparable(X[treated & here], units).mean(axis=0) - comparable(X[control & here], units).mean(axis=0)
        for here in (strata == s for s in np.unique(strata))
        if (treated & here).any() and (control & here).any()
    ]
    return np.mean(changes, axis=0) if changes else np.full(len(genes), np.nan)
