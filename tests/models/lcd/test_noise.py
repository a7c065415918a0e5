"""Stage 1: the likelihood by matrix products, and recovery of states, loss and spread from counts."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch

from sccausal import LCD
from sccausal._errors import SetupError
from sccausal.datasets import simulate_stationary
from sccausal.models.lcd._noise import zip_log_likelihood

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def test_matrix_products_equal_the_naive_likelihood():
    torch.manual_seed(0)
    x = torch.poisson(3 * torch.rand(40, 25)).double()
    rate, pi = 4 * torch.rand(60, 25).double() + 0.01, 0.3 * torch.rand(25).double() + 0.01
    fast = zip_log_likelihood(x, rate, pi)
    poisson = torch.distributions.Poisson(rate[None]).log_prob(x[:, None])
    naive = torch.where(x[:, None] == 0, torch.log(pi + (1 - pi) * poisson.exp()), torch.log1p(-pi) + poisson).sum(-1)
    torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-10)
    single = zip_log_likelihood(x.float(), rate.float(), pi.float())
    torch.testing.assert_close(single.double(), naive, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def counted():
    adata = simulate_stationary(
        20, n_perturbed=4, n_cells=300, degree=2.0, measurement="zip", dropout=0.15, depth=6.0, seed=2
    )
    scvi.settings.seed = 0
    LCD.setup_anndata(adata, layer="counts", intervention_key="intervention", control="control")
    model = LCD(adata, noise_model="zip", n_hidden=64)
    model.train(4, stage="noise", noise_epochs=20, **QUIET)
    return adata, model


def test_states_loss_and_spread_are_recovered(counted):
    adata, model = counted
    noise, truth = model.module.noise, adata.uns["truth"]
    labels = adata.obs["intervention"].astype(str).to_numpy()
    assert np.abs(noise.pi.detach().numpy() - 0.15).max() < 0.1
    control = adata.layers["state"][labels == "control"]
    means, spreads, gaps = [], [], []
    rng = np.random.default_rng(0)
    for name in np.unique(labels):
        dose = torch.as_tensor(model.codec.parse_many([name])[0])
        with torch.no_grad():
            states = noise.states(model.module.noise_level[0], dose, torch.tensor(0), 2000)
            rate = noise.rate(states).numpy()
        true = truth["unit"] * np.logaddexp(
            0, (adata.layers["state"][labels == name] - control.mean(0)) / control.std(0)
        )
        means.append([np.log(rate.mean(0)), np.log(true.mean(0))])
        spreads.append([rate.std(0), true.std(0)])
        drawn = rng.poisson(rate) * (rng.random(rate.shape) >= noise.pi.detach().numpy())
        gaps.append(drawn.var(0) / np.maximum(adata.X[labels == name].var(0), 1e-9))
    for pair, least in ((np.array(means), 0.95), (np.array(spreads), 0.95)):
        assert np.corrcoef(pair[:, 0].ravel(), pair[:, 1].ravel())[0, 1] > least
    assert abs(np.median(gaps) - 1) < 0.15
    assert model.noise_history_["elbo_train"].iloc[-1, 0] < model.noise_history_["elbo_train"].iloc[0, 0]


@pytest.mark.slow
def test_spread_is_that_of_the_counts_after_training_as_long_as_the_default(counted):
    adata = counted[0]
    scvi.settings.seed = 0
    LCD.setup_anndata(adata, layer="counts", intervention_key="intervention", control="control")
    model = LCD(adata, noise_model="zip", n_hidden=64)
    model.train(stage="noise", **QUIET)
    noise, rng, gaps = model.module.noise, np.random.default_rng(0), []
    pi = noise.pi.detach().numpy()
    assert np.abs(pi - 0.15).max() < 0.08
    labels = adata.obs["intervention"].astype(str).to_numpy()
    for name in np.unique(labels):
        dose = torch.as_tensor(model.codec.parse_many([name])[0])
        with torch.no_grad():
            states = noise.states(model.module.noise_level[0], dose, torch.tensor(0), 2000)
            rate = noise.rate(states).numpy()
        drawn = rng.poisson(rate) * (rng.random(rate.shape) >= pi)
        gaps.append(drawn.var(0) / adata.X[labels == name].var(0))
    assert abs(np.median(gaps) - 1) < 0.1


def test_stages_train_apart(counted, tmp_path):
    adata, model = counted
    with pytest.raises(SetupError, match="drift is not trained"):
        model.perturbation.predict(interventions=[model.codec.targets[0]])
    before = {k: v.clone() for k, v in model.module.noise.state_dict().items()}
    model.train(3, stage="drift", **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in model.module.noise.state_dict().items())
    target = model.codec.targets[0]
    predicted = np.asarray(model.perturbation.predict(interventions=[target]).X)
    assert model.prediction_units == "counts"
    assert (predicted >= 0).all() and np.array_equal(predicted, np.round(predicted))
    control = adata.X[(adata.obs["intervention"] == "control").to_numpy()].mean(0)
    treated = adata.X[(adata.obs["intervention"] == target).to_numpy()].mean(0)
    assert np.abs(predicted.mean(0) - treated).mean() < 0.4 * np.abs(control - treated).mean()
    drawn = model.sample([target], 500)
    assert np.abs(drawn.X.mean(0) - treated).mean() < 0.5 * np.abs(control - treated).mean()
    fresh = LCD(adata, noise_model="zip", n_hidden=16)
    with pytest.raises(SetupError, match="noise model is not trained"):
        fresh.train(1, stage="drift", **QUIET)


def test_generators_of_their_own():
    adata = simulate_stationary(6, n_perturbed=2, n_cells=80, degree=1.0, measurement="zip", seed=0)
    scvi.settings.seed = 0
    LCD.setup_anndata(adata, layer="counts", intervention_key="intervention", control="control")
    model = LCD(adata, noise_model="zip", generator="per_env", n_hidden=16, n_states=100)
    model.train(2, noise_epochs=2, **QUIET)
    assert len(model.module.noise.generator.first) == 3
    a, b = model.codec.targets[:2]
    assert np.isfinite(model.perturbation.predict(interventions=[a]).X).all()
    with pytest.raises(SetupError, match="per_env"):
        model.module.drawn_states(torch.ones(1, 2), torch.zeros(1, dtype=torch.long))
