"""Parameter groups of an optimizer, named so that they can be alternated and followed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sccausal._errors import SetupError

DEFAULT_GROUP = "network"


def parameter_groups(module: nn.Module, lr: float, exclude: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
    """Groups of all trainable parameters of ``module``.

    A module may offer ``parameter_groups(lr) -> list of dict``, each with ``params``, a ``name`` and any options of
    the optimizer (``lr``, ``weight_decay``, ...). What it does not list forms the group ``"network"``.

    Parameters
    ----------
    module
        Module to train.
    lr
        Learning rate of the plan.
    exclude
        Parameters that belong to another optimizer.

    Raises
    ------
    SetupError
        A parameter stands in two groups, or two groups share a name.

    Examples
    --------
    >>> import torch
    >>> from sccausal.train import parameter_groups
    >>> [(group["name"], len(group["params"])) for group in parameter_groups(torch.nn.Linear(2, 2), lr=1e-3)]
    [('network', 2)]
    """
    hook = getattr(module, "parameter_groups", None)
    listed = [dict(group) for group in hook(lr)] if callable(hook) else []
    taken = {id(p) for p in exclude}
    groups: list[dict[str, Any]] = []
    for i, group in enumerate(listed):
        group["params"] = [p for p in _as_list(group["params"]) if p.requires_grad]
        group.setdefault("name", f"group_{i}")
        ids = {id(p) for p in group["params"]}
        if ids & taken:
            raise SetupError(f"A parameter of the group {group['name']!r} is already in another group or optimizer.")
        taken |= ids
        groups.append(group)
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    if rest:
        groups.insert(0, {"params": rest, "name": DEFAULT_GROUP})
    groups = [g for g in groups if g["params"]]
    names = [g["name"] for g in groups]
    if len(set(names)) < len(names):
        raise SetupError(f"Two parameter groups share a name: {names}.")
    return groups


def _as_list(params: Any) -> list[nn.Parameter]:
    return [params] if isinstance(params, torch.Tensor) else list(params)


def group_by_name(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any] | None:
    """The group of ``optimizer`` called ``name``, if there is one."""
    return next((g for g in optimizer.param_groups if g.get("name") == name), None)
