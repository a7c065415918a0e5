"""Augmented Lagrangian of one scalar constraint: a pure update and the buffers that carry its state."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from sccausal._errors import NumericalError, SetupError

_BUFFERS = ("lagrangian_multiplier", "lagrangian_penalty", "lagrangian_previous")


class LagrangianState(NamedTuple):
    """State of the outer loop that drives a constraint ``h(A) >= 0`` to zero.

    Parameters
    ----------
    multiplier
        Estimate of the Lagrange multiplier, in units of loss per unit of constraint.
    penalty
        Weight of the quadratic term.
    previous
        Value of the constraint at the last update; infinity before the first.

    Examples
    --------
    >>> from sccausal.train import LagrangianState
    >>> LagrangianState().penalty
    1.0
    """

    multiplier: float = 0.0
    penalty: float = 1.0
    previous: float = math.inf


def lagrangian_update(
    state: LagrangianState,
    h: float,
    *,
    factor: float = 10.0,
    shrink: float = 0.25,
    max_penalty: float = 1e7,
) -> LagrangianState:
    """One outer step: raise the multiplier, and the penalty where the constraint did not shrink enough.

    The multiplier moves by ``penalty * h``; the penalty is multiplied by ``factor`` if ``h`` is above
    ``shrink`` times its value at the last update :cite:p:`Zheng2018`.

    Parameters
    ----------
    state
        State before the step.
    h
        Current value of the constraint.
    factor
        Growth of the penalty, at least 1.
    shrink
        Share of the previous constraint that has to be undercut.
    max_penalty
        Upper bound of the penalty. Beyond 1e8 the quadratic term loses all digits in single precision.

    Raises
    ------
    SetupError
        ``factor`` is below 1, or ``shrink`` is not in (0, 1].
    NumericalError
        ``h`` is not finite.

    Examples
    --------
    >>> from sccausal.train import LagrangianState, lagrangian_update
    >>> state = lagrangian_update(LagrangianState(penalty=2.0, previous=0.5), h=0.4)  # shrank too little
    >>> state.multiplier, state.penalty
    (0.8, 20.0)
    """
    if factor < 1.0 or not 0.0 < shrink <= 1.0:
        raise SetupError(f"factor must be >= 1 and shrink in (0, 1]; found factor={factor}, shrink={shrink}.")
    h = float(h)
    if not math.isfinite(h):
        raise NumericalError(f"The constraint is not finite ({h}); the multiplier cannot be updated.")
    grow = h > shrink * state.previous
    # a penalty that starts above the cap is the user's wish and is left alone
    cap = max(max_penalty, state.penalty)
    return LagrangianState(
        multiplier=state.multiplier + state.penalty * h,
        penalty=min(state.penalty * factor, cap) if grow else state.penalty,
        previous=h,
    )


def register_lagrangian_buffers(module: nn.Module, *, multiplier: float = 0.0, penalty: float = 1.0) -> None:
    """Give ``module`` the three buffers that hold a :class:`LagrangianState`.

    As buffers they survive saving, checkpoints, further calls of ``train`` and are equal on all processes.

    Parameters
    ----------
    module
        Module with a method ``constraint() -> 0-d tensor``.
    multiplier, penalty
        Values to start from.

    Examples
    --------
    >>> import torch
    >>> from sccausal.train import register_lagrangian_buffers
    >>> module = torch.nn.Linear(2, 2)
    >>> register_lagrangian_buffers(module)
    >>> len(list(module.buffers()))
    3
    """
    for name, value in zip(_BUFFERS, (multiplier, penalty, math.inf), strict=True):
        module.register_buffer(name, torch.tensor(float(value)))


def has_lagrangian(module: nn.Module) -> bool:
    """Whether ``module`` has a constraint and the buffers to drive it."""
    return callable(getattr(module, "constraint", None)) and all(hasattr(module, name) for name in _BUFFERS)


def read_lagrangian(module: nn.Module) -> LagrangianState:
    """State held by the buffers of ``module``."""
    return LagrangianState(*(float(getattr(module, name)) for name in _BUFFERS))


def write_lagrangian(module: nn.Module, state: LagrangianState) -> None:
    """Write ``state`` into the buffers of ``module``, in place."""
    for name, value in zip(_BUFFERS, state, strict=True):
        getattr(module, name).fill_(value)


def augmented_lagrangian(module: nn.Module, h: torch.Tensor) -> torch.Tensor:
    """The term ``multiplier * h + penalty / 2 * h ** 2`` that a module adds to its loss.

    Parameters
    ----------
    module
        Module whose buffers hold the state.
    h
        0-d tensor, the constraint, differentiable.

    Examples
    --------
    >>> import torch
    >>> from sccausal.train import augmented_lagrangian, register_lagrangian_buffers
    >>> module = torch.nn.Linear(2, 2)
    >>> register_lagrangian_buffers(module, multiplier=1.0, penalty=2.0)
    >>> augmented_lagrangian(module, torch.tensor(3.0)).item()  # 1 * 3 + 2 / 2 * 3 ** 2
    12.0
    """
    return module.lagrangian_multiplier * h + 0.5 * module.lagrangian_penalty * h.square()
