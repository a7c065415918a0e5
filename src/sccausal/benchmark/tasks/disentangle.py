"""One block of latents per concept, holding that concept and no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError
from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _causcell, _cells, _latents

if TYPE_CHECKING:
    from anndata import AnnData

Blocks = dict[str, tuple[np.ndarray, np.ndarray]]
"""Latents of training cells and of asked cells, by concept."""


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    n_cells, n_genes = (900, 200) if request.small else (3000, 500)
    cells = simulate_perturb_seq(
        n_cells=n_cells, n_genes=n_genes, n_targets=0, n_types=4, n_batches=2, confounded=0.4, condition=True,
        noise=0.3, library_size=2500, seed=request.seed, sortability=False,
    )  # fmt: skip
    return _cells.log_cells(cells)


def _melanoma(request: Request) -> AnnData:
    """Variable genes are chosen on training patients, in :func:`cases`."""
    cells = read_h5ad(data_file(request, "melanoma_ici.h5ad"))
    cells.obs["treatment"] = np.where(cells.obs["therapy"].astype(str) == "anti-PD1", "anti-PD1", "with anti-CTLA4")
    return cells


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """Whole patients (or a third of the cells) are held out; probes are judged on them."""
    from sccausal import pp

    rng = np.random.default_rng([request.seed, 13])
    unit = dataset.options.get("unit")
    names = list(dataset.keys.concept_keys)
    if unit is None:
        test = rng.random(adata.n_obs) < 1 / 3
    else:
        test = _whole_units(adata, str(unit), names, rng)
    cells = adata
    if adata.n_vars > 1500:
        cells = adata.copy()
        pp.select_genes(cells, 1000, train=np.flatnonzero(~test))
        cells = cells[:, cells.var["selected"]].copy()
    problem = Problem(
        "disentangle",
        dataset.name,
        f"unseen {unit}s" if unit else "unseen cells",
        _cells.without_answers(cells[~test]),
        dataset.keys,
        request.seed,
        request.small,
        cells=_without_labels(cells[test], names),
    )
    truth = {"concepts": cells.obs.loc[test, names].astype(str), "finer": None}
    finer = dataset.options.get("finer")
    if finer is not None:
        truth["finer"] = cells.obs.loc[test, finer].astype(str).to_numpy()
    train = cells.obs.loc[~test, names].astype(str)
    facts = {
        "train_cells": int((~test).sum()),
        "test_cells": int(test.sum()),
        "genes": int(cells.n_vars),
        "levels": {n: int(train[n].nunique()) for n in names},
        "dependence": _dependence(cells.obs, names),
    }
    held = sorted(set(adata.obs.loc[test, unit].astype(str))) if unit else [f"{int(test.sum())} cells"]
    yield Case(problem, truth, facts, held)


def _whole_units(adata: AnnData, unit: str, names: list[str], rng: np.random.Generator) -> np.ndarray:
    """Units for the test, drawn so that both sides keep two levels of every concept."""
    units = adata.obs[unit].astype(str).to_numpy()
    for _ in range(200):
        order = rng.permutation(np.array(sorted(set(units)), dtype=object))
        test = np.isin(units, order[: max(1, len(order) // 3)])
        levels = [adata.obs.loc[rows, n].astype(str) for n in names for rows in (test, ~test)]
        if all(
            x.nunique() == adata.obs[n].astype(str).nunique() for n, x in zip(np.repeat(names, 2), levels, strict=True)
        ):
            return test
    raise InputDataError(f"No third of {unit!r} leaves every level of {', '.join(names)} on both sides.")


def _without_labels(cells: AnnData, names: list[str]) -> AnnData:
    out = _cells.without_answers(cells)
    out.obs = out.obs.drop(columns=[c for c in out.obs if c in names or c == "cell_subtype"])
    return out


def _dependence(obs: pd.DataFrame, names: list[str]) -> dict[str, float]:
    """Normalised mutual information of each pair of concepts: what leaks by itself."""
    from sklearn.metrics import normalized_mutual_info_score as nmi

    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {f"{a}, {b}": round(float(nmi(obs[a].astype(str), obs[b].astype(str))), 3) for a, b in pairs}


def score(case: Case, output: Blocks) -> pd.DataFrame:
    """Probes and leakage on the asked cells; cluster agreement with finer labels where there are any."""
    from sccausal.metrics import cluster_agreement, concept_scores

    p = case.problem
    names = list(p.keys.concept_keys)
    concepts = p.train.obs[names].astype(str)
    train, test = ({n: np.asarray(output[n][i]) for n in names} for i in (0, 1))
    frame = concept_scores(train, concepts, test, case.truth["concepts"], seed=p.seed)
    frame["group"] = np.where(frame["other"] == "", frame["concept"], frame["concept"] + " → " + frame["other"])
    if case.truth["finer"] is not None:
        first = names[0]
        more = cluster_agreement(test[first], case.truth["finer"], seed=p.seed).assign(group=f"{first}, finer")
        frame = pd.concat([frame, more], ignore_index=True)
    return frame


TASK = Task(
    "disentangle",
    "Does each block of latents hold its own concept, and no other?",
    "dict: concept -> (latents of problem.train, latents of problem.cells)",
    (
        Dataset(
            "concepts",
            _simulated,
            Keys(concept_keys=("cell_type", "condition", "batch")),
            note="Simulated cells of four types, two conditions and two batches; batch and condition are dependent.",
        ),
        Dataset(
            "melanoma",
            _melanoma,
            Keys(concept_keys=("cell_type", "response", "treatment"), batch_key="patient"),
            "melanoma_ici.h5ad",
            "T cells of melanoma patients under checkpoint therapy; response is nested in patient, whole patients are "
            "held out.",
            {"unit": "patient", "finer": "cell_subtype"},
        ),
    ),
    cases,
    score,
    ("concept_accuracy", "excess_leakage", "concept_f1", "nmi"),
    zero="random projection",
    one="true labels",
    paired_by="concept (or pair of concepts)",
)


def _shared(make: Callable[[int, int], Any], d: int = 32) -> Callable[[Problem], Blocks]:
    """The same unsupervised latents for every concept: nothing is held apart."""

    def answer(problem: Problem) -> Blocks:
        assert problem.cells is not None
        both = _latents.fit_apply(
            make(d, problem.seed), _latents.dense(problem.train.X), _latents.dense(problem.cells.X)
        )
        return dict.fromkeys(problem.keys.concept_keys, both)

    return answer


def _discriminant(problem: Problem) -> Blocks:
    """Linear discriminants of each concept on principal components: what labels give without depth."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    assert problem.cells is not None
    z, z_asked = _latents.fit_apply(
        _latents.pca(50, problem.seed), _latents.dense(problem.train.X), _latents.dense(problem.cells.X)
    )
    out: Blocks = {}
    for name in problem.keys.concept_keys:
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        lda.fit(z, problem.train.obs[name].astype(str))
        out[name] = (
            lda.decision_function(z).reshape(len(z), -1),
            lda.decision_function(z_asked).reshape(len(z_asked), -1),
        )
    return out


def _true_labels(case: Case) -> Blocks:
    p, out = case.problem, {}
    for name in p.keys.concept_keys:
        levels = np.unique(p.train.obs[name].astype(str))
        sets = (p.train.obs[name].astype(str), case.truth["concepts"][name])
        out[name] = tuple((np.asarray(s)[:, None] == levels[None, :]).astype(float) for s in sets)
    return out


register("disentangle", "PCA", kind="baseline")(_shared(_latents.pca))
register("disentangle", "random projection", kind="baseline")(_shared(_latents.random_projection))
register("disentangle", "linear discriminants", kind="baseline")(_discriminant)
register("disentangle", "CausCell")(_causcell.blocks)
register("disentangle", "true labels", kind="ceiling", sees_truth=True)(_true_labels)
