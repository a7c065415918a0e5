"""How far the order of a causal graph can be read off variances alone."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from sccausal._errors import InputDataError


def _dense(values: np.ndarray | sparse.spmatrix) -> np.ndarray:
    dense = np.asarray(sparse.csr_matrix(values).toarray() if sparse.issparse(values) else values, dtype=np.float64)
    if dense.ndim != 2 or dense.shape[0] < 2:
        raise InputDataError(f"Sortability needs a matrix of at least two cells x genes, got shape {dense.shape}.")
    return dense


def order_agreement(adjacency: np.ndarray | sparse.spmatrix, score: np.ndarray) -> float:
    """Fraction of directed paths along which ``score`` rises from the first to the last node.

    Counts each pair of nodes once for every path length at which it is connected :cite:p:`Reisach2021`; a tie counts
    half. Pairs on a common cycle have no order and are left out.

    Parameters
    ----------
    adjacency
        Nonzero where row acts on column, shape (m, m).
    score
        One value per node, shape (m,).

    Returns
    -------
    Between 0 and 1; 0.5 means that the score knows nothing of the order. NaN for a graph without edges.
    """
    edges = sparse.csr_matrix(adjacency).astype(bool).astype(np.int64)
    score = np.asarray(score, dtype=np.float64)
    if edges.shape != (len(score), len(score)):
        raise InputDataError(f"adjacency has shape {edges.shape}, but there are {len(score)} scores.")
    n_components, component = connected_components(edges, directed=True, connection="strong")
    scale = max(np.abs(score).max(initial=0.0), np.finfo(float).tiny)
    rising, total = 0.0, 0
    power = edges
    for _ in range(n_components):
        if power.nnz == 0:
            break
        first, last = power.nonzero()
        ordered = component[first] != component[last]
        step = (score[last[ordered]] - score[first[ordered]]) / scale
        rising += float((step > 1e-12).sum() + 0.5 * (np.abs(step) <= 1e-12).sum())
        total += int(ordered.sum())
        power = (power @ edges).astype(bool).astype(np.int64)
    return rising / total if total else float("nan")


def varsortability(values: np.ndarray | sparse.spmatrix, adjacency: np.ndarray | sparse.spmatrix) -> float:
    """Agreement between the order of marginal variances and the causal order :cite:p:`Reisach2021`.

    Near 1 (or 0), sorting genes by variance finds the causal order, and structure learners that do so look better
    than they are. Standardised data give 0.5.

    Parameters
    ----------
    values
        Cells x genes.
    adjacency
        True graph, nonzero where row acts on column, shape (genes, genes).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> x[:, 1] += 2 * x[:, 0]
    >>> x[:, 2] += 2 * x[:, 1]  # a chain: variances grow along it
    >>> scc.datasets.varsortability(x, np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]]))
    1.0
    """
    return order_agreement(adjacency, _dense(values).var(axis=0))


def r2_sortability(values: np.ndarray | sparse.spmatrix, adjacency: np.ndarray | sparse.spmatrix) -> float:
    """Agreement between the order of coefficients of determination and the causal order :cite:p:`Reisach2023`.

    Each gene is regressed on all others; scaling the genes does not change the result. With fewer than twice as many
    cells as genes the correlation matrix is shrunk towards the identity, since an unpenalised regression would fit
    every gene perfectly.

    Parameters
    ----------
    values
        Cells x genes. Constant genes get a coefficient of 0.
    adjacency
        True graph, nonzero where row acts on column, shape (genes, genes).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> x[:, 1] += 2 * x[:, 0]
    >>> x[:, 2] += 2 * x[:, 1]  # a chain: what is explained grows along it
    >>> scc.datasets.r2_sortability(x, np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])) > 0.5
    True
    """
    dense = _dense(values)
    n_cells, n_genes = dense.shape
    sd = dense.std(axis=0)
    standard = (dense - dense.mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    correlation = standard.T @ standard / n_cells
    correlation[np.diag_indices(n_genes)] = 1.0
    shrinkage = min(0.5, n_genes / n_cells) * 0.2 if n_cells < 2 * n_genes else 1e-8
    shrunk = (1 - shrinkage) * correlation + shrinkage * np.eye(n_genes)
    r2 = 1.0 - 1.0 / np.diag(np.linalg.inv(shrunk))
    return order_agreement(adjacency, np.where(sd > 0, r2, 0.0))
