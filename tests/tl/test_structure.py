"""tl.structure: recovery of a known graph beside chance lines, interventions orient, honesty without them."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sccausal import tl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network
from sccausal.grn._elastic_net import complete_ranking, elastic_net_sem, rank_gaussian, ridge_partial_correlation
from sccausal.grn._feedback_sem import intervention_sets
from sccausal.grn._intervention_stats import InterventionStatistics
from sccausal.grn._linear_sem import blanket_support, fit_linear_sem
from sccausal.grn._logdet_sem import logdet_path
from sccausal.grn._stepwise import TargetRegression
from sccausal.nn.graph import is_dag

GENES = 30


def simulate(
    weights: np.ndarray, share: float = 0.5, kind: str = "hard", n_control: int = 400, n_each: int = 25, seed: int = 0
) -> tuple[ad.AnnData, np.ndarray]:
    """Standardised cells of a linear SEM (cycles allowed), and the weights on the standardised scale."""
    rng = np.random.default_rng(seed)
    m = len(weights)
    targets = np.sort(rng.choice(m, int(share * m), replace=False))
    blocks, labels = [], []
    for t in [-1, *targets]:
        n = n_control if t < 0 else n_each
        used, noise = weights.copy(), rng.normal(size=(n, m)) * np.linspace(0.6, 1.4, m)
        if t >= 0 and kind == "hard":
            used[:, t], noise[:, t] = 0, 2 + 0.3 * rng.normal(size=n)
        elif t >= 0:
            noise[:, t] += 2.5
        blocks.append(noise @ np.linalg.inv(np.eye(m) - used))
        labels += ["control" if t < 0 else f"g{t}"] * n
    x = np.concatenate(blocks)
    spread = x.std(0)
    obs = pd.DataFrame({"guide": pd.Categorical(labels)}, index=[f"c{i}" for i in range(len(x))])
    adata = ad.AnnData((x - x.mean(0)) / spread, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(m)]))
    return adata, weights * spread[:, None] / spread[None]


def random_dag(m: int = GENES, degree: float = 1.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    order = rng.permutation(m)
    edges = np.triu(rng.random((m, m)) < 2 * degree / (m - 1), 1)
    signed = edges * rng.uniform(0.5, 1.2, (m, m)) * rng.choice([-1, 1], (m, m))
    return signed[np.ix_(order, order)]


def shd(found: np.ndarray, truth: np.ndarray) -> int:
    """Pairs of genes whose edge is missing, extra or turned."""
    differs = (found != 0) != (truth != 0)
    return int(np.triu(differs | differs.T, 1).sum())


def direction_accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    i, j = np.nonzero(truth)
    forward, back = np.abs(found[i, j]), np.abs(found[j, i])
    return float(np.mean(np.where(forward == back, 0.5, forward > back)))


def ridge_best_cut(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Ridge partial correlations cut where F1 against the truth is best."""
    partial = ridge_partial_correlation(x, 0.1)
    size = np.abs(partial)
    hits = np.array([(truth[size >= t] != 0).sum() for t in np.unique(size)])
    taken = np.array([(size >= t).sum() for t in np.unique(size)])
    best = np.unique(size)[np.argmax(2 * hits / (taken + (truth != 0).sum()))]
    return np.where(size >= best, partial, 0)


def matrix(network: Network, adata: ad.AnnData) -> np.ndarray:
    return np.asarray(network.to_matrix(list(adata.var_names)), dtype=float)


@pytest.fixture(scope="module")
def hard() -> tuple[ad.AnnData, np.ndarray]:
    return simulate(random_dag())


# -------------------------------------------------------------------------------------- with interventions


def test_recovers_the_graph_far_better_than_ridge_partial(hard):
    adata, truth = hard
    found = matrix(tl.structure(adata, intervention_key="guide", control="control"), adata)
    simple = ridge_best_cut(np.asarray(adata.X), truth)
    assert is_dag(found)
    assert shd(found, truth) <= min(0.25 * shd(simple, truth), 6)
    assert direction_accuracy(found, truth) >= 0.9
    there = (found != 0) & (truth != 0)
    assert np.abs(found - truth)[there].max() < 0.15


