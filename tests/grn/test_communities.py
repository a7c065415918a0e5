"""Communities: planted modules are found, agreement and votes are what they say, and tests of cohesion hold."""

from __future__ import annotations

import igraph
import leidenalg
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_modules import planted_modules
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from sccausal._errors import InputDataError, SetupError
from sccausal.grn import Communities, Network, bagged_ridge, cohesion_test, find_communities
from sccausal.grn._cohesion import rewire_sources
from sccausal.grn._consensus import WeightedGraph, canonical, consensus, leiden_runs, stability, to_igraph


def block_network(n: int = 60, k: int = 5, p_in: float = 0.3, p_out: float = 0.03, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    module = np.arange(n) % k
    edge = rng.random((n, n)) < np.where(module[:, None] == module, p_in, p_out)
    weight = edge * rng.choice([-1, 1], (n, n)) * rng.lognormal(0, 0.5, (n, n))
    np.fill_diagonal(weight, 0)
    return Network.from_matrix(weight, [f"T{i:02d}" for i in range(n)])


def agreement(found: Communities, modules: pd.Series) -> float:
    return adjusted_rand_score(modules, found.labels.reindex(modules.index).fillna("none"))


@pytest.fixture(scope="module")
def found() -> Communities:
    return find_communities(block_network(), n_runs=60)


@pytest.mark.parametrize("seed", range(5))
def test_planted_modules_are_recovered_from_cells(seed):
    planted = planted_modules(1500, module_size=15, p_in=0.4, seed=seed)
    network = bagged_ridge(planted.adata.X, planted.adata.var_names, planted.base, seed=seed)
    score = agreement(find_communities(network, n_runs=25, seed=seed), planted.modules)
    assert score >= 0.9
    # what the base network says by itself, and a network whose weights were dealt out anew
    frame = network.to_frame()
    frame["weight"] = np.random.default_rng(seed).permutation(frame["weight"])
    chance = agreement(find_communities(Network(frame), n_runs=20, seed=seed), planted.modules)
    assert score > chance + 0.04


def test_result_depends_on_the_seed_alone():
    network = block_network()
    first = find_communities(network, n_runs=20, seed=1)
    again = find_communities(network, n_runs=20, seed=1, n_jobs=2)
    pd.testing.assert_series_equal(first.labels, again.labels)
    pd.testing.assert_frame_equal(first.stability, again.stability)
    shuffled = Network(network.to_frame().sample(frac=1, random_state=0), network.genes[::-1])
    pd.testing.assert_series_equal(first.labels, find_communities(shuffled, n_runs=20, seed=1).labels)


def test_the_global_random_state_is_left_alone(found):
    import random

    random.seed(3)
    expected = random.random()
    random.seed(3)
    find_communities(block_network(), n_runs=3)
    assert random.random() == expected


def test_both_backends_optimise_the_same_function(found):
    other = find_communities(block_network(), n_runs=20, backend="leidenalg", n_iterations=2)
    assert adjusted_rand_score(found.labels.fillna("none"), other.labels.fillna("none")) > 0.95
    graph = WeightedGraph.from_matrix(found.strengths.to_numpy())
    made = to_igraph(graph)
    runs = leiden_runs(graph, [1.3], 5, backend="leidenalg", n_iterations=2, seed=7)[0]
    seeds = np.random.default_rng([7, 0]).integers(2**31 - 1, size=5)
    for run, seed in zip(runs, seeds.tolist(), strict=True):
        partition = leidenalg.find_partition(
            made, leidenalg.RBConfigurationVertexPartition, weights="weight", resolution_parameter=1.3, seed=seed
        )
        assert run.tolist() == canonical(np.array([partition.membership]))[0].tolist()


def test_strengths_and_table(found):
    network = block_network()
    matrix = np.abs(network.to_matrix(list(found.strengths.index)))
    np.testing.assert_allclose(found.strengths, matrix + matrix.T)
    table = found.to_frame().set_index("regulator")
    total = found.strengths.sum(1)
    np.testing.assert_allclose(table["strength_within"] + table["strength_to_others"], total)
    assert [len(v) for v in found.members().values()] == sorted((found.labels.value_counts()), reverse=True)
    assert "C1" in repr(found)


def partitions(n: int = 8, k: int = 4, rows: int = 6):
    row = st.lists(st.integers(0, k - 1), min_size=n, max_size=n)
    return st.lists(row, min_size=2, max_size=rows).map(lambda r: np.array(r, dtype=np.int32))


@given(partitions())
@settings(max_examples=50, deadline=None)
def test_canonical_labels_keep_the_partition(rows):
    out = canonical(rows)
    for before, after in zip(rows, out, strict=True):
        assert adjusted_rand_score(before, after) == 1
        assert after[0] == 0
        assert (np.maximum.accumulate(after) + 1 >= np.append(after[1:], 0)).all()


@given(partitions(rows=2))
@settings(max_examples=30, deadline=None)
def test_stability_is_that_of_scikit_learn(rows):
    rows = canonical(rows[:2])
    ari, vi = stability(rows, 5, 0)
    a, b = rows
    entropy = mutual_info_score(a, a) + mutual_info_score(b, b)
    assert ari == pytest.approx(adjusted_rand_score(a, b), abs=1e-9)
    assert vi == pytest.approx(entropy - 2 * mutual_info_score(a, b), abs=1e-9)


def test_votes_survive_other_names_and_noise():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 10)
    rows = np.array([rng.permutation(3)[truth] for _ in range(80)])
    flip = rng.random(rows.shape) < 0.1
    rows = np.where(flip, rng.integers(0, 3, rows.shape), rows)
    labels, share = consensus(canonical(rows))
    assert adjusted_rand_score(truth, labels) == 1
    assert share.mean() == pytest.approx(0.9 + 0.1 / 3, abs=0.02)


