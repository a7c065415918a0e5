"""Concepts that are numbers: a line in the latent space, a reader that knows the order, trends with few donors."""

from __future__ import annotations

import numpy as np
import torch
from concept_case import fitted, log1p_norm, simulated

from sccausal.datasets import concept_counterfactual
from sccausal.models.causcell._numbers import NumberHead, NumberPrior, standard_knots
from sccausal.nn.concepts import level_weights

KNOTS = [20.0, 25.0, 60.0, 80.0]


def test_numbers_lie_on_a_line_at_their_distances():
    torch.manual_seed(0)
    knots = standard_knots(KNOTS)
    np.testing.assert_allclose(knots, [-1, -5 / 6, 1 / 3, 1], atol=1e-6)
    prior = NumberPrior(knots, 6)
    at = prior(level_weights(torch.tensor([20.0, 33.0, 42.0, 60.0, 80.0]), torch.tensor(KNOTS))).detach()
    start, end = at[0], at[-1]
    for value, place in zip([33.0, 42.0, 60.0], at[1:-1], strict=True):
        np.testing.assert_allclose(place, start + (end - start) * (value - 20) / 60, atol=1e-5)


def test_neighbours_are_mistaken_sooner_than_distant_values():
    torch.manual_seed(0)
    head = NumberHead(standard_knots(KNOTS), 6)
    p = head(torch.randn(50, 6)).softmax(1).detach().numpy()
    for row in p:  # one peak: rising, then falling
        steps = np.sign(np.diff(row))
        assert (np.diff(steps) <= 0).all()


def test_trend_with_age_in_few_donors():
    """Every donor has one age. With a place of its own for each age the trend is that of two donors."""
    adata = simulated(300, 100, n_donors=10, age_by="donor", age_levels=0, seed=7, donor_strength=0.1)
    model = fitted(adata, dag={"b": ["a"]}, keys=["a", "b"], setup={"time_key": "age"}, epochs=150)
    old, young = (log1p_norm(concept_counterfactual(adata, {"age": v}).layers["mean"]).mean(0) for v in (75.0, 25.0))
    effect = old - young
    ends = [np.asarray(model.counterfactual(adata, {"age": v}).X).mean(0) for v in (75.0, 25.0)]
    said = ends[0] - ends[1]
    assert 0.6 < said @ effect / (effect @ effect) < 1.25
    # cells as they are, old donors against young ones
    is_old = (adata.obs["age"] > 50).to_numpy()
    crude = adata.X[is_old].mean(0) - adata.X[~is_old].mean(0)
    found, plain = (float(np.corrcoef(v, effect)[0, 1]) for v in (said, crude))
    assert found > 0.6 and found > plain - 0.05