def test_soft_interventions_are_recovered_as_soft():
    adata, truth = simulate(random_dag(seed=1), kind="soft")
    soft = matrix(tl.structure(adata, intervention_key="guide", control="control", kind="soft"), adata)
    assert shd(soft, truth) <= 6 and direction_accuracy(soft, truth) >= 0.9


def test_hard_data_read_as_soft_lose(hard):
    adata, _ = hard
    intervened = np.array([[lab == g for g in adata.var_names] for lab in adata.obs["guide"]])
    as_hard = InterventionStatistics(np.asarray(adata.X), intervened, "hard")
    as_soft = InterventionStatistics(np.asarray(adata.X), intervened, "soft")
    truth = hard[1]
    j = next(j for j in as_hard.targets if (truth[:, j] != 0).sum() >= 2)
    chosen = np.flatnonzero(truth[:, j]).tolist()
    error = [
        np.abs(TargetRegression(s, j).fit(chosen).coefficients - truth[chosen, j]).max() for s in (as_hard, as_soft)
    ]
    assert error[0] < error[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_intervention_orients_one_edge(seed):
    weights = np.array([[0.0, 0.9], [0.0, 0.0]])
    if seed == 2:
        weights = weights.T.copy()
    adata, truth = simulate(weights, share=1.0, seed=seed)
    adata = adata[adata.obs["guide"] != "g1"].copy()
    found = matrix(tl.structure(adata, intervention_key="guide", control="control"), adata)
    assert (found != 0).tolist() == (truth != 0).tolist()


def test_the_log_det_path_alone_is_beaten_by_the_search(hard):
    adata, truth = hard
    full = matrix(tl.structure(adata, intervention_key="guide", control="control"), adata)
    path = matrix(tl.structure(adata, intervention_key="guide", control="control", refine=False), adata)
    assert is_dag(path) and (path != 0).any()
    assert shd(full, truth) <= shd(path, truth) < shd(ridge_best_cut(np.asarray(adata.X), truth), truth)


def test_feedback_loop_is_recovered_and_stable():
    weights = random_dag(12, 1.0, seed=3)
    weights[np.ix_([0, 1, 2], [0, 1, 2])] = 0
    weights[0, 1], weights[1, 2], weights[2, 0] = 0.6, 0.7, -0.6
    weights[[0, 1, 2], 3:] = 0
    weights[3:, [0, 1, 2]] = 0
    weights[2, 5] = 0.8
    weights[5:, 3:5] = weights[5, 6:] = 0
    adata, truth = simulate(weights, share=1.0, n_control=800, n_each=100)
    assert not is_dag(truth)
    network = tl.structure(adata, intervention_key="guide", control="control", acyclicity=None)
    found = matrix(network, adata)
    loop = [0, 1, 2], [1, 2, 0]
    assert np.abs(found[loop] - truth[loop]).max() < 0.15
    assert shd(found, truth) <= 4 and network.metadata["gain"] < 1
    dag = matrix(tl.structure(adata, intervention_key="guide", control="control"), adata)
    assert shd(dag, truth) > shd(found, truth)


def test_regulators_only_send_edges(hard):
    adata, truth = hard
    names = [f"g{i}" for i in np.flatnonzero((truth != 0).any(1))]
    adata = adata.copy()
    adata.var["is_tf"] = adata.var_names.isin(names)
    network = tl.structure(adata, intervention_key="guide", control="control", regulators="is_tf")
    assert set(network.to_frame()["source"]) <= set(names)
    assert shd(matrix(network, adata), truth) <= 8


def test_edges_say_what_oriented_them_and_metadata_is_json(hard):
    adata, _ = hard
    before = adata.copy()
    network = tl.structure(adata, intervention_key="guide", control="control")
    frame, targets = network.to_frame(), set(adata.obs["guide"]) - {"control"}
    expected = frame["source"].isin(targets) | frame["target"].isin(targets)
    assert (frame["intervened"].astype(bool) == expected).all() and 0 < expected.sum()
    assert (frame["evidence"] > 0).all()
    assert network.metadata["direction_identified"] is True
    json.dumps(network.metadata)
    assert np.array_equal(before.X, adata.X) and list(before.obs) == list(adata.obs) and not adata.uns


def test_same_result_for_any_cell_order_and_for_an_obsm_frame(hard):
    adata, _ = hard
    base = matrix(tl.structure(adata, intervention_key="guide", control="control"), adata)
    other = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    targets = sorted(set(other.obs["guide"]) - {"control"})
    other.obsm["dose"] = pd.DataFrame({t: (other.obs["guide"] == t) * 1.0 for t in targets}, index=other.obs_names)
    again = matrix(tl.structure(other, intervention_key="dose"), other)
    assert np.allclose(base, again, atol=1e-8)


def test_cells_with_unmeasured_targets_are_left_out(hard):
    adata, _ = hard
    labels = adata.obs["guide"].astype(str)
    labels[labels == "g3"] = "elsewhere"
    labels = labels.replace(next(iter(set(labels) - {"control", "elsewhere"})), "elsewhere")
    adata = adata.copy()
    adata.obs["guide"] = labels.to_numpy()
    network = tl.structure(adata, intervention_key="guide", control="control")
    assert network.metadata["unmeasured_targets"] == ["elsewhere"]
    assert network.metadata["n_cells_left_out"] == int((labels == "elsewhere").sum()) > 0


# ----------------------------------------------------------------------------------- sufficient statistics


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("n_genes", [4, 40])  # fewer and more genes than cells of one target
def test_statistics_equal_a_regression_on_the_right_cells(kind, n_genes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, n_genes)) @ (np.eye(n_genes) + 0.3)
    intervened = np.zeros(x.shape, dtype=bool)
    intervened[:20, 0] = intervened[15:40, 2] = True  # some cells carry both
    stats = InterventionStatistics(x, intervened, kind)
    fit = TargetRegression(stats, 2).fit([0, 1, 3])
    cells = ~intervened[:, 2] if kind == "hard" else np.ones(len(x), dtype=bool)
    design = np.column_stack([x[:, [0, 1, 3]], np.ones(len(x)), intervened[:, 2]])[cells]
    expected, *_ = np.linalg.lstsq(design if kind == "soft" else design[:, :4], x[cells, 2], rcond=None)
    assert np.allclose(fit.coefficients, expected[:3], atol=1e-6)
    assert stats.effective_cells(2) == cells.sum()
    assert np.allclose(stats.diagonal(2), np.diagonal(stats.columns(2, np.arange(n_genes))))
    assert intervention_sets(stats) == {(0,): 15, (0, 2): 5, (2,): 20}