def test_small_communities_are_dissolved_and_isolated_regulators_named():
    frame = block_network().to_frame()
    extra = pd.DataFrame({"source": ["X1", "X2", "LONE"], "target": ["X2", "X1", "target"], "weight": [3.0, 2.0, 9.0]})
    network = Network(pd.concat([frame, extra], ignore_index=True))
    found = find_communities(network, n_runs=20)
    assert found.labels[["X1", "X2", "LONE"]].isna().all()
    assert found.confidence["X1"] == 0
    assert "X1" in find_communities(network, n_runs=20, min_size=2).labels.dropna().index


def test_cohesion_by_hand():
    weights = np.zeros((4, 4))
    weights[0, 1], weights[1, 0], weights[2, 3], weights[0, 2] = 2.0, -1.0, 1.0, 0.5
    names = list("abcd")
    network = Network.from_matrix(weights, names)
    given = Communities.from_labels({"a": "x", "b": "x", "c": "y", "d": "y"}, network)
    test = cohesion_test(given, n_permutations=200)
    table = test.per_community.set_index("community")["cohesion"]
    assert table["x"] == pytest.approx(3 / 3.5)
    assert table["y"] == pytest.approx(1 / 1.5)
    assert test.observed == pytest.approx((3 / 3.5 + 1 / 1.5) / 2)
    # of the 6 ways to name two pairs, 2 are the observed one
    assert test.p_value == pytest.approx(1 / 3, abs=0.1)


def test_only_the_rewired_test_tells_modules_from_none():
    modular, plain = [], []
    for seed in range(3):
        for p_in, p_out, out in ((0.25, 0.03, modular), (0.08, 0.08, plain)):
            held = find_communities(block_network(p_in=p_in, p_out=p_out, seed=seed), n_runs=10)
            rewired = cohesion_test(held, null="rewired", n_permutations=39, n_runs=4)
            out.append((cohesion_test(held, n_permutations=99).p_value, rewired.p_value, rewired.z_score))
    assert [p for p, _, _ in modular] == [0.01] * 3
    assert [p for p, _, _ in plain] == [0.01] * 3  # passes without any module
    assert [p for _, p, _ in modular] == [0.025] * 3
    assert np.mean([z for _, _, z in plain]) < 2 < min(z for _, _, z in modular)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_rewiring_keeps_degrees(seed):
    rng = np.random.default_rng(seed)
    source, target = np.nonzero((rng.random((15, 15)) < 0.2) * (1 - np.eye(15)))
    dealt = rewire_sources(source, target, 15, rng)
    assert sorted(dealt) == sorted(source)
    assert (dealt != target).all()
    assert len(set(zip(dealt, target, strict=True))) == len(target)


def test_given_communities():
    given = Communities.from_labels({"a": "immune", "b": "immune", "c": None})
    assert given.members() == {"immune": ["a", "b"]}
    with pytest.raises(InputDataError, match="No regulator"):
        Communities.from_labels({"a": None})
    with pytest.raises(InputDataError, match="twice"):
        Communities.from_labels(pd.Series(["x", "y"], index=["a", "a"]))
    with pytest.raises(InputDataError, match="not defined"):
        cohesion_test(given)


def test_bad_settings():
    network = block_network()
    for bad in ({"resolutions": []}, {"resolutions": [0]}, {"n_runs": 1}, {"backend": "louvain"}, {"n_iterations": -1}):
        with pytest.raises(SetupError):
            find_communities(network, **{"n_runs": 5} | bad)
    with pytest.raises(InputDataError, match="too few"):
        find_communities(network.top(2))
    with pytest.raises(InputDataError, match="min_size"):
        find_communities(network, n_runs=5, min_size=50)
    with pytest.raises(SetupError, match="null"):
        cohesion_test(find_communities(network, n_runs=5), null="shuffled")


def test_igraph_is_what_the_runs_use():
    graph = WeightedGraph.from_matrix(np.array([[0, 2.0, 0], [2.0, 0, 1], [0, 1, 0]]))
    assert isinstance(to_igraph(graph), igraph.Graph)
    assert to_igraph(graph) is to_igraph(graph)  # built once
