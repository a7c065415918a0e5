"""Bagged ridge: against a plain implementation, calibration of p-values, recovery of planted edges."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from planted_modules import planted_modules
from scipy import sparse
from sklearn.linear_model import Ridge

from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network, bagged_ridge
from sccausal.grn._bagged_ridge import _plan, _Shared, _Stack, fit_edges
from sccausal.grn._edge_test import _scatter


def cells(n: int, p: int, g: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised regulators, targets (the first ones are regulators on another scale) and their own positions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) @ (np.eye(p) + 0.2 * rng.normal(size=(p, p)))
    x = (x - x.mean(0)) / x.std(0)
    y = x @ rng.normal(size=(p, g)) * 0.2 + rng.normal(size=(n, g)) + 5
    y[:, : p // 2] = 3 * x[:, : p // 2] + 7
    own = np.where(np.arange(g) < p // 2, np.arange(g), -1)
    return x, y, own


def plainly(x, y, candidates, alpha, n_bags, share, seed):
    """The same bags, one scikit-learn regression per bag and target."""
    rng = np.random.default_rng(seed)
    found = [[] for _ in candidates]
    for _ in range(n_bags):
        drawn = np.bincount(rng.integers(len(x), size=len(x)), minlength=len(x))
        rank = np.argsort(rng.permutation(x.shape[1]))
        for j, held in enumerate(candidates):
            coefficients = np.full(len(held), np.nan)
            chosen = np.argsort(rank[held])[: max(1, int(share * len(held)))]
            model = Ridge(alpha=alpha).fit(x[:, held[chosen]], y[:, j], sample_weight=drawn)
            coefficients[chosen] = model.coef_
            found[j].append(coefficients)
    return [np.array(f) for f in found]


@pytest.mark.parametrize("dense", [True, False])
def test_equals_one_regression_per_bag_and_target(dense):
    x, y, own = cells(80, 12, 20)
    rng = np.random.default_rng(1)
    everyone = np.arange(12)
    if dense:  # shared systems, regulators read from the inverse
        candidates = [everyone[everyone != o] for o in own]
    else:  # systems of each target's own
        candidates = [np.sort(rng.choice(everyone[everyone != o], rng.integers(1, 8), replace=False)) for o in own]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in candidates])])
    kinds = {type(part) for part in _plan(candidates, starts, own)}
    assert kinds == ({_Shared} if dense else {_Stack})
    edges = fit_edges(x, y, candidates, own, alpha=10.0, n_bags=7, feature_share=0.7, seed=3)
    expected = plainly(x, y, candidates, 10.0, 7, 0.7, 3)
    for j, bags in enumerate(expected):
        mine = edges.target == j
        count = np.isfinite(bags).sum(0)
        np.testing.assert_array_equal(edges.n_bags[mine], count)
        seen = count > 0
        np.testing.assert_allclose(edges.weight[mine][seen], np.nanmean(bags[:, seen], 0), rtol=1e-8, atol=1e-10)
        twice = count > 1
        np.testing.assert_allclose(edges.std[mine][twice], np.nanstd(bags[:, twice], 0, ddof=1), rtol=1e-6, atol=1e-9)


def test_does_not_depend_on_threads_order_of_edges_or_sparsity():
    planted = planted_modules(300, 2, 6, 20)
    genes = list(planted.adata.var_names)
    first = bagged_ridge(planted.adata.X, genes, planted.base, seed=4)
    assert first == bagged_ridge(sparse.csr_matrix(planted.adata.X), genes, planted.base, seed=4, n_jobs=2)
    shuffled = planted.base.sample(frac=1, random_state=1)
    assert first == bagged_ridge(planted.adata.X, genes, shuffled, seed=4)
    assert first != bagged_ridge(planted.adata.X, genes, planted.base, seed=5)


def independent(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "dense":
        return rng.normal(size=(400, 80))
    return np.log1p(rng.poisson(rng.lognormal(-2.5, 1.0, 80), size=(400, 80)))  # most genes in a few percent of cells


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_p_values_hold_their_level_where_celloracles_do_not(kind):
    share = {"bootstrap": [], "bags": []}
    for seed in range(3):
        x = independent(kind, seed)
        genes = [f"g{i}" for i in range(80)]
        for p_value in share:
            frame = bagged_ridge(x, genes, regulators=genes[:20], p_value=p_value, seed=seed).to_frame()
            share[p_value].append([(frame["p_value"] < 0.05).mean(), (frame["q_value"] < 0.05).mean()])
    ours, bags = np.mean(share["bootstrap"], 0), np.mean(share["bags"], 0)
    assert 0.002 < ours[0] < 0.06
    assert ours[1] < 0.002
    assert bags[0] > 0.4 and bags[1] > 0.2  # why the default is another


def test_planted_edges_are_found_beside_chance():
    planted = planted_modules(1500, seed=0)
    frame = bagged_ridge(planted.adata.X, planted.adata.var_names, planted.base).to_frame()
    truth = set(zip(planted.truth["source"], planted.truth["target"], strict=True))
    frame["true"] = [(s, t) in truth for s, t in zip(frame["source"], frame["target"], strict=True)]
    chance = frame["true"].mean()
    assert chance < 0.3
    assert frame.head(len(truth) // 2)["true"].mean() > 0.9
    significant = frame[frame["q_value"] <= 0.05]
    assert significant["true"].sum() > 0.75 * len(truth)
    signs = planted.truth.set_index(["source", "target"])["weight"]
    hits = significant[significant["true"]]
    agree = np.sign(hits["weight"]) == np.sign(
        signs.loc[list(zip(hits["source"], hits["target"], strict=True))].to_numpy()
    )
    assert agree.mean() > 0.97


def test_scale_of_targets():
    planted = planted_modules(300, 2, 6, 20)
    genes = list(planted.adata.var_names)
    sd = pd.Series(planted.adata.X.astype(float).std(0), index=genes)
    raw = bagged_ridge(planted.adata.X, genes, planted.base, scale_targets=False).to_frame()
    scaled = bagged_ridge(planted.adata.X, genes, planted.base).to_frame()
    both = raw.merge(scaled, on=["source", "target"])
    np.testing.assert_allclose(both["weight_x"] / sd[both["target"]].to_numpy(), both["weight_y"], rtol=1e-8)


def test_rare_genes_take_no_part_and_are_counted():
    planted = planted_modules(300, 2, 6, 20)
    adata = planted.adata.copy()
    rare = planted.truth["target"].iloc[-1]
    column = adata.var_names.get_loc(rare)
    adata.X[:, column] = 0
    adata.X[:4, column] = 1
    network = bagged_ridge(adata.X, adata.var_names, planted.base)
    assert rare not in network.genes
    assert network.metadata["n_rare_genes"] == 1
    assert rare in bagged_ridge(adata.X, adata.var_names, planted.base, min_cells=3).genes


def test_regulators_and_targets_restrict():
    x = independent("dense", 0)
    genes = [f"g{i}" for i in range(80)]
    network = bagged_ridge(x, genes, regulators=["g3", "g1"], targets=genes[:10])
    assert set(network.to_frame()["source"]) == {"g1", "g3"}
    assert len(network) == 2 * 10 - 2  # no gene regulates itself
    assert network.regulators == ["g1", "g3"]


def test_scatter_of_variance_ratios():
    rng = np.random.default_rng(0)
    dof = np.full(4000, 12.0)
    same = rng.chisquare(12, 4000) / 12 * 1.3
    prior, centre = _scatter(same, dof)
    assert prior > 200 and centre == pytest.approx(1.3, rel=0.03)
    spread = same * 8 / rng.chisquare(8, 4000)  # scattered with 8 degrees of freedom
    prior, centre = _scatter(spread, dof)
    assert prior == pytest.approx(8, rel=0.2) and centre == pytest.approx(1.3, rel=0.05)


def test_bad_input():
    x = independent("dense", 0)
    genes = [f"g{i}" for i in range(80)]
    base = pd.DataFrame({"source": ["g1"], "target": ["g2"]})
    with pytest.raises(SetupError, match="cells are rows"):
        bagged_ridge(x.T, genes, base)
    with pytest.raises(SetupError, match="alpha"):
        bagged_ridge(x, genes, base, alpha=0)
    with pytest.raises(SetupError, match="n_bags"):
        bagged_ridge(x, genes, base, n_bags=2)
    with pytest.raises(SetupError, match="p_value"):
        bagged_ridge(x, genes, base, p_value="t")
    with pytest.raises(UnknownNameError, match="Did you mean 'g7"):
        bagged_ridge(x, genes, base, regulators=["G7"])
    with pytest.raises(InputDataError, match="Check organism"):
        bagged_ridge(x, genes, pd.DataFrame({"source": ["Sox2"], "target": ["Nanog"]}))
    with pytest.raises(InputDataError, match="No edge is left"):
        bagged_ridge(x, genes, Network(pd.DataFrame({"source": ["g1"], "target": ["g1"], "weight": [1.0]})))
    with pytest.raises(InputDataError, match=r"\['g5'\]"):
        bagged_ridge(np.where(np.arange(80) == 5, np.nan, x), genes, base)
    with pytest.raises(InputDataError, match="10 cells"):
        bagged_ridge(x[:5], genes, base)
    with pytest.raises(SetupError, match="name `regulators`"):
        bagged_ridge(np.random.default_rng(0).random((12, 5000)), [f"h{i}" for i in range(5000)])
