from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sccausal import metrics as m
from sccausal._errors import InputDataError, SetupError, UnknownNameError


@pytest.fixture
def truth():
    return np.random.default_rng(0).normal(size=(400, 4))


def test_mcc_finds_permutation_scale_and_sign(truth):
    z = truth[:, [2, 0, 3, 1]] * np.array([-3.0, 0.1, 2.0, -1.0])
    found = m.match_latents(z, truth)
    assert found.mcc == pytest.approx(1.0)
    assert found.learned.tolist() == [1, 3, 0, 2]
    assert np.sign(found.correlation).tolist() == [1, -1, -1, 1]


def test_spearman_allows_monotone_maps(truth):
    assert m.mcc(np.exp(2 * truth), truth, "spearman") == pytest.approx(1.0)
    assert m.mcc(np.exp(2 * truth), truth) < 0.8


def test_a_rotation_is_read_by_probes_but_not_by_mcc(truth):
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    assert m.mcc(truth @ q, truth) < 0.9
    assert m.r2_probe(truth @ q, truth).min() > 0.99


def test_missing_and_constant_latents(truth):
    assert m.mcc(truth[:, :2], truth) == pytest.approx(0.5)
    assert m.mcc(np.ones((400, 4)), truth) == 0.0


def test_mlp_probe_reads_what_the_linear_one_cannot():
    z = np.random.default_rng(0).uniform(-2, 2, size=(1200, 1))
    assert m.r2_probe(z, z**2, "linear")[0] < 0.1
    assert m.r2_probe(z, z**2, "mlp")[0] > 0.7


def test_latent_scores_stand_beside_chance(truth):
    table = m.latent_scores(truth, truth, mlp=False).set_index("metric")
    assert table.loc["mcc", "value"] == pytest.approx(1.0)
    assert table.loc["mcc", "chance"] < 0.2
    assert table.loc["r2_linear", "chance"] < 0.05
    with pytest.raises(InputDataError):
        m.latent_scores(truth[:10], truth)
    with pytest.raises(SetupError):
        m.mcc(truth, truth, "kendall")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    n, g = 400, 30
    kind, batch = rng.integers(0, 3, n), rng.integers(0, 2, n)
    clean = rng.normal(size=(3, g))[kind] * 1.5 + rng.normal(size=(n, g)) * 0.5
    X = clean + 2.0 * rng.normal(size=(2, g))[batch]
    obs = pd.DataFrame({"kind": kind.astype(str), "batch": batch.astype(str)}, index=[f"c{i}" for i in range(n)])
    adata = AnnData(X.astype(np.float32), obs=obs, layers={"clean": clean.astype(np.float32)})
    adata.obsm["X_noise"] = rng.normal(size=(n, 5))
    return adata


@pytest.mark.slow  # jax compiles for a minute
def test_integration_scores_rank_and_add_up(batches):
    pytest.importorskip("scib_metrics")
    before = batches.copy()
    table = m.integration_scores(
        batches, batch_key="batch", labels_key="kind", embeddings="X_noise", layers=["clean"], n_pcs=10
    )
    assert table["total"].idxmax() == "clean"
    assert table.loc["clean", "batch_correction"] > table.loc["unintegrated", "batch_correction"] + 0.1
    assert table.loc["X_noise", "bio_conservation"] < table.loc["clean", "bio_conservation"]
    np.testing.assert_allclose(table["total"], 0.6 * table["bio_conservation"] + 0.4 * table["batch_correction"])
    assert list(batches.obsm) == list(before.obsm) and list(batches.obs) == list(before.obs)


@pytest.mark.slow
def test_integration_scores_agree_with_scib_metrics(batches):
    scib = pytest.importorskip("scib_metrics")
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)  # as pertpy's dependencies leave it
    table = m.integration_scores(batches, batch_key="batch", labels_key="kind", unintegrated="X_noise")
    X = batches.obsm["X_noise"].astype(np.float32)
    want = scib.silhouette_label(X, batches.obs["kind"].to_numpy())
    assert table.loc["unintegrated", "silhouette_label"] == pytest.approx(float(want), abs=1e-5)


def test_integration_representations_and_total(batches, monkeypatch):
    """What is handed to scib-metrics, and how its metrics become a total; without the minutes jax needs."""
    seen = {}

    def fake(work, batch_key, labels_key, names, n_jobs):
        seen.update({k: work.obsm[k].shape for k in names})
        table = pd.DataFrame({"b1": 0.2, "b2": 0.4, "m1": 0.9}, index=names).astype(object)
        table.loc["Metric Type"] = ["Bio conservation", "Bio conservation", "Batch correction"]
        return table

    monkeypatch.setattr("sccausal.metrics._integration._benchmark", fake)
    table = m.integration_scores(
        batches,
        batch_key="batch",
        labels_key="kind",
        embeddings="X_noise",
        layers=["clean"],
        expression={"mine": batches.X[:, :4]},
        n_pcs=10,
    )
    assert seen == {"unintegrated": (400, 10), "X_noise": (400, 5), "clean": (400, 10), "mine": (400, 4)}
    np.testing.assert_allclose(table["total"], 0.6 * 0.3 + 0.4 * 0.9)
    with pytest.raises(InputDataError, match="mine"):
        m.integration_scores(batches, batch_key="batch", labels_key="kind", expression={"mine": batches.X[:9]})


def test_integration_errors(batches):
    with pytest.raises(UnknownNameError, match="batch"):
        m.integration_scores(batches, batch_key="bath", labels_key="kind")
    with pytest.raises(UnknownNameError, match="X_noise"):
        m.integration_scores(batches, batch_key="batch", labels_key="kind", embeddings="X_nois")
    one = batches[batches.obs["batch"] == "0"].copy()
    with pytest.raises(SetupError):
        m.integration_scores(one, batch_key="batch", labels_key="kind")
