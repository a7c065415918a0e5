"""Validation cells while the model trains: comparable losses, and an end when they no longer fall."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
import torch
from concept_case import QUIET, SMALL, simulated

from sccausal._errors import SetupError
from sccausal.models import CausCell

LOGGED = {k: v for k, v in QUIET.items() if k != "logger"}


def started(n_cells: int = 300, n_genes: int = 40) -> CausCell:
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    adata = simulated(n_cells, n_genes)
    CausCell.setup_anndata(adata, concept_keys=["a", "b"])
    return CausCell(adata, dag={"b": ["a"]}, **SMALL)


def test_validation_losses_differ_by_the_weights_alone():
    model = started()
    still = {"lr": 1e-12, "weight_decay": 0.0}
    model.train(3, early_stopping=True, plan_kwargs=still, **LOGGED)
    score = model.history["reconstruction_loss_validation"].iloc[:, 0].astype(float)
    assert np.ptp(score) < 1e-5 * score.mean()
    own = model.history["reconstruction_loss_train"].iloc[:, 0].astype(float)
    assert np.ptp(own) > 1e-3 * own.mean()  # other draws in every epoch
    batch = next(iter(model._make_data_loader(model.adata, batch_size=50)))
    state = torch.get_rng_state()
    model.module.eval()(batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_judges_the_averaged_weights():
    model = started()
    model.train(4, **LOGGED)
    module = model.module.eval()
    batch = next(iter(model._make_data_loader(model.adata, batch_size=100)))
    with torch.inference_mode():
        averaged = float(module(batch)[2].loss)
        own = module.encoder[0].weight.clone()
        for p in module.parameters():  # where training would have gone on from
            p.add_(0.1 * torch.randn_like(p))
        moved = module.encoder[0].weight.clone()
        assert float(module(batch)[2].loss) == averaged
        assert torch.equal(module.encoder[0].weight, moved) and not torch.equal(moved, own)


def test_training_ends_when_validation_cells_gain_no_more():
    """Few cells are soon known by heart."""
    model = started(120, 60)
    model.train(400, early_stopping=True, early_stopping_patience=10, train_size=0.5, batch_size=30, **LOGGED)
    error = model.history["reconstruction_loss_validation"].iloc[:, 0].astype(float).to_numpy()
    assert 20 < len(error) < 300
    assert error.argmin() == len(error) - 11
    assert error.min() < 0.99 * error[0] and error[-1] > error.min()
    with pytest.raises(SetupError, match="validation cells"):
        started().train(2, early_stopping=True, train_size=1.0, **LOGGED)
