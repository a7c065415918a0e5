"""Pairs of cells: control and perturbed, or one time and the next, redrawn every epoch.

No cell is ever measured twice, so a pair is two cells of one stratum (same batch, cell type, ...), not one cell before
and after. The pairs of an epoch are a function of ``(seed, epoch)`` alone: they are the same after a restart, and
every process of a distributed run cuts its own share out of the same draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, DistributedSampler

from sccausal._errors import InputDataError, SetupError


@dataclass(frozen=True)
class PairGroup:
    """Cells that may be paired with each other.

    Parameters
    ----------
    name
        Shown in messages, e.g. ``"B, batch 1"``.
    source
        Row numbers (n,) the source half is drawn from.
    target
        Row numbers (m,) of the target half; each occurs once an epoch.
    block
        Block of the targets (m,), or one for all. Targets of one block may share a mini-batch, whatever their group;
        targets of different blocks never do.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.data import PairGroup
    >>> group = PairGroup("B", source=np.arange(10), target=np.arange(10, 16))
    >>> len(group.target)
    6
    """

    name: str
    source: np.ndarray
    target: np.ndarray
    block: int | np.ndarray = 0


class PairedDataset(Dataset):
    """Rows of an AnnData in pairs.

    Parameters
    ----------
    dataset
        What :meth:`scvi.data.AnnDataManager.create_torch_dataset` returns.

    Notes
    -----
    ``dataset[(source_rows, target_rows)]`` is ``{"source": {...}, "target": {...}}``, where row i of one half belongs
    to row i of the other. A backed AnnData is read in sorted order without repeats, because HDF5 asks for it, and put
    back into the order asked for.

    Examples
    --------
    >>> from scvi.data import AnnDataManager
    >>> from sccausal.data import PairedDataset, build_fields
    >>> from sccausal.datasets import simulate_perturb_seq
    >>> adata = simulate_perturb_seq(100, 30, 3, seed=0)
    >>> manager = AnnDataManager(fields=build_fields(adata, set()))
    >>> manager.register_fields(adata)
    >>> pairs = PairedDataset(manager.create_torch_dataset())
    >>> pairs[([0, 1], [5, 6])]["target"]["X"].shape
    (2, 30)
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.dataset)

    def __getitem__(self, pair: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, Any]]:
        source, target = pair
        return {"source": self._rows(source), "target": self._rows(target)}

    def _rows(self, rows: np.ndarray) -> dict[str, Any]:
        rows = np.asarray(rows, dtype=np.int64)
        if not self.dataset.adata_manager.adata.isbacked:
            return self.dataset[rows]
        ordered, inverse = np.unique(rows, return_inverse=True)
        found = self.dataset[ordered]
        return {key: _take(value, inverse.ravel()) for key, value in found.items()}


def _take(value: Any, rows: np.ndarray) -> Any:
    if isinstance(value, torch.Tensor):  # sparse layouts cannot be indexed by rows
        return (value.to_dense() if value.layout != torch.strided else value)[torch.as_tensor(rows)]
    return value[rows]


