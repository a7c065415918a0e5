"""Scores of differential expression: which genes change, in which direction and by how much."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._graph import auprc, auroc


class DETest(NamedTuple):
    """Test of each gene between two groups of cells, all arrays (genes,).

    Parameters
    ----------
    change
        Difference of means, on the scale of the cells.
    score
        Signed test statistic.
    p, q
        p-values, and the same after Benjamini and Hochberg.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 3))
    >>> test = scc.metrics.de_test(control + [2, 0, 0], control)
    >>> test.significant().tolist()
    [True, False, False]
    """

    change: np.ndarray  # difference of means, natural log scale
    score: np.ndarray  # signed test statistic
    p: np.ndarray
    q: np.ndarray  # Benjamini-Hochberg

    def significant(self, alpha: float = 0.05) -> np.ndarray:
        """Genes with ``q < alpha`` (genes,)."""
        return self.q < alpha


def welch_t(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Welch's t of ``a`` against ``b`` per gene (genes,); 0 where neither mean nor variance differs.

    Parameters
    ----------
    a, b
        Cells (n, genes) and (m, genes), two or more each.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> cells = np.random.default_rng(0).normal(size=(100, 2))
    >>> bool(scc.metrics.welch_t(cells + [0, 1], cells)[1] > 5)
    True
    """
    mean_a, var_a = _moments(a)
    mean_b, var_b = _moments(b)
    return _t_from_moments(mean_a - mean_b, var_a / len(a) + var_b / len(b))


