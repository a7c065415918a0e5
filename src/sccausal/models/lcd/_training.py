"""How LCD is trained: stages, the closed-form start, and what is calibrated afterwards."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from sccausal._errors import SetupError, unknown_name
from sccausal.data import KEYS
from sccausal.models._cells import local_seed
from sccausal.models.lcd._loading import EnvironmentDataSplitter
from sccausal.models.lcd._module import environments
from sccausal.models.lcd._noise import sampling_noise
from sccausal.models.lcd._outputs import numpy_states
from sccausal.models.lcd._statistics import StateStatistics, batch_levels, dense, state_statistics

_UPDATES, _NOISE_UPDATES = 3000, 2500
_PAPER_PLAN: dict[str, Any] = {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 1.0}
_PLAN: dict[str, Any] = {"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 0.1, "gradient_clip_val": 10.0}


class _CosineRate(Callback):
    """Learning rate that falls to zero along a cosine; a function of the epoch, so that a resumed run agrees."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = max(int(trainer.max_epochs or 1), 1)
        rate = float(pl_module.lr) * 0.5 * (1 + math.cos(math.pi * trainer.current_epoch / total))
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate


class TrainingMixin:
    """Training of :class:`~sccausal.models.LCD`."""

    if TYPE_CHECKING:
        history_: Any
        noise_history_: Any

        def __getattr__(self, name: str) -> Any: ...

    # ------------------------------------------------------------------ training

    def train(
        self: Any,
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
        stage: Literal["both", "noise", "drift"] = "both",
        noise_epochs: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the model, the noise model first where there is one.

        Parameters
        ----------
        max_epochs
            Epochs of the drift; default about 3000 updates, between 10 and 300 epochs.
        accelerator, devices, train_size, validation_size, shuffle_set_split, batch_size, early_stopping
            As in every model; see :meth:`sccausal.models.CausalModel.train`.
        external_indexing
            Rows of the training, validation and test cells, or a :class:`~sccausal.data.Split`.
        plan_kwargs
            Arguments of :class:`sccausal.train.CausalTrainingPlan`. Default: AdamW with ``lr=1e-3``, which falls along
            a cosine, and ``weight_decay=0.1`` (1.0 with ``preset="paper"``), the main control of capacity.
        checkpoint_dir
            As in every model; each stage has its own files there.
        stage
            ``"noise"`` or ``"drift"`` alone, or ``"both"``. The drift needs a trained noise model.
        noise_epochs
            Epochs of the noise model; default about 2500 updates, each on cells of one
            environment. Its history is in ``noise_history_``.
        **kwargs
            Further arguments of :meth:`sccausal.models.CausalModel.train`.
        """
        if stage not in ("both", "noise", "drift"):
            raise unknown_name("stage", stage, ("both", "noise", "drift"))
        if stage == "noise" and self.module.noise is None:
            raise SetupError("There is no noise model to train; build the model with noise_model='zip'.")
        same: dict[str, Any] = {
            "accelerator": accelerator, "devices": devices, "train_size": train_size,
            "validation_size": validation_size, "shuffle_set_split": shuffle_set_split, "batch_size": batch_size,
            "early_stopping": early_stopping, **kwargs,
        }  # fmt: skip
        plan = {**(_PAPER_PLAN if self.preset_ == "paper" else _PLAN), **dict(plan_kwargs or {})}
        given = same.pop("callbacks", None) or []
        same["callbacks"] = [_CosineRate(), *([given] if isinstance(given, Callback) else given)]
        per_epoch = max(1, self.adata.n_obs // batch_size)
        split = external_indexing
        if self.module.noise is not None and stage != "drift":
            updates = max(per_epoch, len(self._environment_rows()))
            epochs = noise_epochs or max_epochs or int(np.clip(_NOISE_UPDATES // updates, 5, 200))
            self._train_stage("noise", epochs, checkpoint_dir, external_indexing=split, plan_kwargs=plan, **same)
            self.noise_history_, self.history_ = dict(self.history_ or {}), {}
            split = [self.train_indices, self.validation_indices, self.test_indices]
        if stage != "noise":
            if self.module.noise is not None and not bool(self.module.noise_trained):
                raise SetupError("The noise model is not trained; call train(stage='both') or train(stage='noise').")
            epochs = max_epochs or int(np.clip(_UPDATES // per_epoch, 10, 300))
            self._train_stage("drift", epochs, checkpoint_dir, external_indexing=split, plan_kwargs=plan, **same)

    def _train_stage(
        self: Any,
        stage: Literal["noise", "drift"],
        epochs: int,
        checkpoint_dir: str | os.PathLike | None,
        **kwargs: Any,
    ) -> None:
        self.module.stage = stage
        if stage == "noise":  # states are drawn per environment, so a mini-batch of one costs the least
            self._data_splitter_cls = EnvironmentDataSplitter
        folder = None if checkpoint_dir is None else Path(checkpoint_dir) / stage
        try:
            super().train(epochs, checkpoint_dir=folder, **kwargs)  # type: ignore[misc]
            if stage == "noise":
                self.module.noise_trained.fill_(True)
        finally:
            self.module.stage = "drift"
            vars(self).pop("_data_splitter_cls", None)
            # a run that was stopped leaves a usable model; query cells change nothing of the reference
            if stage == "drift" and self.is_trained_ and not getattr(self, "query_", None):
                self.module.ema.copy_to(self.module.drift)
                self.module.eval()
                self._calibrate()

    def _make_data(self: Any, split: list[np.ndarray] | None, *args: Any) -> pl.LightningDataModule:
        data = super()._make_data(split, *args)  # type: ignore[misc]
        if split is None:
            # the statistics below must come from the very cells that are trained on
            data.setup("fit")
            parts = [np.asarray(getattr(data, n)) for n in ("train_idx", "val_idx", "test_idx")]
            data = super()._make_data(parts, *args)  # type: ignore[misc]
            rows = parts[0]
        else:
            rows = split[0]
        self._start_module(np.sort(np.asarray(rows)))
        return data

    def _cells(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expression (n, d), doses (n, T) and batches (n,) of cells of the model."""
        manager = self.adata_manager
        X = dense(manager.get_from_registry(KEYS.X)[rows])
        dose = dense(manager.get_from_registry(KEYS.INTERVENTION)[rows])
        return X, dose, np.asarray(manager.get_from_registry(KEYS.BATCH)).ravel().astype(int)[rows]

    @torch.no_grad()
    def _start_module(self, rows: np.ndarray) -> None:
        module = self.module
        if getattr(self, "query_", None):
            self._start_query(rows)
            return
        if module.stage == "noise":
            if not bool(module.noise_trained):
                self._start_noise(rows)
            return
        if bool(module.started):
            return
        module.start(self._statistics(rows))

    def _start_query(self, rows: np.ndarray) -> None:
        """Levels of the new batches from their control cells; nothing else of the reference is touched."""
        X, dose, batch = self._cells(rows)
        module, old = self.module, int(self.query_["old_shapes"]["level"][0])
        if module.noise is not None:
            X = numpy_states(module, X)
        control = ~(dose != 0).any(axis=1)
        for b in np.unique(batch[batch >= old]):
            own = batch == b
            used = own & control if (own & control).any() else own
            level = batch_levels(X[used], np.zeros(used.sum(), int), np.ones(used.sum(), bool), 1)[0]
            module.level[int(b)] = torch.as_tensor(level, dtype=torch.float32)

    def _start_noise(self, rows: np.ndarray) -> None:
        module = self.module
        X, dose, batch = self._cells(rows)
        control = ~(dose != 0).any(axis=1)
        if not control.any() or control.all():
            raise SetupError("The training cells hold no control cell, or no treated one; both are needed.")
        base = X[control].astype(np.float64)
        mean, variance = base.mean(axis=0), base.var(axis=0)
        covariance = np.cov((X[control] - batch_levels(X, batch, control, len(module.level))[batch[control]]).T)
        # more zeros than a gamma-Poisson law of this mean and variance has
        size = np.maximum(mean**2 / np.maximum(variance - mean, 1e-6), 1e-2)
        expected = (size / (size + mean)) ** size
        excess = np.clip(((base == 0).mean(axis=0) - expected) / np.maximum(1 - expected, 1e-6), 0.01, 0.5)
        tensor = {"mean": mean, "covariance": np.atleast_2d(covariance), "pi": excess}
        module.noise.start(**{k: torch.as_tensor(v, dtype=torch.float32) for k, v in tensor.items()})
        levels = batch_levels(X, batch, control, len(module.level))
        kept = (1 - module.noise.pi).cpu()
        module.level.copy_(module.noise.state_of(torch.as_tensor(levels, dtype=torch.float32) / kept))
        moved = state_statistics(X, dose, batch, len(module.level), "shrunken")
        after = torch.as_tensor(np.maximum(mean + moved.singles, 0.05 * mean), dtype=torch.float32) / kept
        before = module.noise.state_of(torch.as_tensor(mean, dtype=torch.float32) / kept)
        module.noise.generator.effect.mean.copy_(module.noise.state_of(after) - before)

    def _statistics(self, rows: np.ndarray | None = None) -> StateStatistics:
        """Closed-form statistics of the training states."""
        if rows is None:
            held = getattr(self, "train_indices", None)
            rows = np.arange(self.adata.n_obs) if held is None else np.sort(np.asarray(held))
        module = self.module
        X, dose, batch = self._cells(rows)
        if module.noise is None:
            return state_statistics(X, dose, batch, len(module.level), self.effects_)
        with local_seed(0, module.scale.device), torch.no_grad():
            (states, doses, batches), n_cells = self._drawn_for_statistics(dose, batch)
            noise = sampling_noise(module.noise, module.level.detach().mean(0)).cpu().numpy()
        return state_statistics(states, doses, batches, len(module.level), self.effects_, n_cells, noise)

    def _drawn_for_statistics(
        self, dose: np.ndarray, batch: np.ndarray, n: int = 1000
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """States of the generator for each environment, with the number of cells behind its intervention."""
        module, parts = self.module, []
        rows = torch.as_tensor(dose)
        cells = {r.numpy().tobytes(): int((rows == r).all(1).sum()) for r in torch.unique(rows, dim=0)}
        for row, place, _ in environments(rows, torch.as_tensor(batch)):
            device = module.scale.device
            index = module.environment(row.to(device), place.to(device))
            states = module.noise.states(module.noise_level[place], row.to(device), place.to(device), n, index)
            parts.append((states.cpu().numpy(), np.tile(row.numpy(), (n, 1)), np.full(n, int(place)),
                          np.full(n, cells[row.numpy().tobytes()])))  # fmt: skip
        s, d, b, c = (np.concatenate([p[i] for p in parts]) for i in range(4))
        return (s, d, b), c

    @torch.no_grad()
    def _calibrate(self, n_draws: int = 16) -> None:
        """Scale each target's embedding by what it is worth on validation cells."""
        rows = getattr(self, "validation_indices", None)
        module = self.module
        if not self.calibrate_ or module.noise is not None or rows is None or len(rows) == 0:
            return
        X, dose, batch = self._cells(np.sort(np.asarray(rows)))
        device = module.scale.device
        x, u, b = (torch.as_tensor(v, device=device) for v in (X, dose, batch))
        z = (x - module.centre(u, b)) / module.scale
        errors = []
        for given in (torch.zeros_like(u), u):
            with local_seed(0, device):
                errors.append(module.denoising_error(z, given, b, n_draws).view(n_draws, -1).mean(0))
        gain = (errors[0] - errors[1]).double().cpu().numpy()
        own = dose != 0
        treated = own.any(axis=1)
        if treated.sum() < 10:
            return
        # one number for all, then each target's own as far as its cells say more
        common, spread = float(gain[treated].mean()), float(gain[treated].std(ddof=1))
        gate = np.zeros(module.n_targets)
        for t in range(module.n_targets):
            n = int(own[:, t].sum())
            prior = 30.0
            mean = (n * float(gain[own[:, t]].mean() if n else 0.0) + prior * common) / (n + prior)
            noise = spread / np.sqrt(n + prior)
            gate[t] = np.clip(1 - (noise / mean) ** 2, 0, 1) if mean > 0 else 0.0
        module.gate.copy_(torch.as_tensor(gate))

    def _training_doses(self) -> np.ndarray:
        rows = getattr(self, "train_indices", None)
        dose = dense(self.adata_manager.get_from_registry(KEYS.INTERVENTION))
        return np.unique(dose if rows is None else dose[np.asarray(rows)], axis=0)

    def _environment_rows(self) -> list[list[float]]:
        """Dose rows with the batch behind them of all environments of the cells."""
        _, dose, batch = self._cells(np.arange(self.adata.n_obs))
        return np.unique(np.column_stack([dose, batch]), axis=0).tolist()

    def _spread_by_condition(self) -> float | None:
        """Share of the pairs of intervention and gene whose variance differs from that of control cells."""
        X, dose, batch = self._cells(np.arange(self.adata.n_obs))
        if self.module.noise is not None:
            X = numpy_states(self.module, X)
        rows, code = np.unique(dose, axis=0, return_inverse=True)
        code = np.ravel(code)
        logs = {}
        for c, row in enumerate(rows):
            own = X[code == c]
            if len(own) >= 40:
                rest = (own - own.mean(axis=0)).astype(np.float64)
                variance = np.maximum((rest**2).mean(axis=0), 1e-12)
                # the variance of a variance depends on the fourth moment
                error = np.maximum((rest**4).mean(axis=0) / variance**2 - 1, 0.1) / len(own)
                logs[bool(row.any()), c] = (np.log(variance), error)
        base = next((v for (treated, _), v in logs.items() if not treated), None)
        others = [v for (treated, _), v in logs.items() if treated]
        if base is None or not others:
            return None
        changed = [
            (np.abs(v - base[0]) > 4 * np.sqrt(e + base[1])) & (np.abs(v - base[0]) > np.log(1.1)) for v, e in others
        ]
        return float(np.mean(changed))
