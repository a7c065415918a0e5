"""Lightning data module of paired cells, in the place of scvi-tools' ``DataSplitter``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import settings
from torch.utils.data import DataLoader

from sccausal._errors import SetupError
from sccausal.data._keys import KEYS
from sccausal.data._pairing import PairedDataset, PairGroup, StratifiedPairSampler, make_groups
from sccausal.data._splits import Split
from sccausal.data._validation import check_obs_column

logger = logging.getLogger(__name__)


class PairedDataSplitter(pl.LightningDataModule):
    """Training, validation and test pairs of a registered AnnData.

    It takes the keywords of :class:`scvi.dataloaders.DataSplitter`, so a model uses it by
    ``_data_splitter_cls = PairedDataSplitter`` and chooses the pairing through ``datasplitter_kwargs``.

    Parameters
    ----------
    adata_manager
        Manager of the registered AnnData.
    train_size, validation_size
        Share of the cells; the rest is the test set. They are taken in each stratum, from sources and targets alike.
    shuffle_set_split
        Whether cells are shuffled before they are shared out.
    load_sparse_tensor
        Hand out sparse matrices as sparse tensors and densify them on the device. Not for backed data.
    pin_memory
        Whether tensors are put into pinned memory.
    external_indexing
        Row numbers of training, validation and test cells, or a :class:`~sccausal.data.Split`, e.g. one that holds out
        perturbations.
    pairing
        ``"control"``: a control cell and a perturbed cell. ``"time"``: a cell and one of the next time point.
    stratify_by
        Columns of ``obs`` in which both halves of a pair agree.
    one_condition_per_batch
        Whether all targets of a mini-batch have the same intervention (and, with ``"time"``, the same time).
    one_time_per_batch
        Whether all targets of a mini-batch have the same time; for ``"time"``.
    same_intervention
        Whether both halves of a pair have the same intervention; for ``"time"``. An intervention without earlier cells
        draws from all earlier ones.
    batch_size
        Pairs per mini-batch and process.
    drop_last
        Leave out pairs that do not fill a mini-batch.
    seed
        Seed of split and pairs; ``scvi.settings.seed`` or 0 if ``None``.
    distributed_sampler
        Accepted for scvi-tools; pairs are always shared out when ``torch.distributed`` runs.
    **kwargs
        For :class:`torch.utils.data.DataLoader`, e.g. ``num_workers``.

    Attributes
    ----------
    train_idx, val_idx, test_idx
        Row numbers, known after :meth:`setup`.
    n_train, n_val
        Numbers of training and validation cells.

    Notes
    -----
    A mini-batch is ``{"source": {...}, "target": {...}}``. Pass ``use_distributed_sampler=False`` to the trainer under
    DDP. Validation pairs are drawn once; strata without a validation source use training sources, which gives nothing
    away about the targets.

    Examples
    --------
    >>> from scvi.data import AnnDataManager
    >>> from sccausal.data import PairedDataSplitter, build_fields
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(100, 30, 3, seed=0)
    >>> fields = build_fields(adata, {"intervention"}, intervention_key="intervention", control="control")
    >>> manager = AnnDataManager(fields=fields)
    >>> manager.register_fields(adata)
    >>> splitter = PairedDataSplitter(manager, batch_size=16, seed=0)
    >>> splitter.setup()
    >>> batch = next(iter(splitter.train_dataloader()))
    >>> sorted(batch), tuple(batch["source"]["X"].shape)
    (['source', 'target'], (14, 30))
    """

    def __init__(
        self,
        adata_manager: Any,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        pin_memory: bool = False,
        external_indexing: list[np.ndarray] | Split | None = None,
        *,
        pairing: Literal["control", "time"] = "control",
        stratify_by: str | Sequence[str] | None = None,
        one_condition_per_batch: bool = False,
        one_time_per_batch: bool = False,
        same_intervention: bool = False,
        batch_size: int | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        distributed_sampler: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.adata_manager = adata_manager
        self.train_size = 0.9 if not train_size else float(train_size)
        self.validation_size = validation_size
        self.shuffle_set_split = shuffle_set_split
        self.load_sparse_tensor = load_sparse_tensor and not adata_manager.adata.isbacked
        self.pin_memory = pin_memory
        self.pairing = pairing
        self.batch_size = int(batch_size or settings.batch_size)
        self.drop_last = drop_last
        self.seed = int(seed if seed is not None else settings.seed or 0)
        self.distributed_sampler = distributed_sampler
        self.one_condition_per_batch = one_condition_per_batch
        self.one_time_per_batch = one_time_per_batch
        self.data_loader_kwargs = kwargs
        self._strata = self._name_strata(stratify_by)
        self._sources, self._targets, self._conditions = self._roles()
        if same_intervention and KEYS.INTERVENTION in adata_manager.data_registry:
            code = _row_codes(sparse.csr_matrix(self._registered(KEYS.INTERVENTION, "same_intervention")))
            named = [f"{name}, intervention {c}" for name, c in zip(self._strata, code, strict=True)]
            self._strata = np.array(named, dtype=object)
        self.train_idx, self.val_idx, self.test_idx = self._split(external_indexing)
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self._epoch_start: dict[str, int] | None = None
        self._train_sampler: StratifiedPairSampler | None = None

    def setup(self, stage: str | None = None) -> None:
        """Check that the training cells hold pairs."""
        self._groups(self.train_idx)

    def train_dataloader(self) -> DataLoader:
        """Training pairs, redrawn every epoch."""
        sampler = self._sampler(self._groups(self.train_idx), redraw=True, drop_last=self.drop_last)
        if self._epoch_start is not None:
            sampler.load_state_dict(self._epoch_start)
        self._train_sampler = sampler
        return self._loader(sampler)

    def val_dataloader(self) -> DataLoader | None:
        """Validation pairs, or ``None`` if no target cell is held out."""
        return self._fixed(self.val_idx)

    def test_dataloader(self) -> DataLoader | None:
        """Test pairs, or ``None`` if no target cell is left for them."""
        return self._fixed(self.test_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Densify sparse tensors of both halves on the device."""
        if not self.load_sparse_tensor:
            return batch
        return {half: {k: _dense(v) for k, v in part.items()} for half, part in batch.items()}

    def state_dict(self) -> dict[str, Any]:
        """Seed and epoch of the training pairs, kept in Lightning's checkpoints."""
        return {} if self._train_sampler is None else dict(self._train_sampler.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        if state_dict:
            self._epoch_start = {k: int(state_dict[k]) for k in ("seed", "epoch", "batch")}

    # -- which cells -------------------------------------------------------------------------------------------------

    def _obs(self) -> Any:
        adata, registered = self.adata_manager.adata, self.adata_manager.data_registry[KEYS.X]
        return adata.mod[registered["mod_key"]] if "mod_key" in registered else adata

    def _name_strata(self, stratify_by: str | Sequence[str] | None) -> np.ndarray:
        cells = self._obs()
        columns = [stratify_by] if isinstance(stratify_by, str) else list(stratify_by or ())
        if not columns:
            return np.full(cells.n_obs, "all cells", dtype=object)
        names = [check_obs_column(cells, c, "stratify_by").astype(str).to_numpy(dtype=object) for c in columns]
        return np.array([", ".join(parts) for parts in zip(*names, strict=True)], dtype=object)

    def _registered(self, key: str, needed_for: str) -> Any:
        if key not in self.adata_manager.data_registry:
            raise SetupError(f"{needed_for} needs `{key}_key`, which the model was not set up with.")
        return self.adata_manager.get_from_registry(key)

    def _roles(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step of each cell as source and as target (-1: not), and its condition.

        A source of step k pairs with the targets of step k: with controls there is one step, in a time course as many
        as there are intervals.
        """
        code = np.zeros(len(self._strata), dtype=np.int64)
        if self.pairing == "control" or KEYS.INTERVENTION in self.adata_manager.data_registry:
            doses = sparse.csr_matrix(self._registered(KEYS.INTERVENTION, 'pairing="control"'))
            code = _row_codes(doses)
        if self.pairing == "control":
            control = np.asarray((doses != 0).sum(axis=1)).ravel() == 0
            return np.where(control, 0, -1), np.where(control, -1, 0), code
        if self.pairing != "time":
            raise SetupError(f"Unknown pairing {self.pairing!r}; use 'control' or 'time'.")
        times = np.ravel(self._registered(KEYS.TIME, 'pairing="time"')).astype(float)
        levels, step = np.unique(times, return_inverse=True)
        if len(levels) < 2:
            raise SetupError("All cells have the same time: there is no next time point to pair with.")
        source = np.where(step < len(levels) - 1, step, -1)
        return source, step - 1, code * len(levels) + step

    def _split(self, external: list[np.ndarray] | Split | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if isinstance(external, Split):
            external = external.external_indexing()
        if external is not None:
            parts = [np.asarray(p if p is not None else [], dtype=np.int64) for p in [*external, None, None][:3]]
            together = np.concatenate(parts)
            if len(np.unique(together)) < len(together):
                raise SetupError("`external_indexing` puts a cell into two sets, or twice into one.")
            return parts[0], parts[1], parts[2]
        held = 1 - self.train_size if self.validation_size is None else self.validation_size
        if not 0 < self.train_size <= 1 or not 0 <= held < 1 or self.train_size + held > 1 + 1e-9:
            raise SetupError("Need 0 < train_size <= 1, 0 <= validation_size < 1 and a sum of at most 1.")
        rng = np.random.default_rng(self.seed)
        sets: tuple[list, list, list] = ([], [], [])
        cell = pd.Series(np.arange(len(self._strata)))
        for rows in cell.groupby([self._strata, self._conditions], sort=True).indices.values():
            rows = rng.permutation(rows) if self.shuffle_set_split else rows
            # a chance below 1 for the last cell keeps the shares right over many small groups
            n_train, n_held = int(len(rows) * self.train_size + rng.random()), int(len(rows) * held + rng.random())
            n_train = max(n_train, 1)
            n_held = min(n_held, len(rows) - n_train)
            if self.train_size + held > 1 - 1e-9:
                n_train = len(rows) - n_held
            for part, chosen in zip(sets, np.split(rows, [n_train, n_train + n_held]), strict=True):
                part.append(chosen)
        train, val, test = (np.sort(np.concatenate(p)).astype(np.int64) for p in sets)
        return train, val, test

    def _groups(self, rows: np.ndarray, spare: np.ndarray | None = None) -> list[PairGroup]:
        groups: list[PairGroup] = []
        blocks = self._targets if self.one_time_per_batch else None
        blocks = self._conditions if self.one_condition_per_batch else blocks
        what = "control" if self.pairing == "control" else "earlier"
        for step in np.unique(self._targets[rows]):
            if step < 0:
                continue
            target = rows[self._targets[rows] == step]
            source = rows[self._sources[rows] == step]
            extra = None if spare is None else spare[self._sources[spare] == step]
            groups += make_groups(source, target, self._strata, blocks, fallback=extra, what=what)
        if not groups:
            raise SetupError(
                f"No pair can be drawn with pairing={self.pairing!r}: there is no target cell in training."
            )
        return groups

    # -- loaders -----------------------------------------------------------------------------------------------------

    def _fixed(self, rows: np.ndarray) -> DataLoader | None:
        if len(rows) == 0 or not (self._targets[rows] >= 0).any():
            return None
        return self._loader(self._sampler(self._groups(rows, spare=self.train_idx), redraw=False, drop_last=False))

    def _sampler(self, groups: list[PairGroup], *, redraw: bool, drop_last: bool) -> StratifiedPairSampler:
        ready = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ready else (0, 1)
        return StratifiedPairSampler(
            groups, self.batch_size, self.seed, rank, world, redraw=redraw, drop_last=drop_last
        )

    def _loader(self, sampler: StratifiedPairSampler) -> DataLoader:
        options = {"num_workers": settings.dl_num_workers, **self.data_loader_kwargs}
        if options["num_workers"]:
            options.setdefault("persistent_workers", settings.dl_persistent_workers)
        rows = self.adata_manager.create_torch_dataset(load_sparse_tensor=self.load_sparse_tensor)
        return DataLoader(PairedDataset(rows), sampler=sampler, batch_size=None, pin_memory=self.pin_memory, **options)


def _dense(value: Any) -> Any:
    sparse_layout = isinstance(value, torch.Tensor) and value.layout in (torch.sparse_csr, torch.sparse_csc)
    return value.to_dense() if sparse_layout else value


def _row_codes(doses: sparse.csr_matrix) -> np.ndarray:
    """Number the distinct rows of a matrix: equal rows have equal random projections.

    A sparse product adds the entries of a row one by one, so equal rows agree to the last bit.
    """
    doses = doses.copy()
    doses.sort_indices()
    doses.eliminate_zeros()
    weight = np.random.default_rng(0).standard_normal((doses.shape[1], 2))
    projected = doses.astype(np.float64) @ weight
    _, code = np.unique(projected, axis=0, return_inverse=True)
    return np.ravel(code).astype(np.int64)