class StratifiedPairSampler(DistributedSampler):
    """Mini-batches of row pairs: every target once an epoch, its source drawn from the same group.

    Parameters
    ----------
    groups
        Cells that may be paired; see :class:`PairGroup`.
    batch_size
        Most pairs per batch and process. Batches of a block have equal size but for one pair, so that no batch is tiny.
    seed
        Seed; pairs are drawn by ``numpy.random.default_rng([seed, epoch])``.
    rank, world
        Number of this process and of all processes. Every batch is cut into ``world`` disjoint shares, so all
        processes have equally many; a batch with fewer than ``world`` pairs repeats some.
    redraw
        Draw anew every epoch. A validation set keeps its pairs (``False``).
    drop_last
        Leave out, in each block, the pairs that do not fill a batch (unless the block has no other batch).

    Notes
    -----
    Lightning tells the epoch through :meth:`set_epoch`; in a plain loop each full pass advances it. It derives from
    :class:`torch.utils.data.DistributedSampler` only so that Lightning leaves it in place; pass
    ``use_distributed_sampler=False`` to the trainer all the same, which says what is meant. Use it as
    ``DataLoader(PairedDataset(...), sampler=sampler, batch_size=None)``.

    Examples
    --------
    >>> import numpy as np
    >>> from sccausal.data import PairGroup, StratifiedPairSampler
    >>> group = PairGroup("B", source=np.arange(10), target=np.arange(10, 16))
    >>> sampler = StratifiedPairSampler([group], batch_size=3, seed=0)
    >>> [len(targets) for _, targets in sampler]
    [3, 3]
    """

    def __init__(
        self,
        groups: Sequence[PairGroup],
        batch_size: int = 128,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        redraw: bool = True,
        drop_last: bool = False,
    ) -> None:
        groups = [g for g in groups if len(g.target)]
        if not groups:
            raise SetupError("There is no pair to draw: no target cell is left.")
        empty = [g.name for g in groups if len(g.source) == 0]
        if empty:
            raise SetupError(f"No source cell for {', '.join(empty[:5])}.")
        if batch_size < 1 or not 0 <= rank < world:
            raise InputDataError(f"Need batch_size >= 1 and 0 <= rank < world; got {batch_size}, {rank}, {world}.")
        self._target = np.concatenate([np.asarray(g.target, dtype=np.int64) for g in groups])
        super().__init__(
            self._target,
            num_replicas=world,
            rank=rank,
            shuffle=True,
            seed=seed,
            drop_last=drop_last,
        )
        self.epoch: int = 0
        self.batch_size = batch_size
        self.redraw = redraw
        self._pool = np.concatenate([np.asarray(g.source, dtype=np.int64) for g in groups])
        sizes = np.array([len(g.source) for g in groups])
        member = np.repeat(np.arange(len(groups)), [len(g.target) for g in groups])
        self._pool_size = sizes[member]
        self._pool_start = (np.cumsum(sizes) - sizes)[member]
        block = np.concatenate([np.broadcast_to(g.block, len(g.target)) for g in groups])
        self._blocks = list(positions(block).values())
        self._first_batch = 0

    @property
    def n_pairs(self) -> int:
        """Pairs of an epoch over all processes."""
        return len(self._target)

    def _n_batches(self, size: int) -> int:
        whole = self.batch_size * self.num_replicas
        return max(1, size // whole) if self.drop_last else ceil(size / whole)

    def __len__(self) -> int:
        """Number of batches of this process in an epoch; the same for all processes."""
        return sum(self._n_batches(len(b)) for b in self._blocks)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ``(source rows, target rows)`` of each batch."""
        epoch, first, self._first_batch = self.epoch, self._first_batch, 0
        rng = np.random.default_rng([self.seed, epoch if self.redraw else 0])
        source = self._pool[self._pool_start + (rng.random(self.n_pairs) * self._pool_size).astype(np.int64)]
        batches = [part for block in self._blocks for part in self._cut(rng.permutation(block))]
        for i in rng.permutation(len(batches))[first:]:
            yield source[batches[i]], self._target[batches[i]]
        if self.epoch == epoch:
            self.epoch = epoch + 1

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Share of this process in the batches of one block."""
        n = self._n_batches(len(rows))
        if self.drop_last:
            rows = rows[: n * self.batch_size * self.num_replicas]
        shares = [np.array_split(batch, self.num_replicas) for batch in np.array_split(rows, n)]
        mine = [share[self.rank] for share in shares]
        # an empty share would stop this process while the others wait for it
        return [share if len(share) else rows[[self.rank % len(rows)]] for share in mine]

    def state_dict(self, batches_done: int = 0) -> dict[str, int]:
        """Where the sampler stands: seed, epoch and the batches of it that were used."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": batches_done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the given number of batches of the given epoch."""
        self.seed, self.epoch, self._first_batch = int(state["seed"]), int(state["epoch"]), int(state["batch"])


def positions(code: np.ndarray) -> dict[int, np.ndarray]:
    """Positions of every value of an integer array, by one sort however many values there are."""
    order = np.argsort(code, kind="stable")
    values, first = np.unique(code[order], return_index=True)
    return {int(v): at for v, at in zip(values, np.split(order, first[1:]), strict=True)} if len(values) else {}


def make_groups(
    source: np.ndarray,
    target: np.ndarray,
    strata: np.ndarray,
    blocks: np.ndarray | None = None,
    *,
    fallback: np.ndarray | None = None,
    what: str = "control",
) -> list[PairGroup]:
    """Group cells by stratum (and block); a stratum without source cells draws from all of them.

    Parameters
    ----------
    source, target
        Row numbers of source and target cells.
    strata
        Name of the stratum of every cell of the AnnData.
    blocks
        Number of the block of every cell of the AnnData; one block if ``None``.
    fallback
        Further source rows, used in strata without a ``source``; e.g. training controls for a validation set.
    what
        What the source cells are called in messages.

    Returns
    -------
    One group per stratum with target cells.

    Warns
    -----
    UserWarning
        Naming the strata without source cells.
    """
    spare = np.empty(0, dtype=np.int64) if fallback is None else fallback
    pooled = source if len(source) else spare
    if len(pooled) == 0:
        raise SetupError(f"There is no {what} cell to pair with.")
    block_of = np.zeros(len(strata), dtype=np.int64) if blocks is None else blocks
    code, names = pd.factorize(strata, sort=True)
    sources = {k: source[at] for k, at in positions(code[source]).items()}
    spares = {k: spare[at] for k, at in positions(code[spare]).items()}
    groups, alone = [], []
    for k, at in positions(code[target]).items():
        cells = sources.get(k, spares.get(k))
        if cells is None:
            cells = pooled
            alone.append(str(names[k]))
        groups.append(PairGroup(str(names[k]), cells, target[at], block_of[target[at]]))
    if alone:
        warnings.warn(
            f"No {what} cell in {len(alone)} strata ({', '.join(alone[:5])}); "
            f"{what} cells of all strata are used there.",
            UserWarning,
            stacklevel=3,
        )
    return groups
