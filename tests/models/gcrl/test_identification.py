"""What the models recover where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from sklearn.linear_model import LinearRegression

from sccausal.datasets import simulate_latent_sem
from sccausal.metrics import match_latents, shd
from sccausal.models import DiscrepancyVAE

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SEEDS = [0, *[pytest.param(s, marks=pytest.mark.slow) for s in range(1, 5)]]


def fitted(adata, epochs: int = 25, seed: int = 0, **init) -> DiscrepancyVAE:
    scvi.settings.seed = seed
    DiscrepancyVAE.setup_anndata(adata, intervention_key="intervention", control="control")
    model = DiscrepancyVAE(adata, **init)
    model.train(epochs, **QUIET)
    return model


def judged(model, adata) -> tuple[float, float, int]:
    """MCC of exogenous parts in control cells, share of right targets, errors of the graph."""
    truth, control = adata.uns["truth"], (adata.obs["intervention"] == "control").to_numpy()
    z = model.get_latent_representation(representation="exogenous")
    found = match_latents(z[control], adata.obsm["exogenous"][control])
    where = model.module.interventions.assignment().argmax(1).numpy(force=True)
    hits = float(np.mean(found.learned[truth["targets"]["latent"]] == where))
    order = [model.latent_names[j] for j in found.learned]
    graph = model.get_latent_graph(0.3).to_matrix(order)
    return found.mcc, hits, shd(graph != 0, truth["graph"] != 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_shifts_identify_exogenous_parts_and_targets_but_no_graph(seed):
    adata = simulate_latent_sem(seed=seed)
    model = fitted(adata, seed=seed)
    mcc, hits, _ = judged(model, adata)
    assert mcc >= 0.95 and hits == 1.0
    # as good as a regression that is given the truth
    control = (adata.obs["intervention"] == "control").to_numpy()
    x, e = adata.X[control], adata.obsm["exogenous"][control]
    best = LinearRegression().fit(x, e).predict(x)
    assert mcc > match_latents(best, e).mcc - 0.01
    # principal components mix the latents
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, :5]
    assert match_latents(axes, e).mcc < 0.8
    report = model.identifiability_report()
    assert report["the latent graph is identified"].verdict == "violated"
    assert "not" in report["the latent graph is identified"].explanation
    assert len(model.get_latent_graph()) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_do_interventions_identify_the_graph(seed):
    adata = simulate_latent_sem(intervention="do", seed=seed)
    model = fitted(adata, 30, seed=seed, intervention="do", l1_on="graph")
    mcc, hits, errors = judged(model, adata)
    assert mcc >= 0.95 and hits == 1.0
    assert errors <= 1  # the empty graph has 4
    report = model.identifiability_report()
    assert report["the latent graph is identified"].verdict == "holds"
    assert report["interventions are do"].verdict == "holds"


def test_chain_and_empty_graph_give_the_same_model():
    """What shifts cannot tell apart, the model does not tell apart either."""
    models = [fitted(simulate_latent_sem(900, seed=1, absorb_graph=a), 2) for a in (False, True)]
    cells = [m.get_latent_representation() for m in models]
    np.testing.assert_array_equal(*cells)


def test_several_interventions_per_latent_are_put_together():
    adata = simulate_latent_sem(3000, n_per_latent=2, seed=0)
    model = fitted(adata, 15, n_latent=5)
    mcc, hits, _ = judged(model, adata)
    assert mcc >= 0.95 and hits == 1.0
    table = model.get_intervention_targets()
    truth = adata.uns["truth"]["targets"].set_index("intervention")["magnitude"]
    sizes = table.set_index("intervention")["magnitude"].abs()
    assert np.corrcoef(sizes, truth.abs()[sizes.index])[0, 1] > 0.5
    assert (sizes / truth.abs()[sizes.index]).between(0.6, 1.4).all()


@pytest.mark.parametrize(
    ("check", "good", "bad", "init"),
    [
        ("every latent is moved", {}, {}, {"n_latent": 6}),
        # with two interventions on a latent, what one of them does past it cannot hide in the decoder
        ("effects go through few latents", {"n_per_latent": 2}, {"n_per_latent": 2, "n_off_target": 10}, {}),
        ("interventions are shift", {}, {"intervention": "do"}, {}),
        ("combinations are additive", {"n_doubles": 4}, {"n_doubles": 4, "interaction": 0.8}, {"n_interaction": 0}),
        ("enough cells", {}, {"control_fraction": 0.01}, {}),
    ],
)
def test_each_verdict_changes_with_its_assumption(check, good, bad, init):
    """Two sets (or models) that differ in one assumption only."""
    right = fitted(simulate_latent_sem(2000, seed=2, **good), 4, n_latent=5)
    wrong = fitted(simulate_latent_sem(2000, seed=2, **bad), 4, **{"n_latent": 5, **init})
    assert right.identifiability_report()[check].verdict == "holds"
    assert wrong.identifiability_report()[check].verdict == "violated"
