from __future__ import annotations

import numpy as np
import pytest

from sccausal._errors import SetupError
from sccausal.datasets import simulate_latent_sem


def test_shift_interventions_do_not_tell_a_chain_from_the_empty_graph():
    """The same cells come from a chain, and from no edges with the mixing that has taken the chain up."""
    chain = simulate_latent_sem(500, seed=3)
    empty = simulate_latent_sem(500, seed=3, absorb_graph=True)
    np.testing.assert_array_equal(chain.X, empty.X)
    assert (chain.obs["intervention"] == empty.obs["intervention"]).all()
    assert (chain.uns["truth"]["graph"] != 0).sum() == 4 and not empty.uns["truth"]["graph"].any()
    # with the empty graph the latents are the exogenous parts
    np.testing.assert_array_equal(empty.obsm["latent"], empty.obsm["exogenous"])
    with pytest.raises(SetupError, match="absorb_graph"):
        simulate_latent_sem(100, intervention="do", absorb_graph=True)


@pytest.mark.parametrize("kind", ["shift", "do"])
def test_structural_equations_hold(kind):
    adata = simulate_latent_sem(600, graph="random", intervention=kind, seed=1)
    truth = adata.uns["truth"]
    u, e, G = adata.obsm["latent"], adata.obsm["exogenous"], truth["graph"]
    labels = adata.obs["intervention"].astype(str).to_numpy()
    explained = u @ G
    for _, row in truth["targets"].iterrows():
        if kind == "do":
            explained[labels == row["intervention"], row["latent"]] = 0
    np.testing.assert_allclose(u, explained + e, atol=1e-10)
    control = e[labels == "control"].mean(0)
    for _, row in truth["targets"].iterrows():
        moved = e[labels == row["intervention"]].mean(0) - control
        assert np.abs(moved).argmax() == row["latent"]
        assert moved[row["latent"]] == pytest.approx(row["magnitude"], abs=0.5)


def test_do_cuts_the_dependence_on_the_parents_and_shift_does_not():
    for kind, cut in (("shift", False), ("do", True)):
        adata = simulate_latent_sem(4000, intervention=kind, seed=0)
        truth, u = adata.uns["truth"], adata.obsm["latent"]
        parent, child = np.argwhere(truth["graph"] != 0)[0]
        name = truth["targets"].set_index("latent").loc[child, "intervention"]
        own = u[(adata.obs["intervention"] == name).to_numpy()]
        assert (abs(np.corrcoef(own[:, parent], own[:, child])[0, 1]) < 0.2) == cut


def test_options_do_what_they_say():
    adata = simulate_latent_sem(900, n_per_latent=2, n_doubles=3, mixing="mlp", interaction=0.5, seed=2)
    labels = adata.obs["intervention"].astype(str)
    assert labels.str.contains("+", regex=False).groupby(labels).first().sum() == 3
    assert len(adata.uns["truth"]["targets"]) == 10
    given = np.zeros((3, 3))
    given[2, 0] = 0.7
    assert (simulate_latent_sem(100, n_latent=3, graph=given).uns["truth"]["graph"] == given).all()
    again = simulate_latent_sem(900, n_per_latent=2, n_doubles=3, mixing="mlp", interaction=0.5, seed=2)
    np.testing.assert_array_equal(adata.X, again.X)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"graph": "ring"}, "ring"),
        ({"graph": np.ones((5, 5))}, "cycle"),
        ({"intervention": "soft"}, "soft"),
        ({"mixing": "cubic"}, "cubic"),
        ({"n_genes": 3}, "as many genes"),
        ({"control_fraction": 1.0}, "control_fraction"),
        ({"n_doubles": 99}, "pairs"),
    ],
)
def test_bad_arguments_are_named(bad, match):
    with pytest.raises(SetupError, match=match):
        simulate_latent_sem(100, **bad)
