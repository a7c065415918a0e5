"""Continue a run that was killed, on the path it would have taken."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from sccausal import __version__
from sccausal._errors import FileFormatError, SetupError

logger = logging.getLogger(__name__)

_SCHEMA = 1
# names of the rows of a data module, in the order of external_indexing
SPLIT = ("train_idx", "val_idx", "test_idx")


def resume_path(directory: str | os.PathLike, seed: int | None) -> Path:
    """File of the run with this ``scvi.settings.seed``; runs of an ensemble share a directory."""
    return Path(directory) / f"resume-{'unseeded' if seed is None else seed}.ckpt"


class ResumeCheckpoint(Callback):
    """Writes the state of a run every few epochs and restores it at the start of the next.

    The file is a local, temporary one and not a way to save a model. It holds tensors and plain values only and is
    read with ``weights_only=True``, so it can run no code. It is written beside its final place and moved there in
    one step: a kill leaves the old file or the new one, never half of one.

    Parameters
    ----------
    path
        File to write, see :func:`resume_path`.
    fingerprint
        What makes the run, compared on resumption.
    seed
        Seed of the run.
    every
        Epochs between two writes.
    state
        State to start from, as given by :func:`read_resume`.

    Examples
    --------
    >>> model.train(  # doctest: +SKIP
    ...     max_epochs=200, checkpoint_dir="run"
    ... )  # killed and started again, it goes on where it stood
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fingerprint: Mapping[str, str],
        seed: int,
        every: int = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if every < 1:
            raise SetupError(f"A checkpoint is written every 1 or more epochs; found {every}.")
        self.path = Path(path)
        self.fingerprint = dict(fingerprint)
        self.seed = seed
        self.every = every
        self._state = state

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore weights, optimizers, counters, callbacks and history."""
        state, self._state = self._state, None
        if state is None:
            return
        pl_module.load_state_dict(state["weights"])
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for config, saved in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
            config.scheduler.load_state_dict(saved)
        for callback in trainer.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        _set_counters(trainer, state["epoch"], state["global_step"], state["batches"])
        if trainer.is_global_zero:
            restore_history(trainer.logger, state["history"])
        logger.info("Training continues after %d finished epoch(s) from %s.", state["epoch"], self.path)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state with which the last epoch ended."""
        # here multipliers, schedulers and logs of the last epoch are complete, unlike in on_train_epoch_end
        if trainer.current_epoch > 0 and trainer.current_epoch % self.every == 0:
            self._write(trainer, pl_module, finished=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state, so that a kill before the model is saved costs nothing."""
        # after every on_train_end: another callback may put the best weights back there
        self._write(trainer, pl_module, finished=True)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, finished: bool) -> None:
        if not trainer.is_global_zero:
            return
        datamodule = getattr(trainer, "datamodule", None)
        split = {name: getattr(datamodule, name, None) for name in SPLIT}
        state = {
            "schema": _SCHEMA,
            "version": __version__,
            "finished": finished,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "batches": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "weights": pl_module.state_dict(),
            "optimizers": [o.state_dict() for o in trainer.optimizers],
            "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
            "callbacks": {c.state_key: s for c in trainer.callbacks if (s := c.state_dict()) and _is_plain(s)},
            "history": dump_history(trainer.logger),
            "split": {k: None if v is None else torch.as_tensor(np.array(v, np.int64)) for k, v in split.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)


def _is_plain(value: Any) -> bool:
    """Whether ``value`` can be read back with ``weights_only=True``."""
    if isinstance(value, Mapping):
        return type(value) is dict and all(_is_plain(v) for kv in value.items() for v in kv)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


def read_resume(path: str | os.PathLike, fingerprint: Mapping[str, str]) -> dict[str, Any] | None:
    """State left in the file ``path`` by an earlier run, or ``None`` if there is none.

    Raises
    ------
    SetupError
        The file belongs to a run with other arguments or other data.
    FileFormatError
        The file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FileFormatError(f"{path} is no checkpoint of an interrupted run ({error}); remove it.") from error
    if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
        raise FileFormatError(f"{path} has an unknown schema; remove it to train anew.")
    found = state["fingerprint"]
    differs = sorted(k for k in {*found, *fingerprint} if found.get(k) != fingerprint.get(k))
    if differs:
        shown = "; ".join(f"{k}: {found.get(k)} there, {fingerprint.get(k)} now" for k in differs)
        raise SetupError(
            f"{path} belongs to another run ({shown}). Use the same arguments to continue it, another checkpoint_dir "
            "to keep it, or remove the file to train anew."
        )
    return state


def run_fingerprint(model: Any, arguments: Mapping[str, Any]) -> dict[str, str]:
    """What must agree between a run and its continuation: model, data and arguments, each as a short text."""
    adata = model.adata
    shapes = [(k, tuple(v.shape)) for k, v in sorted(model.module.state_dict().items())]
    cells = hashlib.sha256("\n".join([*adata.obs_names, "", *adata.var_names]).encode())
    return {
        "model": type(model).__name__,
        "weights": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        "cells": f"{adata.n_obs} x {adata.n_vars}, {cells.hexdigest()[:16]}",
        **{name: _describe(value) for name, value in sorted(arguments.items())},
    }


def _describe(value: Any) -> str:
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_describe(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, np.ndarray | pd.Series | torch.Tensor):
        array = np.ascontiguousarray(value)
        return f"{array.shape}, {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_describe, value)) + "]"
    return repr(value)


def dump_history(lightning_logger: Any) -> dict[str, Any]:
    """History of scvi's logger as plain values."""
    history = getattr(lightning_logger, "history", None) or {}
    return {
        name: {
            "axis": frame.index.name,
            "index": [int(i) for i in frame.index],
            "values": [float(v) for v in frame.iloc[:, 0]],
        }
        for name, frame in history.items()
    }


def load_history(saved: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Inverse of :func:`dump_history`."""
    return {
        name: pd.DataFrame({name: part["values"]}, index=pd.Index(part["index"], name=part["axis"]), dtype=object)
        for name, part in saved.items()
    }


def restore_history(lightning_logger: Any, saved: Mapping[str, Any]) -> None:
    """Write a saved history into scvi's logger; other loggers keep their own."""
    data = getattr(getattr(lightning_logger, "experiment", None), "data", None)
    if isinstance(data, dict):
        data.update(load_history(saved))


def _set_counters(trainer: pl.Trainer, epoch: int, global_step: int, n_batches: int) -> None:
    # Lightning restores counters only from its own checkpoint format, whose rules of where in an epoch a run goes on
    # changed in most releases; between two epochs there is nothing to decide
    loop = trainer.fit_loop
    for progress in (loop.epoch_progress.current, loop.epoch_progress.total):
        progress.ready = progress.started = progress.processed = progress.completed = epoch
    batches = loop.epoch_loop
    batches._batches_that_stepped = n_batches
    batches.automatic_optimization.optim_progress.optimizer.step.total.completed = global_step
    batches.manual_optimization.optim_step_progress.total.completed = global_step
