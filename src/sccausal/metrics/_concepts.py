"""Do blocks of latents hold one concept each? Probes, leakage, DCI, cluster agreement and T-MEX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError
from sccausal.metrics._info import as_table


class Probe(NamedTuple):
    """Scores of a classifier on cells it has not seen.

    Parameters
    ----------
    accuracy
        Mean recall over levels; 1 / levels at chance.
    f1
        Mean F1 score over levels.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> latents, labels = np.repeat([[0.0], [3.0]], 20, axis=0), np.repeat(["a", "b"], 20)
    >>> scc.metrics.concept_probe(latents, labels, latents + 0.1, labels).accuracy
    1.0
    """

    accuracy: float  # balanced: mean recall over levels, 1 / levels at chance
    f1: float  # macro F1


def concept_probe(
    train: np.ndarray,
    train_labels: Sequence[Any] | np.ndarray | pd.Series,
    test: np.ndarray,
    test_labels: Sequence[Any] | np.ndarray | pd.Series,
    seed: int = 0,
) -> Probe:
    """Read a concept from latents by multinomial logistic regression.

    Parameters
    ----------
    train, test
        Latents (n, d) and (m, d).
    train_labels, test_labels
        Levels of the concept (n,) and (m,). Levels that training cells do not have count as errors.
    seed
        Seed of the solver.

    Returns
    -------
    Probe, on the test cells. Classes are weighted alike.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> latents, labels = np.repeat([[0.0], [3.0]], 20, axis=0), np.repeat(["a", "b"], 20)
    >>> scc.metrics.concept_probe(latents, labels, latents + 0.1, labels).accuracy
    1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score, recall_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = _block(train), _block(test)
    y, truth = np.asarray(train_labels).astype(str), np.asarray(test_labels).astype(str)
    if len(y) != len(train) or len(truth) != len(test):
        raise InputDataError(f"Labels and latents differ in length: {len(y)}, {len(train)}; {len(truth)}, {len(test)}.")
    if len(np.unique(y)) < 2:
        raise SetupError("A concept needs two levels among the training cells.")
    net = LogisticRegression(max_iter=500, class_weight="balanced", random_state=seed)
    guess = make_pipeline(StandardScaler(), net).fit(train, y).predict(test)
    levels = np.unique(truth)
    return Probe(
        float(recall_score(truth, guess, labels=levels, average="macro", zero_division=0)),
        float(f1_score(truth, guess, labels=levels, average="macro", zero_division=0)),
    )


