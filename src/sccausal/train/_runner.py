"""Run a trainer and leave a usable model behind, however the run ends."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import lightning.pytorch as pl
import torch
from scvi.train import TrainRunner

from sccausal._errors import NumericalError, SetupError
from sccausal.train._nan_guard import NanGuard

logger = logging.getLogger(__name__)


class CausalTrainRunner(TrainRunner):
    """Runner of scvi-tools that hands over the model also after an interruption or a numerical failure.

    Raises
    ------
    KeyboardInterrupt
        The user interrupted the run; the model keeps the weights it had.
    NumericalError
        From :class:`~sccausal.train.NanGuard`; the model has the last good weights.
    SetupError
        Distributed training met parameters without gradient under a strategy that does not look for them.

    Examples
    --------
    >>> from sccausal.models import CausalModel
    >>> from sccausal.train import CausalTrainRunner
    >>> CausalModel._train_runner_cls is CausalTrainRunner  # train() makes and runs it
    True
    """

    def _run_training_core(self) -> None:
        # Lightning switches SIGINT off for good when it is interrupted, and then leaves the interpreter
        main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if main_thread else None
        try:
            self.trainer.fit(self.training_plan, self.data_splitter, ckpt_path=self.ckpt_path)
        except NumericalError:
            self._hand_over(finished=False)
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning turns an interruption into SystemExit
            if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
            self._hand_over(finished=False)
            raise KeyboardInterrupt(
                f"Training was interrupted in epoch {self.trainer.current_epoch}; the model keeps the weights of "
                "that moment and can be used."
            ) from error
        except ValueError as error:
            guard = next((c for c in self.trainer.callbacks if isinstance(c, NanGuard)), None)
            if guard is None or guard.error is None:
                self._update_history()
                raise
            self._hand_over(finished=False)
            raise guard.error from error
        except RuntimeError as error:
            self._update_history()
            if "find_unused_parameters" in str(error):
                raise SetupError(
                    "Some parameters got no gradient, which the strategy 'ddp' does not allow. Pass "
                    "strategy='ddp_find_unused_parameters_true'."
                ) from error
            raise
        except BaseException:
            self._update_history()
            raise
        self._hand_over(finished=True)

    def _hand_over(self, finished: bool) -> None:
        model, data = self.model, self.data_splitter
        before = set(model.history_ or ())
        self._update_history()
        if self.trainer.is_global_zero and isinstance(model.history_, dict):
            # a later run may log what the first did not, such as validation
            new = getattr(self.trainer.logger, "history", None) or {}
            model.history_ |= {k: v.copy() for k, v in new.items() if k not in before}
        model.train_indices = getattr(data, "train_idx", None)
        model.validation_indices = getattr(data, "val_idx", None)
        model.test_indices = getattr(data, "test_idx", None)
        model.module.eval()
        model.is_trained_ = model.is_trained_ or finished or self.trainer.current_epoch > 0
        model.to_device(self.device)
        model.trainer = self.trainer
        if not finished and not _is_finite(model.module):
            logger.warning("The weights of the interrupted model are not all finite.")


def _is_finite(module: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in module.parameters() if p.is_floating_point())


def is_distributed(strategy: Any) -> bool:
    """Whether ``strategy``, as given to a trainer, starts several processes by DDP."""
    if isinstance(strategy, str):
        return "ddp" in strategy
    return isinstance(strategy, pl.strategies.DDPStrategy)