def test_gains_equal_differences_of_scores():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 6))
    x[:, 3] += x[:, 0] - 0.5 * x[:, 1]
    regression = TargetRegression(InterventionStatistics(x), 3)
    base = regression.step([0, 4])
    assert regression.step([0, 4, 1]).score - base.score == pytest.approx(base.gain_add[1], abs=1e-6)
    assert regression.step([0]).score - base.score == pytest.approx(base.gain_delete[1], abs=1e-6)
    assert sorted(regression.select(np.ones(6, dtype=bool))[0]) == [0, 1]


def test_log_det_path_respects_support_and_orders(hard):
    adata, truth = hard
    intervened = np.array([[lab == g for g in adata.var_names] for lab in adata.obs["guide"]])
    stats = InterventionStatistics(np.asarray(adata.X), intervened)
    support = blanket_support(stats, ~np.eye(GENES, dtype=bool))
    assert (support[truth != 0]).mean() > 0.9 and support.mean() < 0.4
    path = logdet_path(stats, support)
    assert not (path != 0)[~support].any()
    assert direction_accuracy(path, truth) > 0.75  # chance is 0.5


# --------------------------------------------------------------------------------------- without interventions


def test_observed_cells_rank_true_neighbours_and_claim_no_direction():
    adata, truth = simulate(random_dag(seed=2), share=0.0, n_control=500)
    network = tl.structure(adata)
    found = np.abs(matrix(network, adata))
    neighbours = (truth != 0) | (truth != 0).T
    k = int(neighbours.sum())
    best = np.argsort(-found, axis=None)[:k]
    assert neighbours.ravel()[best].mean() > 5 * neighbours.mean()
    assert network.metadata["direction_identified"] is False
    assert len(network) == GENES * (GENES - 1) > network.metadata["n_elastic_net_edges"]
    assert len(tl.structure(adata, complete=False)) == network.metadata["n_elastic_net_edges"]


