"""Checks of keyword arguments before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sccausal._errors import SetupError, close_names

# supplied by the module's forward pass or by the plan, never by the user
_LOSS_INPUTS = {"self", "tensors", "inference_outputs", "generative_outputs", "kl_weight", "n_obs"}


def named_arguments(function: Callable) -> set[str]:
    """Names of the arguments of ``function`` that can be given by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds} - {"self"}


def takes_any_keyword(function: Callable) -> bool:
    """Whether ``function`` ends in ``**kwargs``."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def check_names(given: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Raise :class:`SetupError` with close names if one of ``given`` is not ``known``."""
    known = sorted(set(known))
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    hints = []
    for name in unknown:
        near = close_names(name, known)
        hints.append(f"{name!r}" + (f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""))
    raise SetupError(f"Unknown {kind}: {', '.join(hints)}. Known: {', '.join(known)}.")


def check_plan_kwargs(plan_cls: type, loss: Callable, given: Mapping[str, Any]) -> None:
    """Check arguments meant for a training plan or, passed on by it, for ``module.loss``.

    Parameters
    ----------
    plan_cls
        Class of the plan; the constructors of its bases count as well.
    loss
        ``module.loss``.
    given
        The arguments.

    Raises
    ------
    SetupError
        An argument is known to neither; close names are suggested.
    """
    if "kl_weight" in given:
        raise SetupError("kl_weight follows the warm-up; set max_kl_weight, min_kl_weight or warmup_fraction instead.")
    if takes_any_keyword(loss):
        return
    known: set[str] = set()
    for cls in plan_cls.__mro__:
        if cls.__module__.startswith(("torch", "lightning")):
            break
        if "__init__" in vars(cls):
            known |= named_arguments(cls.__init__)  # type: ignore[misc]
    known |= named_arguments(loss)
    # our plans log once per epoch, always
    check_names(given, known - _LOSS_INPUTS - {"module", "on_step", "on_epoch"}, "plan_kwargs")
