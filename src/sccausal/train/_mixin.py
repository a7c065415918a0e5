"""``train`` as every model offers it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from scvi import settings
from scvi.dataloaders import DataSplitter
from scvi.train import Trainer

from sccausal._errors import SetupError
from sccausal.train._arguments import check_names, named_arguments
from sccausal.train._history import with_history
from sccausal.train._nan_guard import NanGuard
from sccausal.train._plan import CausalTrainingPlan
from sccausal.train._resume import SPLIT, ResumeCheckpoint, load_history, read_resume, resume_path, run_fingerprint
from sccausal.train._runner import CausalTrainRunner, is_distributed
from sccausal.train._seed import reseed, run_seed

logger = logging.getLogger(__name__)


class CausalTrainingMixin:
    """Training by gradient descent; the class attributes are the points to override.

    Examples
    --------
    >>> model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, plan_kwargs={"lr": 1e-4})
    >>> model.is_trained
    True
    """

    _data_splitter_cls: type[pl.LightningDataModule] = DataSplitter
    _training_plan_cls: type[CausalTrainingPlan] = CausalTrainingPlan
    _train_runner_cls: type[CausalTrainRunner] = CausalTrainRunner

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = False,
        external_indexing: Any = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        checkpoint_dir: str | os.PathLike | None = None,
        checkpoint_every: int = 1,
        load_sparse_tensor: bool = False,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model.

        With ``scvi.settings.seed`` set, the same call on the same machine gives the same weights from the same
        initial ones. A value that is not finite stops the run; an interruption leaves a usable model.

        Parameters
        ----------
        max_epochs
            Passes through the training cells. ``None``: 400 up to 20 000 cells, fewer beyond
            in inverse proportion, as in scvi-tools.
        accelerator, devices
            Where to train, as in Lightning.
        train_size, validation_size
            Shares of the cells; what is left over is for testing.
        shuffle_set_split
            Whether cells are drawn at random for this split.
        batch_size
            Cells per minibatch, on each process.
        early_stopping
            Stop when ``early_stopping_monitor`` (in ``trainer_kwargs``; ``"score_validation"`` by default) no
            longer improves.
        external_indexing
            Rows of the training, validation and test cells, or a :class:`~sccausal.data.Split`. Rows in none of
            them are not used for training.
        plan_kwargs
            Arguments of the training plan and of the module's loss.
        checkpoint_dir
            Directory of temporary files (one per seed) from which the same call, made again after a kill, continues
            at the last finished epoch and ends with the same weights. If the run had ended, its result is restored.
        checkpoint_every
            Epochs between two writes of that file.
        load_sparse_tensor
            Move sparse minibatches to the device before they are made dense.
        datasplitter_kwargs
            Further arguments of the class that splits and loads the cells.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`. Loggers given as ``logger`` (of Lightning, MLflow, ...)
            work beside ``model.history``.

        Raises
        ------
        SetupError
            An argument is unknown, or ``checkpoint_dir`` belongs to another run; nothing has been trained yet.
        NumericalError
            The loss, a gradient or a weight was not finite; the last good weights are restored.
        KeyboardInterrupt
            The run was interrupted; the model can be used.
        """
        check_names(trainer_kwargs, _trainer_arguments(), "argument of train")
        plan_kwargs = dict(plan_kwargs or {})
        n_obs = self.adata.n_obs  # type: ignore[attr-defined]
        max_epochs = default_epochs(n_obs) if max_epochs is None else max_epochs
        split = _as_split(external_indexing, n_obs)
        splitting = {
            "train_size": train_size,
            "validation_size": validation_size,
            "shuffle_set_split": shuffle_set_split,
            "batch_size": batch_size or settings.batch_size,
        }
        options = dict(datasplitter_kwargs or {})
        checkpoint = state = None
        if checkpoint_dir is not None:
            arguments = splitting | {"plan_kwargs": plan_kwargs, "datasplitter_kwargs": options, "split": split}
            arguments |= {"max_epochs": max_epochs, "early_stopping": early_stopping, "seed": settings.seed}
            checkpoint = resume_path(checkpoint_dir, settings.seed), run_fingerprint(self, arguments)
            state = read_resume(*checkpoint)
        seed = run_seed() if state is None else int(state["seed"])
        # without a seed a new split would be drawn
        split = _saved_split(state) if split is None else split

        reseed(seed)
        plan = self._training_plan_cls(self.module, **{"seed": seed, **plan_kwargs})  # type: ignore[attr-defined]
        if state is not None and state["finished"]:
            self._restore_finished(plan, state)
            return
        distributed = is_distributed(trainer_kwargs.get("strategy"))
        data = self._make_data(
            split, splitting | options | {"load_sparse_tensor": load_sparse_tensor, "distributed_sampler": distributed}
        )
        if early_stopping and getattr(data, "n_val", None) == 0:
            raise SetupError("early_stopping needs validation cells; lower train_size or give validation rows.")
        callbacks: list[Callback] = [NanGuard()]
        if checkpoint is not None:
            callbacks.append(ResumeCheckpoint(*checkpoint, seed, checkpoint_every, state))
        given = trainer_kwargs.pop("callbacks", None) or []
        if "logger" in trainer_kwargs:
            trainer_kwargs["logger"] = with_history(trainer_kwargs["logger"])
        defaults: dict[str, Any] = {
            "early_stopping": early_stopping,
            "early_stopping_monitor": "score_validation",
            # our loaders share the cells out by themselves; a second sampler on top would break pairs
            "use_distributed_sampler": False,
            # all our logs are per epoch; Lightning's default would only warn about short epochs
            "log_every_n_steps": 1,
        }
        self.module.train()  # type: ignore[attr-defined]
        runner = self._train_runner_cls(
            self,
            training_plan=plan,
            data_splitter=data,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            callbacks=[*callbacks, *([given] if isinstance(given, Callback) else given)],
            **(defaults | trainer_kwargs),
        )
        runner()

    def _make_data(self, split: list[np.ndarray] | None, kwargs: dict[str, Any]) -> pl.LightningDataModule:
        n_obs, size = self.adata.n_obs, kwargs["batch_size"]  # type: ignore[attr-defined]
        n_train = len(split[0]) if split is not None else int(np.ceil((kwargs["train_size"] or 0.9) * n_obs))
        if issubclass(self._data_splitter_cls, DataSplitter) and n_train > size and 0 < n_train % size < 3:
            # one or two cells make no batch statistics; the order changes each epoch, so no cell is lost for good
            kwargs.setdefault("drop_last", True)
        if split is not None:
            kwargs["external_indexing"] = split
        if kwargs["distributed_sampler"] and settings.seed is None and split is None:
            logger.warning("Without scvi.settings.seed each process draws its own training and validation cells.")
        return self._data_splitter_cls(self.adata_manager, **kwargs)  # type: ignore[attr-defined]

    def _restore_finished(self, plan: CausalTrainingPlan, state: dict[str, Any]) -> None:
        plan.load_state_dict(state["weights"])
        self.history_ = load_history(state["history"])
        for name, key in zip(("train_indices", "validation_indices", "test_indices"), SPLIT, strict=True):
            rows = state["split"][key]
            setattr(self, name, None if rows is None else rows.numpy())
        self.module.eval()  # type: ignore[attr-defined]
        self.is_trained_ = True
        logger.info("The run had ended after %d epoch(s); its result is restored.", state["epoch"])


