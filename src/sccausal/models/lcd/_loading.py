"""Mini-batches of one environment each, for which states are drawn once and shared by all cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scvi import settings
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Sampler

from sccausal.data import KEYS


class EnvironmentSampler(Sampler[list[int]]):
    """Lists of rows of one environment (intervention and batch) each.

    Parameters
    ----------
    rows
        Rows to draw from (n,).
    environment
        Number of the environment of each of them (n,).
    batch_size
        Rows per list; an environment with fewer makes a smaller one.
    shuffle
        Draw rows and order of lists anew whenever they are asked for, from PyTorch's random state.
    """

    def __init__(self, rows: np.ndarray, environment: np.ndarray, batch_size: int, shuffle: bool) -> None:
        self._groups = [rows[environment == e] for e in np.unique(environment)]
        self._size, self._shuffle = batch_size, shuffle

    def __len__(self) -> int:
        return sum(-(-len(g) // self._size) for g in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        lists = []
        for group in self._groups:
            order = torch.randperm(len(group)).numpy() if self._shuffle else np.arange(len(group))
            lists += [group[order[i : i + self._size]].tolist() for i in range(0, len(group), self._size)]
        for i in torch.randperm(len(lists)).tolist() if self._shuffle else range(len(lists)):
            yield lists[i]


class EnvironmentDataSplitter(DataSplitter):
    """scvi-tools' splitter with one environment per mini-batch."""

    def train_dataloader(self) -> DataLoader:
        """Training cells, in new mini-batches every epoch."""
        return self._by_environment(self.train_idx, True)

    def val_dataloader(self) -> DataLoader | None:
        """Validation cells."""
        return self._by_environment(self.val_idx, False) if len(self.val_idx) else None

    def _by_environment(self, rows: np.ndarray, shuffle: bool) -> DataLoader:
        rows = np.sort(np.asarray(rows))
        dose = self.adata_manager.get_from_registry(KEYS.INTERVENTION)[rows]
        dose = dose.toarray() if hasattr(dose, "toarray") else np.asarray(dose)
        batch = np.asarray(self.adata_manager.get_from_registry(KEYS.BATCH)).reshape(-1, 1)[rows]
        environment = np.ravel(np.unique(np.hstack([dose, batch]), axis=0, return_inverse=True)[1])
        size = int(self.data_loader_kwargs.get("batch_size") or settings.batch_size)
        dataset = self.adata_manager.create_torch_dataset(load_sparse_tensor=self.load_sparse_tensor)
        workers = settings.dl_num_workers
        return DataLoader(
            dataset, sampler=EnvironmentSampler(rows, environment, size, shuffle), batch_size=None, num_workers=workers,
            persistent_workers=bool(workers) and settings.dl_persistent_workers, pin_memory=self.pin_memory,
        )  # fmt: skip
