"""The training plan all models share: how losses become updates and history."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from scvi.module.base import LossOutput
from scvi.train import TrainingPlan
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sccausal._errors import NumericalError, SetupError
from sccausal.train._arguments import check_plan_kwargs
from sccausal.train._groups import group_by_name, parameter_groups
from sccausal.train._lagrangian import (
    LagrangianState,
    has_lagrangian,
    lagrangian_update,
    read_lagrangian,
    write_lagrangian,
)
from sccausal.train._means import EpochMeans
from sccausal.train._seed import reseed


class CausalTrainingPlan(TrainingPlan):
    """Training plan with one optimizer, parameter groups and an optional augmented Lagrangian.

    Hooks of the module, all optional:

    - ``parameter_groups(lr) -> list[dict]``: options of single parameters, each with a ``name``
      (see :func:`sccausal.train.parameter_groups`);
    - ``on_epoch_start(epoch, max_epochs)``: called before each epoch;
    - ``proximal_step(lr)``: called without gradients after each optimizer step, with the learning rate of
      ``structure_group``;
    - ``constraint() -> 0-d tensor`` with the buffers of :func:`~sccausal.train.register_lagrangian_buffers`.

    Each part of the loss is written to the history once per epoch as ``<name>_train`` and ``<name>_validation``,
    beside ``kl_weight``, ``constraint``, ``multiplier`` and ``penalty``. ``score_validation`` is the unweighted
    negative ELBO plus ``score_constraint_weight * constraint``: unlike the loss it means the same in every epoch, and
    unlike the ELBO it sees the constraint, so early stopping and checkpoints should monitor it.

    Parameters
    ----------
    module
        Module to train.
    lr, weight_decay, eps
        Options of the optimizer.
    optimizer
        ``"Adam"``, ``"AdamW"`` or ``"Custom"`` with ``optimizer_creator``.
    warmup_fraction
        Share of all epochs over which the KL weight rises, step by step, from ``min_kl_weight`` to
        ``max_kl_weight``. ``n_epochs_kl_warmup`` or ``n_steps_kl_warmup``, where given, take its place.
    n_epochs_kl_warmup
        Epochs of warm-up; ``None`` leaves it to ``warmup_fraction``.
    gradient_clip_val
        Largest Euclidean norm of all gradients together; ``None`` leaves them as they are.
    lagrangian_every
        Epochs between two updates of the multiplier; ``None`` is a twentieth of all epochs.
    lagrangian_factor, lagrangian_shrink, lagrangian_max_penalty
        See :func:`~sccausal.train.lagrangian_update`.
    lagrangian_tolerance
        The multiplier rests while the constraint is at or below this value.
    alternate
        ``(n_network, n_structure)``: in turns, that many epochs update all groups but ``structure_group``, then
        that many only this group. ``None`` updates all at once.
    structure_group
        Name of the parameter group of the graph.
    score_constraint_weight
        Weight of the constraint in ``score_validation``.
    seed
        If given, the random state is set from ``(seed, epoch, process)`` before each epoch, so that a run that is
        resumed takes the path of one that was never stopped.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan` and of ``module.loss``.

    Raises
    ------
    SetupError
        An argument is unknown to the plan and to ``module.loss``, or out of its range.

    Examples
    --------
    >>> from sccausal.train import CausalTrainingPlan
    >>> plan = CausalTrainingPlan(model.module, lr=1e-3, warmup_fraction=0.25)
    >>> sorted(group["name"] for group in plan.configure_optimizers()["optimizer"].param_groups)
    ['batch_discriminator', 'network', 'structure']
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
        optimizer: str = "Adam",
        warmup_fraction: float = 1 / 3,
        n_epochs_kl_warmup: int | None = None,
        gradient_clip_val: float | None = None,
        lagrangian_every: int | None = None,
        lagrangian_factor: float = 10.0,
        lagrangian_shrink: float = 0.25,
        lagrangian_max_penalty: float = 1e7,
        lagrangian_tolerance: float = 1e-8,
        alternate: tuple[int, int] | None = None,
        structure_group: str = "structure",
        score_constraint_weight: float = 1.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        check_plan_kwargs(type(self), module.loss, kwargs)
        _check_range("lr", lr, 0.0, math.inf, open_low=True)
        _check_range("warmup_fraction", warmup_fraction, 0.0, 1.0)
        if gradient_clip_val is not None:
            _check_range("gradient_clip_val", gradient_clip_val, 0.0, math.inf, open_low=True)
        if lagrangian_every is not None:
            _check_range("lagrangian_every", lagrangian_every, 1, math.inf)
        lagrangian_update(LagrangianState(), 0.0, factor=lagrangian_factor, shrink=lagrangian_shrink)
        # needed by kl_weight, which the base reads while it is built
        self._warmup_fraction = float(warmup_fraction)
        self._progress = 0.0
        super().__init__(
            module,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            optimizer=optimizer,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            **kwargs,
        )
        self.gradient_clip_val = gradient_clip_val
        self.lagrangian_every = lagrangian_every
        self.lagrangian_options = {
            "factor": lagrangian_factor,
            "shrink": lagrangian_shrink,
            "max_penalty": lagrangian_max_penalty,
        }
        self.lagrangian_tolerance = lagrangian_tolerance
        self.structure_group = structure_group
        self.score_constraint_weight = score_constraint_weight
        self.seed = seed
        self.loss_parts: dict[str, torch.Tensor] = {}
        self._means, self._validation_means = EpochMeans(), EpochMeans()
        self._score_term: torch.Tensor | float = 0.0
        self.alternate = self._check_alternate(alternate)

    # ------------------------------------------------------------------ schedule

    @property
    def n_epochs(self) -> int | None:
        """Epochs of this run, if it is bounded by epochs."""
        max_epochs = None if self._trainer is None else self._trainer.max_epochs
        return max_epochs if max_epochs is not None and max_epochs > 0 else None

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1], counted in minibatches."""
        return self._progress

    def _advance(self, batch_idx: int) -> None:
        n_batches = self.trainer.num_training_batches
        within = batch_idx / n_batches if math.isfinite(n_batches) and n_batches > 0 else 0.0
        if self.n_epochs is not None:
            self._progress = min((self.current_epoch + within) / self.n_epochs, 1.0)
        elif self.trainer.max_steps > 0:
            self._progress = min(self.global_step / self.trainer.max_steps, 1.0)

    @property
    def kl_weight(self) -> torch.Tensor:
        """Weight of the KL terms at this point of the run."""
        if self.n_epochs_kl_warmup is not None or self.n_steps_kl_warmup is not None:
            return super().kl_weight
        share = min(self._progress / self._warmup_fraction, 1.0) if self._warmup_fraction > 0 else 1.0
        weight = self.min_kl_weight + share * (self.max_kl_weight - self.min_kl_weight)
        return torch.tensor(weight, device=self.device)

    @property
    def updates_structure(self) -> bool:
        """Whether this epoch updates the parameters of ``structure_group``."""
        return self.alternate is None or self.current_epoch % sum(self.alternate) >= self.alternate[0]

    def _check_alternate(self, alternate: tuple[int, int] | None) -> tuple[int, int] | None:
        if alternate is None:
            return None
        if len(alternate) != 2 or any(int(n) != n or n < 1 for n in alternate):
            raise SetupError(f"alternate needs two positive numbers of epochs, e.g. (1, 2); found {alternate}.")
        names = [g["name"] for g in parameter_groups(self.module, self.lr)]
        if self.structure_group not in names:
            raise SetupError(
                f"alternate needs a parameter group called {self.structure_group!r}; "
                f"{type(self.module).__name__} has {', '.join(map(repr, names))}."
            )
        return int(alternate[0]), int(alternate[1])

    def on_train_epoch_start(self) -> None:
        """Set the random state of the epoch and tell the module where the run stands."""
        if self.seed is not None:
            reseed(self.seed, self.current_epoch, self.global_rank)
        self._advance(0)
        self._means = EpochMeans()
        hook = getattr(self.module, "on_epoch_start", None)
        if callable(hook):
            hook(self.current_epoch, self.n_epochs)

    # ------------------------------------------------------------------ steps

    def _loss(self, batch: Any) -> LossOutput:
        if "kl_weight" in self._loss_args:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        return output

    def _log_epoch(self, name: str, value: torch.Tensor, **kwargs: Any) -> None:
        """Log once per epoch; a copy, because reductions across processes work in place."""
        value = value.detach().clone().to(self.device)
        self.log(name, value, on_step=False, on_epoch=True, sync_dist=self.use_sync_dist, **kwargs)

    def _record(self, output: LossOutput) -> None:
        self.loss_parts = {
            "loss": output.loss.detach(),
            **{k: v.detach() for part in _PARTS for k, v in getattr(output, part).items()},
            **{k: v.detach() for k, v in (output.extra_metrics or {}).items() if isinstance(v, torch.Tensor)},
        }

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Loss of one minibatch."""
        self._advance(batch_idx)
        output = self._loss(batch)
        self._record(output)
        self._log_epoch("train_loss", output.loss, prog_bar=True, batch_size=output.n_obs_minibatch)
        if "kl_weight" in self._loss_args:
            self._means.add("kl_weight", self.loss_kwargs["kl_weight"], output.n_obs_minibatch)
        self.compute_and_log_metrics(output, self.train_metrics, "train")
        return output.loss

    def on_validation_epoch_start(self) -> None:
        """Evaluate the constraint once; on a large graph it costs more than a minibatch."""
        self._validation_means = EpochMeans()
        if callable(getattr(self.module, "constraint", None)):
            self._score_term = self.score_constraint_weight * self.module.constraint().detach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Losses of one minibatch of validation cells."""
        output = self._loss(batch)
        self._validation_means.add("validation_loss", output.loss, output.n_obs_minibatch)
        self.compute_and_log_metrics(output, self.val_metrics, "validation")

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation cells and the score that early stopping monitors."""
        means = self._validation_means.pop()
        means["score_validation"] = means["elbo_validation"] + self._score_term
        for name, value in means.items():
            self._log_epoch(name, value)

    def compute_and_log_metrics(self, loss_output: LossOutput, metrics: dict[str, Any], mode: str) -> None:
        """Add the negative ELBO, its parts and each scalar extra metric to the means of the epoch.

        The base class logs extra metrics as inference tensors, which cannot be reduced across processes.
        """
        means, n = (self._means if mode == "train" else self._validation_means), loss_output.n_obs_minibatch
        local = loss_output.reconstruction_loss_sum + loss_output.kl_local_sum
        n_total = (self.n_obs_training if mode == "train" else self.n_obs_validation) or 1
        means.add(f"elbo_{mode}", local / n + loss_output.kl_global_sum / n_total, n)
        means.add(f"reconstruction_loss_{mode}", loss_output.reconstruction_loss_sum / n, n)
        means.add(f"kl_local_{mode}", loss_output.kl_local_sum / n, n)
        means.add(f"kl_global_{mode}", loss_output.kl_global_sum)
        for part in _PARTS:
            named = getattr(loss_output, part)
            if len(named) > 1:  # a single one already stands under the name of the sum
                for name, value in named.items():
                    means.add(f"{name}_{mode}", value.mean(), n)
        for name, value in (loss_output.extra_metrics or {}).items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                means.add(f"{name}_{mode}", value, n)

    # ------------------------------------------------------------------ updates

    def configure_optimizers(self) -> dict[str, Any]:
        """One optimizer over all parameter groups, and the scheduler of the base class if it is wanted."""
        groups = parameter_groups(self.module, self.lr)
        if self.optimizer_name != "Custom" and all(p.device.type == "cpu" for g in groups for p in g["params"]):
            for group in groups:
                group.setdefault("fused", True)  # one pass over large graphs instead of eight
        optimizer = self.get_optimizer_creator()(groups)
        config: dict[str, Any] = {"optimizer": optimizer}
        if self.reduce_lr_on_plateau:
            config["lr_scheduler"] = {"scheduler": self._plateau(optimizer), "monitor": self.lr_scheduler_metric}
        return config

    def _plateau(self, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(
            optimizer,
            patience=self.lr_patience,
            factor=self.lr_factor,
            threshold=self.lr_threshold,
            min_lr=self.lr_min,
            threshold_mode="abs",
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of the groups that rest in this epoch."""
        if self.alternate is None:
            return
        # requires_grad stays as it is: distributed training fixed its set of parameters when it started
        for group in optimizer.param_groups:
            if (group.get("name") == self.structure_group) != self.updates_structure:
                for p in group["params"]:
                    p.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the plan's own value, or by the trainer's where the plan has none."""
        if self.gradient_clip_val is not None:
            gradient_clip_val, gradient_clip_algorithm = self.gradient_clip_val, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then let the module apply its proximal operator."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._proximal(optimizer)

    def _proximal(self, optimizer: Any) -> None:
        hook = getattr(self.module, "proximal_step", None)
        if not callable(hook) or not self.updates_structure:
            return
        group = group_by_name(optimizer, self.structure_group) or optimizer.param_groups[0]
        with torch.no_grad():
            hook(group["lr"])

    # ------------------------------------------------------------------ constraint

    def on_train_epoch_end(self) -> None:
        """Log the means and the constraint and, every ``lagrangian_every`` epochs, update its multiplier."""
        for name, value in self._means.pop().items():
            self._log_epoch(name, value)
        if not callable(getattr(self.module, "constraint", None)):
            return
        with torch.no_grad():
            h = self.module.constraint()
        self._log_epoch("constraint", h)
        if not has_lagrangian(self.module):
            return
        state = read_lagrangian(self.module)
        every = self.lagrangian_every or max(1, (self.n_epochs or 20) // 20)
        if (self.current_epoch + 1) % every == 0 and self.updates_structure and float(h) > self.lagrangian_tolerance:
            state = self._update_lagrangian(state, float(h))
        self._log_epoch("multiplier", torch.tensor(state.multiplier, device=self.device))
        self._log_epoch("penalty", torch.tensor(state.penalty, device=self.device))

    def _update_lagrangian(self, state: LagrangianState, h: float) -> LagrangianState:
        if not math.isfinite(h):
            raise NumericalError(f"The constraint is not finite ({h}) at the end of epoch {self.current_epoch}.")
        new = lagrangian_update(state, h, **self.lagrangian_options)
        write_lagrangian(self.module, new)
        if new.penalty > state.penalty:
            self._forget_moments()
        return new

    def _forget_moments(self) -> None:
        # the gradient of the graph just grew by an order: moments of the old scale would overshoot
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            group = group_by_name(optimizer, self.structure_group)
            for p in group["params"] if group else ():
                optimizer.state.pop(p, None)


_PARTS = ("reconstruction_loss", "kl_local", "kl_global")


def _check_range(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high:
        raise SetupError(f"{name} must be in {'(' if open_low else '['}{low}, {high}]; found {value}.")