def concept_scores(
    train: Mapping[str, np.ndarray],
    train_concepts: pd.DataFrame,
    test: Mapping[str, np.ndarray],
    test_concepts: pd.DataFrame,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """How well blocks of latents hold their own concept and no other.

    Parameters
    ----------
    train, test
        Block of latents (cells, d) by concept, of cells that probes are trained on and judged on.
    train_concepts, test_concepts
        Levels of the concepts (cells x concepts).
    seed
        Seed of the probes.

    Returns
    -------
    DataFrame ``concept, other, metric, value, direction, unit``: for every concept ``concept_accuracy`` (balanced) and
    ``concept_f1`` from its own block, and for every other concept ``excess_leakage``: accuracy from the block of
    ``concept`` for ``other`` minus the accuracy from the *true* levels of ``concept``, not below 0. Dependent concepts
    leak by themselves; that part is not held against a model.

    Raises
    ------
    sccausal._errors.SetupError
        A concept has no block or no column, or fewer than two levels.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> concepts = pd.DataFrame({"type": np.tile(["a", "b"], 20), "dose": np.repeat(["low", "high"], 20)})
    >>> blocks = {key: pd.get_dummies(concepts[key]).to_numpy(float) for key in concepts}  # cells x latents each
    >>> scc.metrics.concept_scores(blocks, concepts, blocks, concepts)[["concept", "other", "metric", "value"]]
      concept other            metric  value
    0    type        concept_accuracy    1.0
    1    type              concept_f1    1.0
    2    type  dose    excess_leakage    0.0
    3    dose        concept_accuracy    1.0
    4    dose              concept_f1    1.0
    5    dose  type    excess_leakage    0.0
    """
    names = [str(c) for c in train_concepts.columns]
    for name in names:
        if name not in train or name not in test or name not in test_concepts:
            raise SetupError(f"Concept {name!r} has no block of latents or no column; blocks: {', '.join(train)}.")
    rows = []
    for name in names:
        y, truth = train_concepts[name].astype(str), test_concepts[name].astype(str)
        own = concept_probe(train[name], y, test[name], truth, seed)
        rows.append(as_table({"concept_accuracy": own.accuracy, "concept_f1": own.f1}).assign(concept=name, other=""))
        levels = np.unique(y)
        one_hot, one_hot_test = (np.asarray(v)[:, None] == levels[None, :] for v in (y, truth))
        for other in names:
            if other == name:
                continue
            z, z_test = train_concepts[other].astype(str), test_concepts[other].astype(str)
            learned = concept_probe(train[name], z, test[name], z_test, seed).accuracy
            true = concept_probe(one_hot.astype(float), z, one_hot_test.astype(float), z_test, seed).accuracy
            table = as_table({"excess_leakage": max(learned - true, 0.0)})
            rows.append(table.assign(concept=name, other=other))
    return pd.concat(rows, ignore_index=True)


def dci(z: np.ndarray, truth: np.ndarray, *, seed: int = 0) -> pd.DataFrame:
    """Disentanglement, completeness and informativeness of latents against continuous true factors.

    Parameters
    ----------
    z
        Learned latents (n, d).
    truth
        True factors (n, k) of the same cells.
    seed
        Seed of the forests and of the split into halves.

    Returns
    -------
    DataFrame ``metric, value, direction, unit``. Importances come from a random forest per factor, trained on one half
    of the cells; ``disentanglement`` is 1 if each latent serves one factor, ``completeness`` 1 if each factor is served
    by one latent (one minus normalised entropies, weighted by importance), ``informativeness`` the mean R2 on the other
    half. Source: :cite:p:`Eastwood2018`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.random.default_rng(0).normal(size=(120, 2))
    >>> table = scc.metrics.dci(truth, truth).set_index("metric")
    >>> bool(table.loc["disentanglement", "value"] > 0.8)
    True
    """
    from sklearn.ensemble import RandomForestRegressor

    z, truth = _block(z), _block(truth)
    if len(z) != len(truth) or len(z) < 20:
        raise InputDataError(f"Latents and factors must cover the same 20 cells or more; got {len(z)}, {len(truth)}.")
    order = np.random.default_rng(seed).permutation(len(z))
    half, rest = order[: len(z) // 2], order[len(z) // 2 :]
    importance, r2 = [], []
    for column in truth.T:
        forest = RandomForestRegressor(50, max_depth=10, random_state=seed).fit(z[half], column[half])
        importance.append(forest.feature_importances_)
        r2.append(forest.score(z[rest], column[rest]))
    weight = np.asarray(importance).T  # (d, k)
    return as_table(
        {
            "disentanglement": _purity(weight),
            "completeness": _purity(weight.T),
            "informativeness": float(np.mean(r2)),
        }
    )


def _purity(weight: np.ndarray) -> float:
    """One minus the entropy of each row, rows weighted by their sum."""
    if weight.shape[1] < 2:
        return 1.0
    total = weight.sum(axis=1)
    share = np.divide(weight, total[:, None], out=np.full_like(weight, 1 / weight.shape[1]), where=total[:, None] > 0)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-300)), axis=1) / np.log(weight.shape[1])
    return float(np.average(1 - entropy, weights=total)) if total.sum() > 0 else 0.0


def cluster_agreement(z: np.ndarray, labels: np.ndarray, *, n_neighbors: int = 15, seed: int = 0) -> pd.DataFrame:
    """NMI and ARI of Leiden clusters of latents with known, finer labels; the best of seven resolutions.

    Parameters
    ----------
    z
        Latents (cells, d).
    labels
        Known labels (cells,).
    n_neighbors
        Neighbours of the graph.
    seed
        Seed of the graph and of Leiden.

    Returns
    -------
    DataFrame ``metric, value, direction, unit`` with ``nmi`` and ``ari``; 0 at chance, 1 is best.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> labels = np.repeat(["a", "b"], 30)
    >>> z = np.random.default_rng(0).normal(size=(60, 2)) + 20 * (labels == "b")[:, None]
    >>> table = scc.metrics.cluster_agreement(z, labels)
    >>> table["metric"].tolist()
    ['nmi', 'ari']
    """
    import scanpy as sc
    from anndata import AnnData
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    cells = AnnData(_block(z).astype(np.float32))
    known = np.asarray(labels).astype(str)
    if len(known) != cells.n_obs:
        raise InputDataError(f"There are {len(known)} labels for {cells.n_obs} cells.")
    sc.pp.neighbors(cells, n_neighbors=min(n_neighbors, cells.n_obs - 1), use_rep="X", random_state=seed)
    best = (-1.0, 0.0)
    for resolution in (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0):
        sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        found = cells.obs["leiden"].astype(str)
        best = max(best, (normalized_mutual_info_score(known, found), adjusted_rand_score(known, found)))
    return as_table({"nmi": float(best[0]), "ari": float(best[1])})


