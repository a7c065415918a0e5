from __future__ import annotations

import numpy as np
import torch
from citevae_data import KEYS

from sccausal import CITEVAE
from sccausal.data import KEYS as FIELDS
from sccausal.data import PairedDataSplitter
from sccausal.datasets import simulate_temporal_factors
from sccausal.models.citevae._pairing import recouple


def test_transport_finds_the_partner_within_its_group():
    torch.manual_seed(0)
    target = torch.randn(80, 2)
    order = torch.cat([torch.randperm(40), 40 + torch.randperm(40)])
    source = torch.empty_like(target)
    source[order] = target + 0.01 * torch.randn(80, 2)
    group = torch.arange(80) // 40
    found = recouple(source, target, group, regularisation=1e-3)
    assert (group[found] == group).all()
    assert (found == order).float().mean() > 0.9
    assert (recouple(source, torch.randn(80, 2), torch.arange(80)) == torch.arange(80)).all()


def splitter(adata, **options):
    CITEVAE.setup_anndata(adata, **KEYS, track_key="track")
    manager = CITEVAE(adata, n_responsive=2).adata_manager
    return PairedDataSplitter(manager, 1.0, pairing="time", batch_size=32, seed=0, **options)


def test_pairs_share_time_and_intervention():
    adata = simulate_temporal_factors(300, n_times=3, tracked=False, seed=1)
    data = splitter(adata, one_time_per_batch=True, same_intervention=True)
    seen = 0
    for batch in data.train_dataloader():
        source, target = batch["source"], batch["target"]
        assert len(torch.unique(target[FIELDS.TIME])) == 1
        assert (target[FIELDS.TIME] - source[FIELDS.TIME] == 1).all()
        assert torch.equal(source[FIELDS.INTERVENTION], target[FIELDS.INTERVENTION])
        seen += len(target[FIELDS.TIME])
    assert seen == int((adata.obs["time"] > 0).sum())


def test_tracked_pairs_are_one_cell():
    adata = simulate_temporal_factors(60, n_times=3, seed=1)
    data = splitter(adata, one_time_per_batch=True, same_intervention=True, stratify_by="track")
    rows = {tuple(np.asarray(x)): i for i, x in enumerate(adata.X)}
    track = adata.obs["track"].to_numpy()
    for batch in data.train_dataloader():
        for a, b in zip(batch["source"][FIELDS.X].numpy(), batch["target"][FIELDS.X].numpy(), strict=True):
            assert track[rows[tuple(a)]] == track[rows[tuple(b)]]
