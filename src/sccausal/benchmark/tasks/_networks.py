"""Networks by simple rules, and linear structural models to find again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

LINEAR_KINDS = ("do_shift", "do_random", "knockout", "soft")


def pearson(x: np.ndarray) -> np.ndarray:
    """Correlation of genes (genes, genes); 0 for constant ones."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.nan_to_num(np.corrcoef(x, rowvar=False))
    np.fill_diagonal(found, 0.0)
    return found


def ridge_partial(x: np.ndarray, shrink: float = 0.1) -> np.ndarray:
    """Partial correlation of rank-Gaussian values from a correlation matrix shrunk towards the identity.

    Parameters
    ----------
    x
        Cells (n, genes).
    shrink
        Weight of the identity.
    """
    from scipy.stats import norm, rankdata

    ranks = norm.ppf(rankdata(x, axis=0) / (x.shape[0] + 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        c = np.nan_to_num(np.corrcoef(ranks, rowvar=False))
    np.fill_diagonal(c, 1.0)
    p = np.linalg.inv((1 - shrink) * c + shrink * np.eye(len(c)))
    d = np.sqrt(np.diag(p))
    out = -p / np.outer(d, d)
    np.fill_diagonal(out, 0.0)
    return out


def genie3(x: np.ndarray, regulators: np.ndarray, trees: int = 50, seed: int = 0) -> np.ndarray:
    """Importance of each regulator in a forest of extremely randomised trees per target (rows are sources).

    Source: :cite:p:`HuynhThu2010`.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    z = (x - x.mean(0)) / (x.std(0) + 1e-8)
    out = np.zeros((x.shape[1], x.shape[1]))
    for j in range(x.shape[1]):
        inputs = regulators[regulators != j]
        forest = ExtraTreesRegressor(trees, max_features="sqrt", random_state=seed).fit(z[:, inputs], z[:, j])
        out[inputs, j] = forest.feature_importances_
    return out


def best_f1_cut(weight: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights at the cut of best F1 against the truth, the most favourable one there is."""
    size = np.abs(weight).ravel()
    order = np.argsort(-size, kind="stable")
    hits = np.cumsum((truth != 0).ravel()[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + (truth != 0).sum())
    return np.where(np.abs(weight) >= size[order[f1.argmax()]], weight, 0)


def random_weights(d: int, degree: float, rng: np.random.Generator) -> np.ndarray:
    """Erdos-Renyi DAG with ``degree`` regulators per gene on average; weights of size 0.5 to 1.5, both signs."""
    edges = np.triu(rng.random((d, d)) < 2 * degree / (d - 1), 1)
    return edges * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))


def linear_cells(d: int, kind: str, n_control: int, n_each: int, seed: int) -> tuple[AnnData, np.ndarray]:
    """z-scored cells of a linear structural model with interventions on half of the genes, and its adjacency.

    Parameters
    ----------
    d
        Genes.
    kind
        One of :data:`LINEAR_KINDS`.
    n_control, n_each
        Cells without intervention, and per intervened gene.
    seed
        Seed of graph and cells.

    Returns
    -------
    Cells with ``obs["guide"]`` (gene or ``"control"``), and weights (d, d), rows are sources.
    """
    import anndata as ad

    rng = np.random.default_rng(seed)
    weights = random_weights(d, 2.0, rng)
    scale = rng.uniform(0.5, 1.5, d)
    targets = rng.choice(d, d // 2, replace=False)
    label = np.r_[np.full(n_control, -1), np.repeat(targets, n_each)]
    x = rng.normal(size=(len(label), d)) * scale
    for j in range(d):
        x[:, j] += x[:, :j] @ weights[:j, j]
        hit = label == j
        if not hit.any():
            continue
        spread = x[~hit, j].std()
        if kind == "soft":
            x[hit, j] += 2 * scale[j]
        elif kind == "do_random":
            x[hit, j] = rng.normal(size=hit.sum())
        else:
            x[hit, j] = (2 if kind == "do_shift" else -1.5) * spread + 0.1 * rng.normal(size=hit.sum())
    order = rng.permutation(d)
    where = np.argsort(order)
    names = [f"g{i}" for i in range(d)]
    guides = ["control" if t < 0 else f"g{where[t]}" for t in label]
    z = (x - x.mean(0)) / x.std(0)
    obs = pd.DataFrame({"guide": pd.Categorical(guides)}, index=[str(i) for i in range(len(z))])
    return ad.AnnData(z[:, order], obs=obs, var=pd.DataFrame(index=names)), weights[np.ix_(order, order)]
