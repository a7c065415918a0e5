from __future__ import annotations

import anndata as ad
import lightning.pytorch as pl
import mudata as md
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scvi.data import AnnDataManager
from torch.utils.data import DataLoader

from sccausal._errors import InputDataError, SetupError
from sccausal.data import (
    PairedDataset,
    PairedDataSplitter,
    PairGroup,
    Split,
    StratifiedPairSampler,
    build_fields,
)
from sccausal.data import _fields as fields_module
from sccausal.data._pairing import make_groups

pytestmark = [
    pytest.mark.filterwarnings("ignore:Category .* fewer than 3 cells"),
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
]


def manager_of(adata, **extra) -> AnnDataManager:
    args = {"batch_key": "batch", "intervention_key": "perturbation", "control": "ctrl", "time_key": "time", **extra}
    fields = build_fields(adata, {"batch", "intervention", "time"}, **args)
    manager = AnnDataManager(fields=fields, setup_method_args={"model_name": "m", "setup_args": {}})
    manager.register_fields(adata)
    return manager


def rows_of(half) -> np.ndarray:
    """Row numbers of a half of a batch: the first gene counts them."""
    return (np.asarray(half["X"])[:, 0] - 1).astype(int)


def pairs_of(loader) -> tuple[np.ndarray, np.ndarray]:
    batches = [(rows_of(b["source"]), rows_of(b["target"])) for b in loader]
    return np.concatenate([s for s, _ in batches]), np.concatenate([t for _, t in batches])


# -- sampler ---------------------------------------------------------------------------------------------------------


