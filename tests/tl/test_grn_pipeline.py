"""From cells to network, communities, activities and enrichment, with results kept in the AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from planted_modules import Planted, planted_modules

from sccausal import tl
from sccausal._errors import InputDataError, SetupError, UnknownNameError
from sccausal.grn import Communities, Network, bagged_ridge


@pytest.fixture(scope="module")
def planted() -> Planted:
    planted = planted_modules(1200, 4, 12, 100, p_in=0.4)
    adata = planted.adata
    rng = np.random.default_rng(0)
    adata.obs["guide"] = pd.Categorical(rng.choice(["control", "G0001", "G0001+G0002"], adata.n_obs, p=[0.8, 0.1, 0.1]))
    adata.obs["batch"] = rng.choice(["b1", "b2"], adata.n_obs)
    return planted


@pytest.fixture(scope="module")
def done(planted) -> ad.AnnData:
    adata = planted.adata.copy()
    tl.grn(adata, planted.base)
    tl.tf_communities(adata, n_runs=20, n_permutations=99, n_rewired=20)
    tl.tf_activity(adata)
    return adata


def test_network_is_kept_with_all_its_edges(planted, done):
    held = done.uns["grn"]
    assert len(held["edges"]) == len(planted.base)
    significant = tl.grn(planted.adata.copy(), planted.base)
    assert len(significant) == held["edges"]["significant"].sum() < len(planted.base)
    assert (significant.to_frame()["q_value"] <= 0.05).all()
    strong = tl.grn(planted.adata.copy(), planted.base, strong=0.25, edges="strong")
    assert len(strong) == np.ceil(0.25 * len(significant))
    assert strong.to_frame()["weight"].abs().min() >= significant.to_frame()["weight"].abs().nlargest(len(strong)).min()
    if held["mixture"] and held["mixture"]["bic_gain"] > 10:
        kept = held["edges"][held["edges"]["strong"]]
        assert kept["weight"].abs().min() >= held["mixture"]["cut"]


def test_only_control_cells_and_training_cells_are_read(planted):
    adata = planted.adata.copy()
    control = (adata.obs["guide"] == "control").to_numpy()
    train = np.arange(adata.n_obs) < 700
    found = tl.grn(
        adata, planted.base, intervention_key="guide", control="control", train=train, edges="tested", key_added=None
    )
    rows = control & train
    expected = bagged_ridge(adata.X[rows], adata.var_names, planted.base).to_frame()
    pd.testing.assert_frame_equal(found.to_frame()[expected.columns], expected)
    adata.X[~rows] = 7.0  # nothing else matters
    again = tl.grn(
        adata, planted.base, intervention_key="guide", control="control", train=train, edges="tested", key_added=None
    )
    assert again == found
    assert adata.uns == {}


def test_shift_between_batches_makes_no_edges(planted):
    adata = planted.adata.copy()
    adata.X = adata.X + 2.0 * (adata.obs["batch"] == "b1").to_numpy()[:, None].astype(np.float32)
    plain = tl.grn(adata, planted.base, edges="tested", key_added=None)
    centred = tl.grn(adata, planted.base, edges="tested", batch_key="batch", key_added=None)
    unshifted = tl.grn(planted.adata, planted.base, edges="tested", batch_key="batch", key_added=None)

    def distance(a: Network) -> float:
        return float(np.abs(a.to_matrix(unshifted.genes) - unshifted.to_matrix()).mean())

    assert distance(centred) < 0.01 * distance(plain)


def test_communities_are_those_planted_and_kept(planted, done):
    from sklearn.metrics import adjusted_rand_score

    labels = done.var["tf_communities"]
    assert adjusted_rand_score(planted.modules, labels[planted.modules.index].astype(str)) > 0.9
    assert labels[~done.var["is_tf"]].isna().all()
    held = done.uns["tf_communities"]
    assert set(held["cohesion"]) == {"permuted", "rewired"}
    assert held["cohesion"]["permuted"]["p_value"] == 0.01
    assert held["cohesion"]["rewired"]["p_value"] == pytest.approx(1 / 21)
    assert held["stability"]["chosen"].sum() == 1


def test_activities_of_held_out_cells_are_projected(planted, done):
    train = np.arange(done.n_obs) < 900
    fitted, rest = done[train].copy(), done[~train].copy()
    for part in (fitted, rest):
        del part.obsm["tf_activity"], part.varm["tf_activity_loadings"], part.uns["tf_activity"]
    tl.tf_activity(fitted)
    projected = tl.tf_activity(rest, reference=fitted)
    whole = done.copy()
    at_once = tl.tf_activity(whole, train=train)
    np.testing.assert_allclose(projected, at_once[~train], atol=1e-6)
    pd.testing.assert_frame_equal(rest.varm["tf_activity_loadings"], fitted.varm["tf_activity_loadings"])
    assert rest.obsm["tf_activity"].shape == (300, 5)
    with pytest.raises(UnknownNameError, match="tf_activity"):
        tl.tf_activity(rest.copy(), reference=planted.adata)


def test_enrichment_of_communities(planted, done):
    pytest.importorskip("gseapy")
    members = done.var["tf_communities"].dropna()
    planted_targets = planted.truth[planted.truth["source"].isin(members.index[members == "C1"])]["target"]
    sets = {"about C1": list(planted_targets.unique()), "about nothing": list(done.var_names[::7])}
    table = tl.community_enrichment(done, sets, max_size=1000)
    enriched = table[table["enriched"]]
    assert ("C1", "about C1") in set(zip(enriched["community"], enriched["term"], strict=True))
    assert table.set_index(["community", "term"]).loc[("C1", "about C1"), "p_value"] == table["p_value"].min()
    assert done.uns["community_enrichment"] is table


def test_everything_survives_a_file(done, tmp_path):
    tl.community_enrichment(done, {"a": list(done.var_names[:60])})
    done.write_h5ad(tmp_path / "done.h5ad")
    back = ad.read_h5ad(tmp_path / "done.h5ad")
    again = tl.tf_communities(back.copy(), n_runs=5, n_permutations=0, n_rewired=0)
    assert again.names
    np.testing.assert_allclose(tl.tf_activity(back), done.obsm["tf_activity"])
    np.testing.assert_allclose(tl.tf_activity(back, reference=done), done.obsm["tf_activity"])
    pd.testing.assert_frame_equal(
        back.uns["tf_communities"]["stability"], done.uns["tf_communities"]["stability"], check_dtype=False
    )


def test_any_network_any_communities(planted):
    adata = planted.adata.copy()
    network = Network(planted.truth)
    found = tl.tf_communities(adata, network, n_runs=5, n_rewired=0)
    assert isinstance(found, Communities) and found.metadata["edges"] == "given"
    scores = tl.tf_activity(adata, {"mine": list(planted.truth["source"].unique()[:4])}, include_global=False)
    assert list(scores.columns) == ["mine"]
    pytest.importorskip("decoupler")
    ulm = tl.tf_activity(adata, method="ulm", network=network, key_added="ulm")
    assert np.isfinite(ulm.to_numpy()).all() and ulm.shape[1] == len(found.names) + 1


def test_bad_input_leaves_the_cells_alone(planted):
    adata = planted.adata.copy()
    with pytest.raises(UnknownNameError, match="tl.grn"):
        tl.tf_communities(adata)
    with pytest.raises(UnknownNameError, match="tl.tf_communities"):
        tl.tf_activity(adata)
    with pytest.raises(UnknownNameError, match="guide"):
        tl.grn(adata, planted.base, intervention_key="guides", control="control")
    with pytest.raises(SetupError, match="intervention_key"):
        tl.grn(adata, planted.base, control="control")
    with pytest.raises(SetupError, match="strong"):
        tl.grn(adata, planted.base, strong=2.0)
    with pytest.raises(SetupError, match="edges"):
        tl.grn(adata, planted.base, edges="all")
    with pytest.raises(UnknownNameError, match="layer"):
        tl.grn(adata, planted.base, layer="counts")
    with pytest.raises(InputDataError, match="organism"):
        tl.grn(adata, pd.DataFrame({"source": ["Sox2"], "target": ["Nanog"]}))
    assert adata.uns == {} and "tf_communities" not in adata.var


def test_control_cells_of_a_real_data_set(test_data):
    adata = ad.read_h5ad(test_data / "kang_ifnb.h5ad")
    base = test_data / "priors" / "dorothea_human_ABC.csv.gz"
    network = tl.grn(adata, base, intervention_key="condition", control="control")
    frame = network.to_frame()
    assert len(adata.uns["grn"]["edges"]) > 1000
    # SPI1 drives the genes of monocytes
    assert {"CD14", "CD68", "TYROBP"} <= set(frame.loc[frame["source"] == "SPI1", "target"].head(6))
    # genes whose cells are shuffled regulate nothing
    rng = np.random.default_rng(0)
    control = adata[adata.obs["condition"] == "control"].copy()
    dense = control.X.toarray()
    control.X = np.stack([rng.permutation(column) for column in dense.T], axis=1)
    assert len(tl.grn(control, base)) == 0