def _saved_split(state: dict[str, Any] | None) -> list[np.ndarray] | None:
    rows = [] if state is None else [state["split"][name] for name in SPLIT]
    return [r.numpy() for r in rows] if rows and all(r is not None for r in rows) else None


def default_epochs(n_obs: int) -> int:
    """Epochs for ``n_obs`` cells: 400 up to 20 000 cells, then as many as keep the number of updates, at least 1."""
    return max(1, min(400, round(20_000 / n_obs * 400)))


def _trainer_arguments() -> set[str]:
    runner = named_arguments(CausalTrainRunner.__init__) - {"model", "training_plan", "data_splitter"}
    return named_arguments(Trainer.__init__) | named_arguments(pl.Trainer.__init__) | runner | {"ckpt_path"}


def _as_split(indexing: Any, n_obs: int) -> list[np.ndarray] | None:
    """Training, validation and test rows, which together are all rows, from what the user gave."""
    if indexing is None:
        return None
    if hasattr(indexing, "train") and hasattr(indexing, "validation"):
        indexing = [indexing.train, indexing.validation, indexing.test]
    if isinstance(indexing, str) or not isinstance(indexing, Sequence) or not 1 <= len(indexing) <= 3:
        raise SetupError(
            "external_indexing must be a Split or a list [training rows, validation rows, test rows]; "
            f"found {type(indexing).__name__}."
        )
    parts = [np.asarray([] if p is None else p, dtype=np.int64) for p in [*indexing, None, None][:3]]
    rows = np.concatenate(parts)
    if len(parts[0]) == 0 or rows.min() < 0 or rows.max() >= n_obs or len(np.unique(rows)) < len(rows):
        raise SetupError(
            f"external_indexing needs training rows, and rows that are distinct and below n_obs={n_obs}; found "
            f"{len(parts[0])} training, {len(parts[1])} validation and {len(parts[2])} test rows "
            f"between {rows.min() if len(rows) else '-'} and {rows.max() if len(rows) else '-'}."
        )
    rest = np.setdiff1d(np.arange(n_obs), rows)
    return [parts[0], parts[1], np.concatenate([parts[2], rest])]