def tmex_score(z: np.ndarray, reference: np.ndarray) -> float:
    """Mean partial correlation of each latent with its own reference, given all other references.

    Parameters
    ----------
    z
        Latents (n, d).
    reference
        Activities that latent i is to measure (n, d), column by column the partners of ``z``.

    Returns
    -------
    Mean of ``|corr(z_i, r_i | r_-i)|`` over i, in 0..1, higher is better: each latent must tell something about its
    reference that the other references do not. A measure of size, unlike the count of :func:`tmex_distance`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> reference = np.random.default_rng(0).normal(size=(200, 3))
    >>> round(scc.metrics.tmex_score(reference, reference), 2)
    1.0
    """
    from sccausal.nn import partial_correlation

    z, r = _pairs(z, reference)
    return float(partial_correlation(r, z, ridge=0.0).diagonal().abs().mean())


def tmex_distance(z: np.ndarray, reference: np.ndarray, *, alpha: float = 0.05) -> int:
    """Number of pairs of latent and reference whose conditional dependence is not as it should be.

    Parameters
    ----------
    z, reference
        As for :func:`tmex_score`.
    alpha
        Level of the tests of partial correlation (Fisher's z), Bonferroni over pairs.

    Returns
    -------
    Hamming distance of the d x d decisions "``z_i`` depends on ``r_j`` given all other references" from the identity;
    0 is best. Source: :cite:p:`Yao2025`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> reference = np.random.default_rng(0).normal(size=(200, 3))
    >>> scc.metrics.tmex_distance(reference, reference)
    0
    >>> scc.metrics.tmex_distance(reference[:, [1, 0, 2]], reference)  # two latents swapped
    4
    """
    from sccausal import nn

    z, r = _pairs(z, reference)
    return nn.tmex_distance(r, z, alpha=alpha, ridge=0.0)


def tmex_test(z: np.ndarray, reference: np.ndarray, *, n_permutations: int = 999, seed: int = 0) -> tuple[float, float]:
    """T-MEX score and its p-value against cells permuted within the latents.

    Parameters
    ----------
    z, reference
        As for :func:`tmex_score`.
    n_permutations
        Permutations B; the smallest p-value is ``1 / (B + 1)``.
    seed
        Seed of the permutations.

    Returns
    -------
    ``(score, p)``.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> reference = np.random.default_rng(0).normal(size=(200, 3))
    >>> score, p = scc.metrics.tmex_test(reference, reference, n_permutations=99)
    >>> round(p, 2)
    0.01
    """
    z, r = _pairs(z, reference)
    score = tmex_score(z, r)
    rng = np.random.default_rng(seed)
    # the residuals of the references do not change, so each draw costs one product
    own = []
    for i in range(z.shape[1]):
        rest = np.column_stack([np.ones(len(r)), np.delete(r, i, axis=1)])
        basis = np.linalg.qr(rest)[0]
        residual = r[:, i] - basis @ (basis.T @ r[:, i])
        own.append((basis, residual / max(float(np.linalg.norm(residual)), 1e-12)))
    higher = 0
    for _ in range(n_permutations):
        total = 0.0
        for i, (basis, residual) in enumerate(own):
            v = rng.permutation(z[:, i])
            v = v - basis @ (basis.T @ v)
            total += abs(float(v @ residual)) / max(float(np.linalg.norm(v)), 1e-12)
        higher += total / len(own) >= score
    return score, (higher + 1) / (n_permutations + 1)


def _pairs(z: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z, r = _block(z), _block(reference)
    if z.shape != r.shape or len(z) < z.shape[1] + 4:
        raise InputDataError(f"Latents and references must pair up, cells outnumbering latents; {z.shape}, {r.shape}.")
    return z, r


def _block(z: np.ndarray) -> np.ndarray:
    z = np.asarray(z, dtype=np.float64)
    z = z[:, None] if z.ndim == 1 else z
    if z.ndim != 2 or not z.size or not np.isfinite(z).all():
        raise InputDataError(f"Latents must be a finite matrix cells x latents; got shape {z.shape}.")
    return z
