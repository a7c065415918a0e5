from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.decomposition import PCA

from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Network, fit_activity

GENES = [f"g{i}" for i in range(20)]
SETS = {"one": GENES[:6], "two": GENES[6:12]}


def factors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Expression driven by a factor for each set, and the factors; further genes are noise."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(300, 2))
    x = rng.normal(size=(300, 20)) * 0.7 + 4
    x[:, :6] += f[:, :1] * np.array([1, 1, 1, 1, 1, -1])
    x[:, 6:12] += f[:, 1:] * 1.2
    return x, f


def test_eigengene_is_the_first_component_with_positive_mean_loading():
    x, f = factors()
    activity = fit_activity(x, GENES, SETS)
    scores = activity.transform(x, GENES)
    assert activity.names == ["one", "two", "global"]
    for k, held in enumerate((slice(0, 6), slice(6, 12), slice(0, 12))):
        z = (x[:, held] - x[:, held].mean(0)) / x[:, held].std(0)
        pca = PCA(1).fit(z)
        sign = np.sign(pca.components_[0].mean())
        np.testing.assert_allclose(scores[:, k], sign * pca.transform(z)[:, 0], atol=1e-8)
        assert activity.loadings.iloc[:, k].mean() > 0
        assert activity.explained["explained"].iloc[k] == pytest.approx(pca.explained_variance_ratio_[0])
    for k in range(2):
        assert np.corrcoef(scores[:, k], f[:, k])[0, 1] > 0.9  # signed
    assert (activity.explained["chance"].iloc[:2] < activity.explained["explained"].iloc[:2]).all()


def test_explained_variance_of_random_sets_is_chance():
    x = np.random.default_rng(0).normal(size=(400, 20))
    explained = fit_activity(x, GENES, {"a": GENES[:5], "b": GENES[5:]}).explained
    assert (explained["p_value"].iloc[:2] > 0.02).all()
    assert np.isnan(explained.loc["global", "p_value"])
    x, _ = factors()
    sets = {**SETS, "noise": GENES[12:]}
    p = fit_activity(x, GENES, sets).explained["p_value"]
    assert p["one"] < 0.02 and p["two"] < 0.02 and p["noise"] > 0.2


@pytest.mark.parametrize("method", ["eigengene", "mean"])
def test_new_cells_are_projected_not_refitted(method):
    x, _ = factors()
    activity = fit_activity(x, GENES, SETS, method=method)
    both = activity.transform(x, GENES)
    shift = np.zeros(20)
    shift[:6] = 3.0
    order = np.random.default_rng(1).permutation(20)
    moved = activity.transform(sparse.csr_matrix((x + shift)[:50][:, order]), [GENES[i] for i in order])
    expected = (activity.loadings.to_numpy()[:6] / activity.scale.to_numpy()[:6, None]).sum(0) * 3.0
    np.testing.assert_allclose(moved - both[:50], np.tile(expected, (50, 1)), atol=1e-8)


def test_mean_is_the_mean():
    x, _ = factors()
    scores = fit_activity(x, GENES, SETS, method="mean", include_global=False).transform(x, GENES)
    z = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(scores, np.stack([z[:, :6].mean(1), z[:, 6:12].mean(1)], 1))


def test_ulm_reads_the_targets():
    pytest.importorskip("decoupler")
    rng = np.random.default_rng(0)
    f = rng.normal(size=(200, 2))
    targets = [f"t{i}" for i in range(40)]
    genes = ["A", "B", "C", *targets]
    effect = rng.choice([-1, 1], 40)
    x = rng.normal(size=(200, 43))
    x[:, 3:23] += f[:, :1] * effect[:20]
    x[:, 23:] += f[:, 1:] * effect[20:]
    edges = [(s, t, e / 2) for s in ("A", "B") for t, e in zip(targets[:20], effect[:20], strict=True)]
    edges += [("C", t, e) for t, e in zip(targets[20:], effect[20:], strict=True)]
    network = Network(pd.DataFrame(edges, columns=["source", "target", "weight"]))
    activity = fit_activity(x, genes, {"ab": ["A", "B"], "c": ["C"]}, method="ulm", network=network)
    scores = activity.transform(x, genes)
    assert scores.shape == (200, 3)
    for k in range(2):
        assert np.corrcoef(scores[:, k], f[:, k])[0, 1] > 0.8  # the regulators' own expression is noise here
        assert abs(np.corrcoef(scores[:, k], f[:, 1 - k])[0, 1]) < 0.3
    with pytest.raises(SetupError, match="network"):
        fit_activity(x, genes, {"ab": ["A", "B"]}, method="ulm")


def test_bad_input():
    x, _ = factors()
    activity = fit_activity(x, GENES, SETS)
    with pytest.raises(UnknownNameError, match="g3"):
        activity.transform(x[:, [i for i in range(20) if i != 3]], [g for g in GENES if g != "g3"])
    with pytest.raises(InputDataError, match="'dark'"):
        fit_activity(x, GENES, {**SETS, "dark": ["z"]})
    with pytest.raises(SetupError, match="global"):
        fit_activity(x, GENES, {"global": GENES[:3]})
    with pytest.raises(SetupError, match="eigengene"):
        fit_activity(x, GENES, SETS, method="median")
    with pytest.raises(InputDataError, match="infinite"):
        fit_activity(np.where(x > 5, np.inf, x), GENES, SETS)
    flat = x.copy()
    flat[:, 2] = 1.0
    assert "g2" not in fit_activity(flat, GENES, SETS).loadings.index
