from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from sccausal._errors import InputDataError, SetupError
from sccausal.grn import Network, edge_mixture, strong_edges


def network(logs: np.ndarray, seed: int = 0) -> Network:
    sign = np.random.default_rng(seed).choice([-1, 1], len(logs))
    names = [f"g{i}" for i in range(len(logs))]
    return Network(pd.DataFrame({"source": "tf", "target": names, "weight": sign * np.exp(logs)}))


def two_groups(n: int = 4000, share: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(0)
    strong = int(share * n)
    return np.concatenate([rng.normal(-4, 0.6, n - strong), rng.normal(-1, 0.5, strong)])


def test_mixture_and_its_crossing():
    mixture = edge_mixture(network(two_groups()))
    np.testing.assert_allclose(mixture.means, (-4, -1), atol=0.05)
    np.testing.assert_allclose(mixture.sds, (0.6, 0.5), atol=0.04)
    np.testing.assert_allclose(mixture.shares, (0.6, 0.4), atol=0.02)
    truth = brentq(lambda x: 0.6 * norm.pdf(x, -4, 0.6) - 0.4 * norm.pdf(x, -1, 0.5), -4, -1)
    assert np.log(mixture.cut) == pytest.approx(truth, abs=0.06)
    weak, strong = mixture.density(np.log([mixture.cut]))
    assert weak[0] == pytest.approx(strong[0], rel=1e-6)
    assert mixture.two_groups
    assert mixture.fraction == pytest.approx(0.4, abs=0.01)


def test_strong_edges_by_mixture_and_by_fraction():
    full = network(two_groups())
    kept = strong_edges(full)
    assert len(kept) == round(full.metadata.get("n", len(full)) * kept.metadata["strong_edges"]["fraction"])
    assert kept.to_frame()["weight"].abs().min() >= kept.metadata["strong_edges"]["cut"]
    assert kept.genes == full.genes
    assert len(strong_edges(full, 0.25)) == 1000
    for fraction in (0, 1.2):
        with pytest.raises(SetupError):
            strong_edges(full, fraction)


@pytest.mark.filterwarnings("ignore:The sizes of the weights are hardly two groups")
def test_one_group_is_called_one_group():
    called_two = 0
    for seed in range(3):
        try:
            called_two += edge_mixture(network(np.random.default_rng(seed).normal(-2, 0.7, 1500))).two_groups
        except InputDataError:  # one component within the other: there is no cut
            continue
    assert called_two == 0


def test_an_arbitrary_cut_is_warned_of():
    rng = np.random.default_rng(0)
    hardly = network(np.concatenate([rng.normal(-2, 0.7, 60), rng.normal(-0.6, 0.3, 10)]))
    with pytest.warns(UserWarning, match="hardly two groups"):
        assert not edge_mixture(hardly).two_groups
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edge_mixture(network(two_groups()))


def test_too_few_edges():
    with pytest.raises(InputDataError, match="fraction"):
        edge_mixture(network(np.linspace(-3, 0, 8)))
    with pytest.raises(InputDataError, match="fraction"):
        edge_mixture(network(np.zeros(50)))
