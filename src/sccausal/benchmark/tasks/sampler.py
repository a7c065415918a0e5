"""Cells drawn for a label: as a distribution, not only as a mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal.benchmark._folder import data_file, read_h5ad
from sccausal.benchmark._methods import register
from sccausal.benchmark._task import Case, Dataset, Keys, Problem, Request, Task
from sccausal.benchmark.tasks import _cells, _lcd
from sccausal.benchmark.tasks._latents import dense

if TYPE_CHECKING:
    from anndata import AnnData

METRICS = ("distribution", "rmse", "centroid_distance")


def _simulated(request: Request) -> AnnData:
    from sccausal.datasets import simulate_perturb_seq

    n_cells, n_genes, n_targets = (900, 150, 5) if request.small else (4000, 300, 12)
    return _cells.log_cells(
        simulate_perturb_seq(
            n_cells=n_cells,
            n_genes=n_genes,
            n_targets=n_targets,
            n_types=2,
            interventions="activation",
            noise=0.4,
            library_size=2500,
            seed=request.seed,
            sortability=False,
        )  # fmt: skip
    )


def _papalexi(request: Request) -> AnnData:
    """Replicate 1, the knock-outs of the interferon pathway, which have an effect."""
    cells = read_h5ad(data_file(request, "papalexi_eccite.h5ad"))
    strong = ["control", "IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "BRD4", "SMAD4"]
    names, replicate = cells.obs["perturbation"].astype(str), cells.obs["replicate"].astype(str)
    return cells[(names.isin(strong) & (replicate == "rep_1")).to_numpy()].copy()


def cases(adata: AnnData, dataset: Dataset, request: Request) -> Iterator[Case]:
    """Half of the cells of every label is held out; draws are compared with them."""
    label = adata.obs[dataset.keys.target].astype(str).to_numpy()
    rng = np.random.default_rng([request.seed, 31])
    test = np.zeros(adata.n_obs, dtype=bool)
    for name in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == name))
        test[rows[: len(rows) // 2]] = True
    control = label == dataset.keys.control
    case = _cells.make_case(
        "sampler", adata, dataset, request, name="seen labels", train=~test, test=test & ~control,
        source=~test & control,
    )  # fmt: skip
    case.problem.extra["n_draws"] = 300
    case.facts["energy_control_to_perturbed"] = _distance_of_control(case)
    yield case


def _distance_of_control(case: Case) -> float:
    from sccausal.metrics import energy_distance

    assert case.problem.source is not None
    base = dense(case.problem.source.X)[:500]
    names = case.truth.obs[case.problem.keys.target].astype(str)
    found = [energy_distance(base, dense(case.truth[(names == n).to_numpy()].X)[:500]) for n in names.unique()]
    return float(np.mean(found))


def score(case: Case, output: AnnData) -> pd.DataFrame:
    """Distances between drawn and held-out cells."""
    return _cells.score_cells(case, output, METRICS)


TASK = Task(
    "sampler",
    "Do cells drawn for a label look like cells of that label?",
    "AnnData of drawn cells in the prediction schema",
    (
        Dataset("screen", _simulated, Keys(intervention_key="intervention", control="control"),
                note="Simulated activations in two cell types, mixed in every label."),
        Dataset("papalexi_eccite", _papalexi, Keys(intervention_key="perturbation", control="control"),
                "papalexi_eccite.h5ad", "Knock-outs of the interferon pathway and two others in THP-1 cells."),
    ),
    cases,
    score,
    ("energy_distance", "mmd2", "wasserstein_1d", "sliced_wasserstein", "variance_ratio"),
    zero="label mean",
    one="training cells again",
    floor="control cells",
    paired_by="label",
)  # fmt: skip

Sampler = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def _drawn(name: str, sample: Sampler, *, control: bool = False) -> Callable[[Problem], AnnData]:
    """Adapter of a rule that draws ``n`` cells from the training cells of a label (n, genes)."""

    def answer(problem: Problem) -> AnnData:
        from sccausal.data import prediction_anndata

        labels = problem.train.obs[problem.keys.target].astype(str).to_numpy()
        n, blocks, names = int(problem.extra["n_draws"]), [], []
        for k, label in enumerate(problem.interventions):
            wanted = str(problem.keys.control) if control else label
            cells = dense(problem.train[labels == wanted].X)
            blocks.append(sample(cells, n, np.random.default_rng([problem.seed, k])))
            names += [label] * len(blocks[-1])
        obs = pd.DataFrame(index=[f"draw{i}" for i in range(len(names))])
        return prediction_anndata(
            np.concatenate(blocks), obs, problem.train.var_names, interventions=names, units="log1p_norm", method=name
        )

    return answer


def _again(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Training cells, each at most once: a cell drawn twice would be at distance 0 of itself."""
    return cells[rng.permutation(len(cells))[:n]]


def _mean(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(cells.mean(axis=0, keepdims=True), n, axis=0)


def _diagonal(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(cells.mean(axis=0) + cells.std(axis=0) * rng.normal(size=(n, cells.shape[1])), 0.0)


def _shuffled(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Every gene drawn by itself: right marginals, no dependence between genes."""
    return np.take_along_axis(cells, rng.integers(0, len(cells), (n, cells.shape[1])), axis=0)


def _factors(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilistic principal components."""
    from sklearn.decomposition import PCA

    pca = PCA(min(20, len(cells) - 1, cells.shape[1] - 1), svd_solver="full").fit(cells)
    z = rng.normal(size=(n, pca.n_components_)) * np.sqrt(pca.explained_variance_)
    rest = np.maximum(
        cells.var(axis=0, ddof=1) - (pca.components_**2 * pca.explained_variance_[:, None]).sum(axis=0), 0
    )
    return np.maximum(pca.inverse_transform(z) + np.sqrt(rest) * rng.normal(size=(n, cells.shape[1])), 0.0)


register("sampler", "LCD")(_lcd.draws)
register("sampler", "control cells", kind="baseline")(_drawn("control cells", _again, control=True))
register("sampler", "label mean", kind="baseline")(_drawn("label mean", _mean))
register("sampler", "independent Gaussians", kind="baseline")(_drawn("independent Gaussians", _diagonal))
register("sampler", "genes drawn one by one", kind="baseline")(_drawn("genes drawn one by one", _shuffled))
register("sampler", "probabilistic PCA", kind="baseline")(_drawn("probabilistic PCA", _factors))
register("sampler", "training cells again", kind="ceiling")(_drawn("training cells again", _again))