def toy_groups(sizes, n_source=5, blocks=None) -> list[PairGroup]:
    edges = np.cumsum([0, *sizes])
    return [
        PairGroup(
            f"s{k}", np.arange(n_source) + 10_000 * (k + 1), np.arange(edges[k], edges[k + 1]), (blocks or {}).get(k, 0)
        )
        for k in range(len(sizes))
    ]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    batch_size=st.integers(1, 16),
    world=st.integers(1, 4),
    one_block=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_processes_share_out_the_epoch(sizes, batch_size, world, one_block, epoch):
    groups = toy_groups(sizes, blocks=None if one_block else {k: k for k in range(len(sizes))})
    samplers = [StratifiedPairSampler(groups, batch_size, 3, rank, world) for rank in range(world)]
    drawn = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(samplers[0])  # or one process waits for ever
        assert all(1 <= len(t) <= batch_size for _, t in batches)
        drawn.append(np.concatenate([t for _, t in batches]))
        for source, target in batches:  # a pair stays in its group
            group = np.searchsorted(np.cumsum(sizes), target, side="right")
            np.testing.assert_array_equal(source // 10_000 - 1, group)
    together = np.concatenate(drawn)
    assert set(together) == set(range(sum(sizes)))
    repeats = len(together) - sum(sizes)
    assert repeats >= 0
    block_sizes = [sum(sizes)] if one_block else sizes
    if all(n // -(-n // (batch_size * world)) >= world for n in block_sizes):
        assert repeats == 0  # otherwise some batch has fewer cells than there are processes


def test_pairs_depend_on_seed_and_epoch_alone():
    def draw(seed, epoch):
        sampler = StratifiedPairSampler(toy_groups([50, 30]), 16, seed)
        sampler.set_epoch(epoch)
        return [np.concatenate(parts) for parts in zip(*sampler, strict=True)]

    for a, b in zip(draw(0, 2), draw(0, 2), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (draw(0, 3), draw(1, 2)):
        assert not np.array_equal(draw(0, 2)[0], other[0])
        assert not np.array_equal(draw(0, 2)[1], other[1])


def test_a_plain_loop_advances_and_validation_does_not():
    moving = StratifiedPairSampler(toy_groups([40]), 8)
    first, second = ([t.tolist() for _, t in moving] for _ in range(2))
    assert first != second
    fixed = StratifiedPairSampler(toy_groups([40]), 8, redraw=False)
    first, second = ([t.tolist() for _, t in fixed] for _ in range(2))
    assert first == second


def test_sources_are_drawn_evenly():
    sampler = StratifiedPairSampler([PairGroup("s", np.arange(4), np.arange(20_000))], 1000)
    source = np.concatenate([s for s, _ in sampler])
    np.testing.assert_allclose(np.bincount(source) / 20_000, 0.25, atol=0.02)


def test_resumes_within_an_epoch():
    whole = StratifiedPairSampler(toy_groups([64]), 8, seed=5)
    whole.set_epoch(2)
    state = whole.state_dict(batches_done=3)
    batches = list(whole)
    resumed = StratifiedPairSampler(toy_groups([64]), 8, seed=99)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(batches) - 3
    for (s, t), (s2, t2) in zip(batches[3:], rest, strict=True):
        np.testing.assert_array_equal(s, s2)
        np.testing.assert_array_equal(t, t2)


def test_drop_last_gives_whole_batches():
    sampler = StratifiedPairSampler(toy_groups([70]), 16, drop_last=True)
    assert [len(t) for _, t in sampler] == [16] * 4 and len(sampler) == 4


def test_unusable_groups():
    with pytest.raises(SetupError, match="no target"):
        StratifiedPairSampler([PairGroup("s", np.arange(3), np.arange(0))])
    with pytest.raises(SetupError, match="No source cell for s"):
        StratifiedPairSampler([PairGroup("s", np.arange(0), np.arange(3))])
    with pytest.raises(InputDataError, match="rank"):
        StratifiedPairSampler(toy_groups([4]), rank=2, world=2)


def test_stratum_without_control_uses_all_and_says_so():
    strata = np.array(["a", "a", "b", "b", "b"], dtype=object)
    with pytest.warns(UserWarning, match=r"No control cell in 1 strata \(b\)"):
        groups = make_groups(np.array([0]), np.array([1, 2, 3]), strata)
    assert {g.name: g.source.tolist() for g in groups} == {"a": [0], "b": [0]}
    spared = make_groups(np.array([0]), np.array([2]), strata, fallback=np.array([4]))
    assert spared[0].source.tolist() == [4]


# -- data set --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["memory", "backed csr", "backed dense"])
@pytest.mark.parametrize("load_sparse", [False, True])
def test_rows_come_in_the_order_asked_for(cells, tmp_path, storage, load_sparse):
    if storage != "memory":
        if storage == "backed dense":
            cells.X = cells.X.toarray()
        cells.write_h5ad(tmp_path / "x.h5ad")
        cells = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    manager = manager_of(cells)
    data = PairedDataset(manager.create_torch_dataset(load_sparse_tensor=load_sparse))
    source, target = np.array([150, 3, 100, 7, 3]), np.array([9, 8, 200, 0, 1])
    pair = data[(source, target)]
    for half, rows in (("source", source), ("target", target)):
        X = pair[half]["X"]
        X = X.to_dense().numpy() if isinstance(X, torch.Tensor) else X
        np.testing.assert_array_equal(X[:, 0] - 1, rows)
        np.testing.assert_array_equal(np.ravel(pair[half]["time"]), manager.adata.obs["time"].to_numpy()[rows])
        expected = manager.adata.obsm["_scvi_intervention"][rows]
        np.testing.assert_array_equal(pair[half]["intervention"], expected)


# -- data module -----------------------------------------------------------------------------------------------------


def test_controls_meet_perturbed_cells_of_their_stratum(cells):
    splitter = PairedDataSplitter(manager_of(cells), batch_size=32, stratify_by=["batch", "cell_type"])
    splitter.setup()
    source, target = pairs_of(splitter.train_dataloader())
    obs = cells.obs
    assert (obs["perturbation"].iloc[source] == "ctrl").all()
    assert (obs["perturbation"].iloc[target] != "ctrl").all()
    for column in ("batch", "cell_type"):
        np.testing.assert_array_equal(obs[column].iloc[source], obs[column].iloc[target])
    assert sorted(target) == sorted(r for r in splitter.train_idx if obs["perturbation"].iloc[r] != "ctrl")
    assert set(source) <= set(splitter.train_idx)


def test_without_strata_they_mix(cells):
    splitter = PairedDataSplitter(manager_of(cells), batch_size=32)
    source, target = pairs_of(splitter.train_dataloader())
    assert (cells.obs["batch"].iloc[source].to_numpy() != cells.obs["batch"].iloc[target].to_numpy()).any()


def test_times_follow_each_other(cells):
    splitter = PairedDataSplitter(manager_of(cells), batch_size=32, pairing="time", stratify_by="perturbation")
    source, target = pairs_of(splitter.train_dataloader())
    step = {0.0: 1.0, 1.0: 4.0}
    time = cells.obs["time"].to_numpy()
    np.testing.assert_array_equal([step[t] for t in time[source]], time[target])
    np.testing.assert_array_equal(cells.obs["perturbation"].iloc[source], cells.obs["perturbation"].iloc[target])
    assert sorted(target) == sorted(r for r in splitter.train_idx if time[r] > 0)


@pytest.mark.parametrize("pairing", ["control", "time"])
def test_one_condition_per_batch(cells, pairing):
    splitter = PairedDataSplitter(manager_of(cells), batch_size=16, pairing=pairing, one_condition_per_batch=True)
    seen = set()
    for batch in splitter.train_dataloader():
        rows = rows_of(batch["target"])
        conditions = set(zip(cells.obs["perturbation"].iloc[rows], cells.obs["time"].iloc[rows], strict=True))
        if pairing == "control":
            conditions = {c for c, _ in conditions}
        assert len(conditions) == 1
        seen |= conditions
    assert len(seen) == (3 if pairing == "control" else 8)


def test_split_shares_and_disjointness(cells):
    splitter = PairedDataSplitter(manager_of(cells), train_size=0.7, validation_size=0.2, stratify_by="batch")
    parts = [splitter.train_idx, splitter.val_idx, splitter.test_idx]
    assert sorted(np.concatenate(parts)) == list(range(cells.n_obs))
    np.testing.assert_allclose([len(p) / cells.n_obs for p in parts], [0.7, 0.2, 0.1], atol=0.04)
    assert (splitter.n_train, splitter.n_val) == (len(parts[0]), len(parts[1]))
    again = PairedDataSplitter(manager_of(cells), train_size=0.7, validation_size=0.2, stratify_by="batch")
    np.testing.assert_array_equal(again.train_idx, splitter.train_idx)


def test_held_out_perturbation_is_validated_against_training_controls(cells):
    held = np.flatnonzero(cells.obs["perturbation"] == "A+B")
    rest = np.setdiff1d(np.arange(cells.n_obs), held)
    split = Split(rest, [], held)
    splitter = PairedDataSplitter(manager_of(cells), external_indexing=split, stratify_by="batch")
    source, target = pairs_of(splitter.val_dataloader())
    assert sorted(target) == sorted(held) and set(source) <= set(splitter.train_idx)
    _, trained = pairs_of(splitter.train_dataloader())
    assert not set(trained) & set(held)
    assert splitter.test_dataloader() is None


def test_unusable_requests(cells):
    manager = manager_of(cells)
    with pytest.raises(SetupError, match="two sets"):
        PairedDataSplitter(manager, external_indexing=[np.arange(5), np.arange(3, 9)])
    with pytest.raises(SetupError, match="Did you mean 'batch'"):
        PairedDataSplitter(manager, stratify_by="batsh")
    with pytest.raises(SetupError, match="Unknown pairing"):
        PairedDataSplitter(manager, pairing="nearest")
    with pytest.raises(SetupError, match="train_size"):
        PairedDataSplitter(manager, train_size=0.9, validation_size=0.3)
    without = build_fields(cells, {"batch"}, batch_key="batch")
    plain = AnnDataManager(fields=without, setup_method_args={"model_name": "m", "setup_args": {}})
    plain.register_fields(cells)
    with pytest.raises(SetupError, match="needs `intervention_key`"):
        PairedDataSplitter(plain)
    only_controls = np.flatnonzero(cells.obs["perturbation"] == "ctrl")
    with pytest.raises(SetupError, match="no target cell"):
        PairedDataSplitter(manager_of(cells), external_indexing=[only_controls]).setup()


class Recorder(pl.LightningModule):
    """Writes down the pairs of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict = {}

    def _note(self, kind, batch):
        assert all(v.layout is torch.strided for half in batch.values() for v in half.values())
        if not self.trainer.sanity_checking:
            pair = np.stack([rows_of(batch["source"]), rows_of(batch["target"])])
            self.seen.setdefault((kind, self.current_epoch), []).append(pair)

    def training_step(self, batch, index):
        self._note("train", batch)
        return self.weight.sum()

    def validation_step(self, batch, index):
        self._note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def pairs(self, kind, epoch):
        return np.concatenate(self.seen[kind, epoch], axis=1)


def fit(manager, folder, epochs, ckpt_path=None, **extra):
    splitter = PairedDataSplitter(manager, batch_size=32, stratify_by="batch", load_sparse_tensor=True, seed=4)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **extra,
    )
    recorder = Recorder()
    trainer.fit(recorder, datamodule=splitter, ckpt_path=ckpt_path)
    return trainer, recorder


@pytest.mark.filterwarnings("ignore")
def test_lightning_redraws_each_epoch_and_resumes(cells, tmp_path):
    manager = manager_of(cells)
    _, whole = fit(manager, tmp_path, 3)
    assert not np.array_equal(whole.pairs("train", 0), whole.pairs("train", 1))
    assert set(whole.pairs("train", 0)[1]) == set(whole.pairs("train", 1)[1])
    np.testing.assert_array_equal(whole.pairs("val", 1), whole.pairs("val", 2))
    trainer, _ = fit(manager, tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    _, resumed = fit(manager, tmp_path, 3, ckpt_path=tmp_path / "two.ckpt")
    assert set(resumed.seen) == {("train", 2), ("val", 2)}
    np.testing.assert_array_equal(resumed.pairs("train", 2), whole.pairs("train", 2))


def test_scvi_training_mixin_uses_it(cells):
    """The keywords are those ``UnsupervisedTrainingMixin.train`` passes on."""
    manager = manager_of(cells)
    splitter = PairedDataSplitter(
        manager,
        train_size=None,
        validation_size=None,
        batch_size=64,
        shuffle_set_split=True,
        distributed_sampler=False,
        load_sparse_tensor=False,
    )
    loader = splitter.train_dataloader()
    assert isinstance(loader, DataLoader) and len(loader) == len(list(loader))


def test_backed_cells_are_paired_like_those_in_memory(cells, tmp_path):
    cells.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    options = {"batch_size": 32, "stratify_by": "batch", "load_sparse_tensor": True, "seed": 2}
    found = PairedDataSplitter(manager_of(backed), **options).train_dataloader()
    options["load_sparse_tensor"] = False
    expected = PairedDataSplitter(manager_of(cells), **options).train_dataloader()
    for a, b in zip(found, expected, strict=True):
        for half in ("source", "target"):
            for key in b[half]:
                torch.testing.assert_close(a[half][key], b[half][key])


@pytest.mark.filterwarnings("ignore")
def test_mudata_is_paired_on_its_modality(cells):
    mdata = md.MuData({"rna": cells, "protein": ad.AnnData(np.ones((cells.n_obs, 2)), obs=cells.obs[[]])})
    fields = build_fields(mdata, {"intervention"}, intervention_key="perturbation", control="ctrl", mod_key="rna")
    manager = AnnDataManager(fields=fields, setup_method_args={"model_name": "m", "setup_args": {}})
    manager.register_fields(mdata)
    source, target = pairs_of(PairedDataSplitter(manager, stratify_by="batch").train_dataloader())
    np.testing.assert_array_equal(cells.obs["batch"].iloc[source], cells.obs["batch"].iloc[target])
    assert set(cells.obs["perturbation"].iloc[source]) == {"ctrl"}


def test_sparse_doses_give_the_same_pairs(cells, monkeypatch):
    expected = pairs_of(PairedDataSplitter(manager_of(cells), one_condition_per_batch=True).train_dataloader())
    monkeypatch.setattr(fields_module, "_DENSE_LIMIT", 10)
    found = pairs_of(PairedDataSplitter(manager_of(cells), one_condition_per_batch=True).train_dataloader())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
