"""What identifies scConCRL on the data at hand: one check per assumption."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.stats.contingency import association, crosstab

from sccausal.data import KEYS
from sccausal.models._identifiability import Check
from sccausal.models.scconcrl._statistics import feature_chunks

_MAX_CELLS = 3000
_MIN_CELLS = 5


def assumptions(model: Any) -> list[Check]:
    """Checks of a :class:`~sccausal.models.ScConCRL` on its own cells."""
    cells = _Cells(model)
    checks = [
        _overlap(cells),
        _shared_types(cells),
        _controls(cells),
        _domains(cells, model.module),
        _additive(cells),
        _no_feedback(cells, model),
        _not_gaussian(cells),
    ]
    if model.is_trained_:
        checks.append(_no_leakage(cells, model))
    checks.append(
        Check(
            "no hidden common cause",
            "Genes share no cause beside the measured batch and condition.",
            checkable=False,
            verdict="unknown",
            explanation="A hidden cause looks like an edge; no observational test can tell. Edges are hypotheses.",
        )
    )
    return checks


class _Cells:
    """Codes and features of the cells, the latter of at most a few thousand."""

    def __init__(self, model: Any) -> None:
        manager = model.adata_manager
        n = model.adata.n_obs
        self.batch = np.asarray(manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)
        self.labels = np.asarray(manager.get_from_registry(KEYS.LABELS)).ravel().astype(int)
        self.dose = np.zeros((n, 0))
        if model.module.n_targets:
            self.dose = np.asarray(manager.get_from_registry(KEYS.INTERVENTION), dtype=float)
        _, code = np.unique(self.dose, axis=0, return_inverse=True) if self.dose.shape[1] else (0, np.zeros(n, int))
        self.intervention = np.asarray(code).ravel()
        self.is_control: np.ndarray = np.abs(self.dose).sum(axis=1) == 0
        X = manager.get_from_registry(KEYS.X)
        self.rows = np.sort(np.random.default_rng(0).permutation(n)[:_MAX_CELLS])
        log_counts = model.module.gene_likelihood != "gaussian"
        self.features = np.vstack(list(feature_chunks(X[self.rows], log_counts)))


def _overlap(cells: _Cells) -> Check:
    name = "batch crosses condition"
    text = "Every batch holds cells under several interventions, so that the two domains can be told apart."
    if cells.batch.max() == 0 or not cells.dose.shape[1]:
        return Check(name, text, True, "holds", None, "There is one batch, or no intervention: nothing to confound.")
    table = crosstab(cells.batch, cells.intervention).count
    cramer = float(association(table, method="cramer"))
    single = int(((table > 0).sum(1) == 1).sum())
    verdict: Literal["holds", "violated"] = "violated" if single or cramer > 0.5 else "holds"
    return Check(
        name, text, True, verdict, cramer,
        f"Cramer's V of batch and intervention; {single} of {len(table)} batches hold one intervention only. "
        "Where it is large, an effect of the batch is taken for one of the intervention, or the reverse.",
    )  # fmt: skip


def _shared_types(cells: _Cells) -> Check:
    name = "batches share cell types"
    text = "Batches hold the same kinds of cells in much the same shares, so that what differs is the batch."
    if cells.batch.max() == 0:
        return Check(name, text, True, "holds", None, "There is one batch.")
    if cells.labels.max() == 0:
        return Check(name, text, False, "unknown", None, "Give labels_key: without it the two cannot be told apart.")
    table = crosstab(cells.batch, cells.labels).count
    strength = float(association(table, method="cramer"))
    alone = int((np.count_nonzero(table, axis=0) == 1).sum())
    return Check(
        name, text, True, "violated" if strength > 0.6 else "holds", strength,
        f"Cramer's V of batch and label; {alone} of {table.shape[1]} labels are in one batch only. Where it is large, "
        "cells of different kinds may be taken for each other's counterparts.",
    )  # fmt: skip


def _controls(cells: _Cells) -> Check:
    name, text = "control cells", "Every population seen under an intervention is also seen without it."
    if not cells.dose.shape[1]:
        return Check(name, text, True, "holds", None, "The model was set up without interventions.")
    key = cells.labels * (cells.batch.max() + 1) + cells.batch
    treated, count = np.unique(key[~cells.is_control], return_counts=True)
    treated = treated[count >= _MIN_CELLS]
    fewest = min((int((key[cells.is_control] == k).sum()) for k in treated), default=0)
    lacking = sum(int((key[cells.is_control] == k).sum()) < _MIN_CELLS for k in treated)
    return Check(
        name, text, True, "violated" if lacking or not len(treated) else "holds", float(fewest),
        f"Fewest control cells of a population (labels x batch) with treated cells; {lacking} of {len(treated)} "
        f"populations have fewer than {_MIN_CELLS} and do not enter the population loss.",
    )  # fmt: skip


def _domains(cells: _Cells, module: Any) -> Check:
    n_domains = len(np.unique(np.column_stack([cells.batch, cells.intervention]), axis=0))
    k = module.n_domain
    needed = k + 1
    return Check(
        "enough domains",
        "There are more domains (batch x intervention) than domain latents, so that each latent is moved apart.",
        True, "holds" if n_domains >= needed else "violated", n_domains / needed,
        f"{n_domains} domains for {k} latents ({needed} needed). Where it is violated the span of the domain effects "
        "is identified but not the single latents; predictions and integration do not depend on it.",
    )  # fmt: skip


def _mean_changes(cells: _Cells) -> dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]:
    """Mean change and its sampling variance per set of targets, in the largest stratum with control cells."""
    labels, dose, control = (v[cells.rows] for v in (cells.labels, cells.dose, cells.is_control))
    out: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
    stratum = np.bincount(labels[control]).argmax() if control.any() else 0
    here = labels == stratum
    zero = cells.features[here & control]
    if len(zero) < _MIN_CELLS:
        return out
    rows, code = np.unique(dose[here], axis=0, return_inverse=True)
    features = cells.features[here]
    for i, row in enumerate(rows):
        group = features[np.asarray(code).ravel() == i]
        if row.any() and len(group) >= _MIN_CELLS:
            variance = group.var(0) / len(group) + zero.var(0) / len(zero)
            out[tuple(np.flatnonzero(row))] = (group.mean(0) - zero.mean(0), variance)
    return out


def _additive(cells: _Cells) -> Check:
    name = "combinations are additive"
    text = "Interventions add up on the scale of the features, where no combination was seen to do otherwise."
    changes = _mean_changes(cells) if cells.dose.shape[1] > 1 else {}
    excess = size = noise = 0.0
    n_seen = 0
    for targets, (change, variance) in changes.items():
        parts = [changes.get((t,)) for t in targets]
        if len(targets) < 2 or any(p is None for p in parts):
            continue
        n_seen += 1
        rest = change - sum(p[0] for p in parts if p is not None)
        noise_rest = variance + sum(p[1] for p in parts if p is not None)
        excess += float((rest**2).sum() - noise_rest.sum())
        size += float((change**2).sum() - variance.sum())
        noise += float(noise_rest.sum())
    if not n_seen or size <= 0.1 * noise:
        return Check(name, text, n_seen > 0, "unknown", None, "No combination was seen together with its parts.")
    share = max(excess, 0.0) / size
    return Check(
        name, text, True, "violated" if share > 0.25 else "holds", share,
        f"Share of the squared change of {n_seen} combination(s), noise taken out, that the sum of the parts misses. "
        "Seen combinations train the interaction; unseen ones start from the sum.",
    )  # fmt: skip


def _no_feedback(cells: _Cells, model: Any) -> Check:
    name, text = "no feedback", "No two genes act on each other; otherwise a graph without cycles is a simplification."
    genes = {str(g): i for i, g in enumerate(model.get_var_names())}
    targets = list(model.codec.targets) if cells.dose.shape[1] else []
    measured = {t: genes[name] for t, name in enumerate(targets) if name in genes}
    changes = {k[0]: v for k, v in _mean_changes(cells).items() if len(k) == 1} if len(measured) > 1 else {}
    known = [t for t in measured if t in changes]
    pairs = [(a, b) for i, a in enumerate(known) for b in known[i + 1 :]]
    if not pairs:
        return Check(
            name, text, False, "unknown", None,
            "It takes interventions on two measured genes to see both directions. acyclicity=None allows cycles.",
        )  # fmt: skip

    def score(a: int, b: int) -> float:
        change, variance = changes[a]
        return abs(float(change[measured[b]])) / float(np.sqrt(variance[measured[b]] + 1e-12))

    # Bonferroni over pairs: the weaker of the two directions has to be beyond chance
    from scipy.stats import norm

    cut = float(norm.isf(0.025 / len(pairs)))
    strongest = max(min(score(a, b), score(b, a)) for a, b in pairs)
    return Check(
        name, text, True, "violated" if strongest > cut else "holds", strongest,
        f"Largest z-score of a mutual effect among {len(pairs)} pair(s) of targets that are measured genes "
        f"(beyond {cut:.1f} is feedback, direct or through others).",
    )  # fmt: skip


def _not_gaussian(cells: _Cells) -> Check:
    from scipy.stats import skew

    features = cells.features
    rest = features - features.mean(0)
    keep = rest.std(0) > 1e-6
    asymmetry = np.abs(skew(rest[:, keep], axis=0)) / np.sqrt(6 / len(rest))
    share = float((asymmetry > 3).mean()) if keep.any() else 0.0
    return Check(
        "directions are identifiable",
        "Genes are not jointly Gaussian, so that the direction of a linear edge leaves a trace.",
        True, "holds" if share > 0.2 else "violated", share,
        "Share of genes whose skewness is beyond 3 standard errors. Violated, observational data give the graph only "
        "up to edges that could be turned; interventions on the genes (tl.structure) or fewer regulators help.",
    )  # fmt: skip


def _no_leakage(cells: _Cells, model: Any) -> Check:
    name = "batch is removed"
    text = "The exogenous part of the genes does not tell the batch, so composition and effects are shared by batches."
    if cells.batch.max() == 0:
        return Check(name, text, True, "holds", None, "There is one batch.")
    accuracy, chance = probe(
        model.get_latent_representation(indices=cells.rows.tolist(), representation="nx"), cells.batch[cells.rows]
    )
    return Check(
        name, text, True, "violated" if accuracy > chance + 0.1 else "holds", accuracy,
        f"Balanced accuracy of a fresh probe on n^x ({chance:.2f} is chance). Above it, batches differ in more than "
        "n^b removes: cell types of their own, or an offset that is not linear in the state.",
    )  # fmt: skip


def probe(features: np.ndarray, codes: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Balanced accuracy of a linear classifier on unseen cells, and chance.

    Parameters
    ----------
    features
        Cells x dimensions; reduced to 50 principal components.
    codes
        Classes.
    seed
        Seed of the components and of the folds.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = min(50, *features.shape)
    # components keep their size: blown up, a direction that holds next to nothing would count like any other
    steps = make_pipeline(StandardScaler(), PCA(n, random_state=seed), LogisticRegression(C=0.1, max_iter=500))
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    scores = cross_val_score(steps, features, codes, cv=folds, scoring="balanced_accuracy")
    return float(scores.mean()), 1 / len(np.unique(codes))
