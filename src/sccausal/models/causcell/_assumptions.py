"""What identifies counterfactuals of concepts on the data at hand: one check per assumption."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from sccausal.models._identifiability import Check
from sccausal.models.causcell._dependence import dependence

_MIN_CELLS = 5
_INFORMATION = 0.01
"""Nats below which a dependence is too weak to move a counterfactual, however many cells prove it."""


def assumptions(model: Any) -> list[Check]:
    """Checks of a :class:`~sccausal.models.CausCell` on its own cells."""
    codes = [w.argmax(1) for w in model._label_weights()]
    checks = [_overlap(model, codes), _markov(model, codes), _edges(model)]
    if model.is_trained_:
        checks += [_legible(model, codes), _exogenous(model, codes)]
    checks.append(
        Check(
            "no hidden common cause",
            "No unmeasured cause acts on two concepts, or on a concept and expression.",
            checkable=False,
            verdict="unknown",
            explanation="Only a randomised concept (a stimulus given by the experimenter) has none by design.",
        )
    )
    checks.append(
        Check(
            "directions of the edges",
            "The DAG says which of two dependent concepts is the cause.",
            checkable=False,
            verdict="unknown",
            explanation="Turned around, an edge fits the labels as well; counterfactuals differ.",
        )
    )
    return checks


def _overlap(model: Any, codes: list[np.ndarray]) -> Check:
    worst, where = np.inf, ""
    for j, concept in enumerate(model.module.concepts):
        for i in model.module.scm.ancestors(j):
            table = np.zeros((model.module.concepts[i].n_levels, concept.n_levels))
            np.add.at(table, (codes[i], codes[j]), 1)
            if table.min() < worst:
                worst, where = float(table.min()), f"{model.concepts[i]} x {concept.name}"
    text = "Every level of a concept is seen under every level of its causes, so that setting one is no extrapolation."
    if not np.isfinite(worst):
        return Check("overlap", text, True, "holds", None, "The DAG has no edges.")
    return Check(
        "overlap", text, True, "holds" if worst >= _MIN_CELLS else "violated", worst,
        f"Fewest cells of a combination ({where}); below {_MIN_CELLS} its counterfactuals rest on the model's form.",
    )  # fmt: skip


def _markov(model: Any, codes: list[np.ndarray]) -> Check:
    scm, names = model.module.scm, model.concepts
    rank = {j: k for k, j in enumerate(scm.order)}
    pairs = [
        (i, j) if rank[i] < rank[j] else (j, i)
        for i, j in combinations(range(len(names)), 2)
        if i not in scm.parents[j] and j not in scm.parents[i]
    ]
    text = "Concepts depend on each other through the edges of the DAG only."
    if not pairs:
        return Check("DAG explains the labels", text, False, "unknown", None, "All concepts are joined by edges.")
    strongest, where, n_bad = 0.0, "", 0
    for i, j in pairs:
        found = dependence(codes[i], codes[j], [codes[k] for k in scm.parents[j]])
        bad = found.p_value * len(pairs) < 0.05 and found.information > _INFORMATION
        n_bad += bad
        if bad and found.information > strongest:
            strongest, where = found.information, f", most {names[i]} and {names[j]}"
    return Check(
        "DAG explains the labels", text, True, "violated" if n_bad else "holds", strongest,
        f"{n_bad} of {len(pairs)} pairs without an edge depend on each other given the parents{where} (nats of mutual "
        "information). An edge is missing, or a hidden cause (such as the design of the study) joins them.",
    )  # fmt: skip


def _edges(model: Any) -> Check:
    text = "Each edge of the DAG joins concepts that depend on each other."
    frame = model.edges()
    if not len(frame):
        return Check("edges are supported", text, False, "unknown", None, "The DAG has no edges.")
    bad = frame[~frame["supported"] | (frame["information"] < _INFORMATION)]
    shown = ", ".join(f"{s} -> {t}" for s, t in zip(bad["source"], bad["target"], strict=True))
    return Check(
        "edges are supported", text, True, "violated" if len(bad) else "holds", float(frame["information"].min()),
        f"Smallest mutual information of an edge, in nats{f'; not supported: {shown}' if shown else ''}. Along an "
        "edge without dependence nothing follows an intervention.",
    )  # fmt: skip


def _held_out(model: Any) -> np.ndarray:
    rows = np.asarray(model.validation_indices if model.validation_indices is not None else [], dtype=int)
    everyone = np.arange(model.adata.n_obs)
    if len(rows) < 50:
        rows = everyone
    return np.sort(np.random.default_rng(0).permutation(rows)[:2000])


def _legible(model: Any, codes: list[np.ndarray]) -> Check:
    rows = _held_out(model)
    found = model.predict_concepts(model.adata[rows].copy())
    gains = {}
    for code, concept in zip(codes, model.module.concepts, strict=True):
        if concept.kind == "continuous":
            continue
        truth = np.asarray(concept.levels, dtype=object)[code[rows]]
        majority = np.bincount(code[rows]).max() / len(rows)
        right = float(np.mean(found[concept.name].to_numpy() == truth))
        gains[concept.name] = (right - majority) / max(1 - majority, 1e-9)
    name, gain = min(gains.items(), key=lambda item: item[1]) if gains else ("", 1.0)
    return Check(
        "expression shows the concepts",
        "Each concept can be read from expression, so that its embedding stands for it.",
        True, "holds" if gain > 0.2 else "violated", gain,
        f"Smallest share of the errors of guessing the commonest level that the model avoids ({name}), on cells not "
        "trained on where there are any. A concept without a trace has no counterfactual to show.",
    )  # fmt: skip


def _exogenous(model: Any, codes: list[np.ndarray]) -> Check:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    name = "exogenous parts are free of the causes"
    text = "What a concept has of its own does not tell the labels of its causes."
    scm = model.module.scm
    pairs = [(i, j) for j, above in enumerate(scm.parents) for i in above]
    if not pairs:
        return Check(name, text, True, "holds", None, "The DAG has no edges.")
    rows = _held_out(model)
    eps = model.get_concept_embeddings(model.adata[rows].copy(), kind="exogenous", sample=True)
    worst, where = 0.0, ""
    for i, j in pairs:
        y = codes[i][rows]
        y = np.where(np.isin(y, np.flatnonzero(np.bincount(y) >= 3)), y, np.bincount(y).argmax())
        if len(np.unique(y)) < 2:
            continue
        net = LogisticRegression(C=0.1, max_iter=300, class_weight="balanced")
        accuracy = float(cross_val_score(net, eps[model.concepts[j]], y, cv=3, scoring="balanced_accuracy").mean())
        above = accuracy - 1 / len(np.unique(y))
        if above > worst:
            worst, where = above, f" ({model.concepts[j]} tells {model.concepts[i]})"
    return Check(
        name, text, True, "violated" if worst > 0.15 else "holds", worst,
        f"Largest balanced accuracy of a probe above chance{where}, on draws. Above it a concept keeps a copy of its "
        "cause, which does not follow when the cause is set.",
    )  # fmt: skip
