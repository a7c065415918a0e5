"""Latent space of counts: closed forms, and counterfactual counts against the simulator's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concept_case import fitted, log1p_norm, simulated

from sccausal._errors import InputDataError, UnknownNameError
from sccausal.datasets import concept_counterfactual
from sccausal.models import CausCell
from sccausal.models.causcell._space import CountSpace


@pytest.fixture
def space():
    torch.manual_seed(0)
    space = CountSpace(30, n_dims=4, n_hidden=16).eval()
    x = np.random.default_rng(0).poisson(np.linspace(0.5, 20, 30), (200, 30)).astype(np.float32)
    space.start(x)
    return space, torch.as_tensor(x)


def test_rates_start_at_the_mean_shares(space):
    space, x = space
    with torch.no_grad():
        space.decoder[-1].weight.zero_()
        share = space._share(torch.zeros(1, 4))[0]
    np.testing.assert_allclose(share, x.sum(0) / x.sum(), atol=1e-3)
    assert space.library[0] == pytest.approx(float(x.sum(1).log().mean()), rel=1e-5)


@torch.no_grad()
def test_moved_counts_follow_the_rates(space):
    space, x = space
    y = space.code(x)
    np.testing.assert_array_equal(space.moved(x, y, y, np.random.default_rng(1)), x)
    one = x[:1].expand(20000, -1).contiguous()
    before = space.code(one)
    after = before + torch.tensor([1.5, -1.0, 0.5, 0.0])
    moved = space.moved(one, before, after, np.random.default_rng(1)).double()
    assert bool((moved == moved.round()).all()) and float(moved.min()) >= 0
    old, new = (space._share(z[:1])[0].double() * float(x[0].sum()) for z in (before, after))
    theta, first = space.log_dispersion.exp().double(), x[0].double()
    # a lost count is thinned; a won one comes at the rate of the cell given its count
    expected = torch.where(new < old, first * new / old, first + (new - old) * (first + theta) / (old + theta))
    assert (expected - first).abs().max() > 1
    error = (moved.mean(0) - expected).abs() / (moved.std(0) / 20000**0.5 + 1e-3)
    assert float(error.max()) < 4.5


@torch.no_grad()
def test_drawn_counts_have_the_size_of_the_library(space):
    space, x = space
    drawn = space.drawn(torch.zeros(4000, 4), np.random.default_rng(0))
    assert bool((drawn == drawn.round()).all())
    assert float(drawn.sum(1).log().mean()) == pytest.approx(float(space.library[0]), abs=0.25)
    np.testing.assert_allclose(drawn.mean(0) / drawn.mean(0).sum(), space._share(torch.zeros(1, 4))[0], atol=0.01)


def test_diffusion_does_not_shape_the_space(space):
    """Coordinates come without gradient, or shrinking them would make noise easy to take out."""
    space, x = space
    y, loss = space.training_code(x)
    assert not y.requires_grad and loss.requires_grad and loss.shape == (200,)


def test_kl_terms_count_per_gene_in_either_space():
    """Held against the few coordinates of a latent space they would drown the labels."""
    for setup, likelihood in ((None, "gaussian"), ({"layer": "counts"}, "nb")):
        model = fitted(simulated(120, 40), keys=["a", "b"], dag=None, epochs=1, setup=setup, gene_likelihood=likelihood)
        module = model.module.train()
        batch = next(iter(model._make_data_loader(model.adata, batch_size=64)))
        loss = module(batch)[2]
        parts = loss.extra_metrics
        exogenous = parts["kl_exogenous"] + parts["kl_unexplained"]
        per_gene = (exogenous + 3.0 * parts["kl_endogenous"]) / 40
        assert float(loss.kl_local_sum.detach() / 64) == pytest.approx(float(per_gene.detach()), rel=1e-4)


def test_wrong_expression_and_likelihood_are_named():
    adata = simulated(100, 20)
    with pytest.raises(InputDataError, match="counts"):
        fitted(adata, keys=["a"], dag=None, epochs=1, gene_likelihood="nb")
    CausCell.setup_anndata(adata, concept_keys=["a"], layer="counts")
    with pytest.raises(UnknownNameError, match="nb"):
        CausCell(adata, gene_likelihood="poisson")


@pytest.mark.slow
def test_counterfactual_counts_against_the_simulator(cells, held_out):
    model = fitted(cells, setup={"layer": "counts"}, gene_likelihood="nb")
    assert model.prediction_units == "counts"
    source = held_out[(held_out.obs["b"] == "b0").to_numpy()].copy()
    truth = log1p_norm(concept_counterfactual(source, {"b": "b1"}).layers["mean"]) - source.layers["log_mean"]
    out = model.counterfactual(source, {"b": "b1"})
    assert (np.asarray(out.X) == np.round(out.X)).all() and out.uns["sccausal"]["units"] == "counts"
    said = (log1p_norm(out.X) - log1p_norm(source.layers["counts"])).mean(0)
    effect = truth.mean(0)
    assert 0.7 < said @ effect / (effect @ effect) < 1.3
    has = (cells.obs["b"] == "b1").to_numpy()
    shift = cells.X[has].mean(0) - cells.X[~has].mean(0)
    assert ((said - effect) ** 2).sum() < 0.7 * ((shift - effect) ** 2).sum()
    own = held_out[(held_out.obs["b"] == "b1").to_numpy()][:20].copy()
    np.testing.assert_array_equal(model.counterfactual(own, {"b": "b1"}).X, own.layers["counts"])