def test_observed_dag_warns():
    adata, _ = simulate(random_dag(12, seed=2), share=0.0, n_control=300)
    with pytest.warns(UserWarning, match="equivalence"):
        network = tl.structure(adata, acyclicity="logdet")
    assert is_dag(matrix(network, adata)) and network.metadata["direction_identified"] is False


def test_rank_gaussian_ignores_monotone_changes_of_scale():
    adata, _ = simulate(random_dag(10, seed=4), share=0.0, n_control=200)
    bent = adata.copy()
    bent.X = np.exp(np.asarray(adata.X))
    assert np.allclose(matrix(tl.structure(adata), adata), matrix(tl.structure(bent), adata))


def test_batch_shifts_make_no_edges():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8))
    adata = ad.AnnData(x, obs=pd.DataFrame({"batch": ["a", "b"] * 200}, index=[str(i) for i in range(400)]))
    adata.X[::2, :4] += 3  # four genes shift together
    raw = np.abs(matrix(tl.structure(adata, complete=False), adata)).sum()
    kept = np.abs(matrix(tl.structure(adata, complete=False, batch_key="batch"), adata)).sum()
    assert raw > 1 and kept < 0.2 * raw  # what is left is noise, also in cells without batches


def test_elastic_net_solves_its_problem():
    rng = np.random.default_rng(0)
    z = rank_gaussian(rng.normal(size=(150, 12)) @ rng.normal(size=(12, 12)))
    l1, l2 = 0.08, 0.2
    weights = elastic_net_sem(z, l1, l2, max_steps=5000, tolerance=1e-8)
    gradient = z.T @ (z @ weights - z) / len(z) + l2 * weights
    off = ~np.eye(12, dtype=bool)
    active = (weights != 0) & off
    assert active.sum() > 10 and (weights[~off] == 0).all()
    assert np.allclose(gradient[active], -l1 * np.sign(weights[active]), atol=1e-5)
    assert (np.abs(gradient[off & ~active]) <= l1 + 1e-5).all()
    only = elastic_net_sem(z, l1, l2, sources=np.array([1, 5]))
    assert set(np.flatnonzero(only.any(1))) <= {1, 5}


def test_complete_ranking_keeps_found_edges_on_top():
    weights = np.array([[0.0, 0.2], [-0.5, 0.0]])
    full = complete_ranking(weights, np.array([[0.0, 9.0], [9.0, 1.0]]))
    assert full[0, 1] == 0.2 and full[1, 0] == -0.5 and 0 < full[1, 1] < 0.2


# ----------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_named(hard):
    adata, _ = hard
    with pytest.raises(UnknownNameError, match="guide"):
        tl.structure(adata, intervention_key="guyde", control="control")
    with pytest.raises(UnknownNameError, match="g1"):
        tl.structure(adata, regulators=["g1", "gg1"])
    with pytest.raises(SetupError, match="acyclicity"):
        tl.structure(adata, acyclicity="expm")  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="standardise"):
        tl.structure(adata, standardise="log")  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="kind"):
        tl.structure(adata, intervention_key="guide", control="control", kind="do")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="batch"):
        tl.structure(adata, batch_key="lane")
    missing = adata.copy()
    missing.X[3, 2] = np.nan
    with pytest.raises(InputDataError, match="g2"):
        tl.structure(missing)
    renamed = adata.copy()
    renamed.var_names = [f"x{i}" for i in range(adata.n_vars)]
    with pytest.raises(InputDataError, match="None of the"):
        tl.structure(renamed, intervention_key="guide", control="control")


def test_constant_and_copied_genes_do_not_break_it(hard):
    adata, _ = hard
    x = np.asarray(adata.X).copy()
    x[:, 5] = 1.0
    x[:, 7] = x[:, 6]
    intervened = np.array([[lab == g for g in adata.var_names] for lab in adata.obs["guide"]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_linear_sem((x - x.mean(0)), intervened)
    assert np.isfinite(fit.weights).all() and is_dag(fit.weights)
    assert not fit.weights[5].any() and not fit.weights[:, 5].any()