def de_test(a: np.ndarray, b: np.ndarray, method: Literal["welch", "wilcoxon"] = "welch") -> DETest:
    """Test every gene for a difference between two groups of cells.

    Parameters
    ----------
    a, b
        Cells (n, genes) on log1p(1e4); ``b`` is the reference.
    method
        ``"welch"`` (vectorised, unequal variances) or ``"wilcoxon"`` (rank sum with tie correction, by scanpy).

    Returns
    -------
    DETest. A gene without variation in either group has p = 1 if its means agree, else the smallest p there is.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 3))  # cells x genes
    >>> scc.metrics.de_test(control + [2, 0, 0], control).significant().tolist()
    [True, False, False]
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputDataError(f"Both groups must be cells x genes over the same genes; got {a.shape} and {b.shape}.")
    if method == "welch":
        score, p = _welch(a, b)
    elif method == "wilcoxon":
        score, p = _wilcoxon(a, b)
    else:
        raise SetupError(f"Unknown test {method!r}; use 'welch' or 'wilcoxon'.")
    return DETest(a.mean(axis=0) - b.mean(axis=0), score, p, stats.false_discovery_control(p))


def direction_match(pred: DETest, true: DETest, alpha: float = 0.05) -> float:
    """Share of truly significant genes whose predicted change has the right sign; 0.5 by coin, higher is better.

    A predicted change of zero is a miss. NaN if no gene is significant.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [2, 2, 0, 0], control)
    >>> scc.metrics.direction_match(pred, true)
    0.5
    """
    sig = true.significant(alpha)
    return float(np.mean(np.sign(pred.change[sig]) == np.sign(true.change[sig]))) if sig.any() else float("nan")


def direction_fidelity(pred: DETest, true: DETest, alpha: float = 0.05) -> float:
    """Share of the genes *called* by the prediction that truly move that way; higher is better.

    The truth only has to move, not to be significant. NaN if the prediction calls no gene that truth can judge.
    Source: the raw direction fidelity of the Virtual Cell Challenge (:cite:p:`Roohani2025`).

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [2, 2, 0, 0], control)
    >>> scc.metrics.direction_fidelity(pred, true)
    0.5
    """
    called = pred.significant(alpha) & (true.change != 0)
    if not called.any():
        return float("nan")
    return float(np.mean(np.sign(pred.change[called]) == np.sign(true.change[called])))


def direction_reach(pred: DETest, true: DETest, alpha: float = 0.05, purity: float = 0.9) -> float:
    """How deep the prediction's own ranking stays right about directions, as a share of the truly significant genes.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.
    purity
        Share of right signs the prefix must keep.

    Returns
    -------
    ``k* / N`` in 0..1, higher is better: truly significant genes are ranked by the prediction (called ones first, then
    by q, p and size of change), and k* is the longest prefix with ``purity`` right signs. NaN if N is 0. Source: the
    raw direction reach of the Virtual Cell Challenge (:cite:p:`Roohani2025`).

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [2, 1, 0, 0], control)
    >>> scc.metrics.direction_reach(pred, true)  # right about the first gene, wrong about the second
    0.5
    """
    sig = np.flatnonzero(true.significant(alpha) & (true.change != 0))
    if not sig.size:
        return float("nan")
    order = np.lexsort((-np.abs(pred.change[sig]), pred.p[sig], pred.q[sig], ~pred.significant(alpha)[sig]))
    match = (np.sign(pred.change[sig]) == np.sign(true.change[sig]))[order]
    pure = np.flatnonzero(np.cumsum(match) / np.arange(1, sig.size + 1) >= purity)
    return float((pure[-1] + 1) / sig.size) if pure.size else 0.0


def de_jaccard(pred: DETest, true: DETest, alpha: float = 0.05) -> float:
    """Jaccard index of the significant genes; 0..1, higher is better. NaN if neither side has any.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [2, 0, 2, 0], control)
    >>> round(scc.metrics.de_jaccard(pred, true), 2)  # one gene of three
    0.33
    """
    p, t = pred.significant(alpha), true.significant(alpha)
    union = int((p | t).sum())
    return float((p & t).sum() / union) if union else float("nan")


def de_overlap(pred: DETest, true: DETest, alpha: float = 0.05, size: np.ndarray | None = None) -> float:
    """Share of the truly significant genes among the prediction's calls; 0..1, higher is better.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.
    size
        Size of the predicted change by which calls are ranked if there are more than true ones (genes,): only as many
        as there are true ones count. Default ``|pred.change|``; the Virtual Cell Challenge ranks by log2 fold changes.

    Returns
    -------
    The differential expression score of the Virtual Cell Challenge (:cite:p:`Roohani2025`); NaN if no gene is
    significant.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [2, 0, 1, 0], control)
    >>> scc.metrics.de_overlap(pred, true)
    0.5
    """
    sig, called = np.flatnonzero(true.significant(alpha)), np.flatnonzero(pred.significant(alpha))
    if not sig.size:
        return float("nan")
    rank = np.abs(pred.change if size is None else np.asarray(size))
    taken = called[np.argsort(-rank[called], kind="stable")[: sig.size]]
    return float(np.isin(taken, sig).sum() / sig.size)


def lfc_nmae(pred: DETest, true: DETest, alpha: float = 0.05) -> float:
    """Mean error of the change over the mean true change, truly significant genes; 0 is perfect, 1 is no change.

    The change is the difference of mean log1p expression (natural log), which needs no pseudo-count. NaN if no gene is
    significant. Lower is better.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [1, -1, 0, 0], control)
    >>> round(scc.metrics.lfc_nmae(pred, true), 2)
    0.5
    """
    sig = true.significant(alpha)
    size = float(np.abs(true.change[sig]).sum())
    return float(np.abs(pred.change[sig] - true.change[sig]).sum() / size) if size > 0 else float("nan")


def de_ranking(pred: DETest, true: DETest, top: int = 100) -> tuple[float, float]:
    """AUROC and AUPRC of finding the true top-k genes by the predicted absolute change.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    top
        Number of genes with the largest true ``|score|`` that count as positive; at most half of all genes.

    Returns
    -------
    ``(auroc, auprc)`` in 0..1, higher is better; chance is 0.5 and ``top / genes``. A constant prediction gets chance.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> pred = scc.metrics.de_test(control + [1, -1, 0, 0], control)
    >>> scc.metrics.de_ranking(pred, true, top=2)
    (1.0, 1.0)
    """
    k = min(top, true.change.size // 2)
    if k < 1:
        return float("nan"), float("nan")
    labels = np.zeros(true.change.size, dtype=bool)
    labels[np.argsort(-np.abs(true.score), kind="stable")[:k]] = True
    strength = np.abs(pred.change)
    return auroc(strength, labels), auprc(strength, labels)


def de_scores(pred: DETest, true: DETest, *, alpha: float = 0.05, top: int = 100) -> dict[str, float]:
    """All scores of this module by name.

    Parameters
    ----------
    pred, true
        Tests of predicted and of true cells against control.
    alpha
        False discovery rate of both.
    top
        Number of genes of :func:`de_ranking`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> control = np.random.default_rng(0).normal(size=(50, 4))
    >>> true = scc.metrics.de_test(control + [2, -2, 0, 0], control)
    >>> scores = scc.metrics.de_scores(true, true, top=2)
    >>> scores["direction_match"], scores["de_auroc"]
    (1.0, 1.0)
    """
    roc, pr = de_ranking(pred, true, top)
    return {
        "direction_match": direction_match(pred, true, alpha),
        "direction_fidelity": direction_fidelity(pred, true, alpha),
        "direction_reach": direction_reach(pred, true, alpha),
        "de_jaccard": de_jaccard(pred, true, alpha),
        "de_overlap": de_overlap(pred, true, alpha),
        "lfc_nmae": lfc_nmae(pred, true, alpha),
        "de_auroc": roc,
        "de_auprc": pr,
        "n_de_true": float(true.significant(alpha).sum()),
        "n_de_pred": float(pred.significant(alpha).sum()),
    }


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, dtype=np.float64)
    mean = x.mean(axis=0)
    return mean, ((x - mean) ** 2).sum(axis=0) / max(len(x) - 1, 1)


def _t_from_moments(difference: np.ndarray, squared_error: np.ndarray) -> np.ndarray:
    # identical columns leave rounding residue in both mean and variance
    floor = np.finfo(np.float64).eps
    difference = np.where(np.abs(difference) <= 1e-12, 0.0, difference)
    return difference / np.sqrt(np.maximum(squared_error, floor))


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (mean_a, var_a), (mean_b, var_b) = _moments(a), _moments(b)
    part_a, part_b = var_a / len(a), var_b / len(b)
    t = _t_from_moments(mean_a - mean_b, part_a + part_b)
    spread = part_a**2 / max(len(a) - 1, 1) + part_b**2 / max(len(b) - 1, 1)
    freedom = np.divide((part_a + part_b) ** 2, spread, out=np.ones_like(t), where=spread > 0)
    return t, np.where(t == 0, 1.0, 2 * stats.t.sf(np.abs(t), np.maximum(freedom, 1.0)))


def _wilcoxon(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    group = pd.Categorical(["a"] * len(a) + ["b"] * len(b))
    cells = AnnData(np.vstack([a, b]), obs=pd.DataFrame({"group": group}, index=[str(i) for i in range(len(group))]))
    cells.uns["log1p"] = {"base": None}
    sc.tl.rank_genes_groups(cells, "group", groups=["a"], reference="b", method="wilcoxon", tie_correct=True)
    found = sc.get.rank_genes_groups_df(cells, "a").set_index("names").loc[cells.var_names]
    # ranks of a gene that is constant over all cells say nothing; scanpy gives NaN there
    score = found["scores"].fillna(0.0).to_numpy(dtype=np.float64)
    return score, found["pvals"].fillna(1.0).to_numpy(dtype=np.float64)
