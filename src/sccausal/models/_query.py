"""Query data: new batches get their own rows, and nothing of the reference moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sccausal._compat import summary_stats
from sccausal._errors import SetupError
from sccausal.models._cells import replay_setup

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.models._base import CausalModel
    from sccausal.models._io import SavedModel

# belong to the training run of the reference
_RUN = ("train_indices_", "validation_indices_", "test_indices_", "history_")


def query_model(cls: type[CausalModel], saved: SavedModel, adata: AnnData, unfrozen: bool) -> CausalModel:
    """Model of the reference on query cells, its tensors grown by rows for the new categories."""
    replay_setup(cls, adata, saved.registry, extend_categories=True, allow_missing_labels=True)
    arguments = {**saved.init_params["non_kwargs"]}
    for extra in saved.init_params["kwargs"].values():
        arguments.update(extra)
    # sizes that a default takes from the number of batches stay those of the reference
    arguments.update(saved.attributes.get("query_arguments_", {}))
    model = cls(adata, **arguments)
    for name, value in saved.attributes.items():
        if name not in _RUN:
            setattr(model, name, value)
    reference = summary_stats(saved.registry)
    current = summary_stats(model.registry_)
    # growth of a category -> how many there were
    sizes = {current[k] - n: n for k, n in reference.items() if current.get(k, 0) > n}
    state, old_shapes = _grown_state(model.module, saved.state, sizes)
    model.module.on_load(model)
    model.module.load_state_dict(state)
    model.query_ = {"old_shapes": old_shapes, "unfrozen": bool(unfrozen)}
    model.is_trained_ = True
    return model


def _grown_state(
    module: nn.Module, old: dict[str, torch.Tensor], sizes: dict[int, int]
) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """State of the reference in the shapes of ``module``, and the old shape of every tensor that grew."""
    new = module.state_dict()
    fixed = graph_parameters(module)
    state: dict[str, torch.Tensor] = {}
    grown: dict[str, list[int]] = {}
    for name, value in old.items():
        if name not in new:
            raise SetupError(f"The reference holds {name!r}, which this model does not have.")
        if new[name].shape != value.shape:
            if name in fixed or new[name].ndim != value.ndim:
                raise SetupError(f"{name!r} would change its shape with the query data, which it must not.")
            grown[name] = list(value.shape)
        state[name] = _pad(value, new[name].detach().cpu(), sizes)
    return state, grown


def _pad(old: torch.Tensor, new: torch.Tensor, sizes: dict[int, int]) -> torch.Tensor:
    padded = old.clone()
    for dim in range(new.ndim):
        more = new.size(dim) - padded.size(dim)
        if more == 0:
            continue
        if more < 0:
            raise SetupError("The query set-up has fewer categories than the reference.")
        if padded.is_floating_point():
            # categories stand last where a dimension holds other inputs as well
            known = min(sizes.get(more, padded.size(dim)), padded.size(dim))
            mean = padded.narrow(dim, padded.size(dim) - known, known).mean(dim, keepdim=True)
            extra = mean.repeat_interleave(more, dim)
        else:
            rest = [slice(0, padded.size(d)) for d in range(new.ndim)]
            rest[dim] = slice(new.size(dim) - more, None)
            extra = new[tuple(rest)]
        padded = torch.cat([padded, extra], dim)
    return padded


def graph_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters of causal graphs: those of ``SEMGraph`` blocks and of ``module.graph_parameters``."""
    from sccausal.nn.graph import SEMGraph

    names = set(getattr(module, "graph_parameters", ()))
    for prefix, block in module.named_modules():
        if isinstance(block, SEMGraph):
            names.update(f"{prefix}.{name}" if prefix else name for name, _ in block.named_parameters())
    return names


@contextmanager
def training_rows_only(model: Any) -> Iterator[None]:
    """While a query model trains, let only its new rows move; a model that is none trains as usual.

    Raises
    ------
    sccausal._errors.SetupError
        The query brought nothing new, so there is nothing to train.
    """
    query = getattr(model, "query_", None)
    if not query:
        yield
        return
    module = model.module
    snapshot = {k: v.detach().clone() for k, v in module.state_dict().items()}
    free = _free_parameters(module, query)
    if not any(free.values()):
        raise SetupError(
            "All batches of the query are known to the reference, so there is nothing to train. "
            "Use the model as it is, or load_query_data(..., unfrozen=True)."
        )
    handles = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(free[name])
        if free[name] and name in query["old_shapes"] and not query["unfrozen"]:
            mask = torch.ones_like(parameter)
            mask[_block(query["old_shapes"][name])] = 0
            handles.append(parameter.register_hook(lambda g, mask=mask: g * mask.to(g.device)))
    started = False

    def keep(module: nn.Module, _: Any) -> None:
        # a model may start its parameters from the data; later, weight decay moves rows that get no gradient, and a
        # proximal step the graph
        nonlocal started
        _restore(module, query, snapshot, free, everything=not started)
        started = True

    handles.append(module.register_forward_pre_hook(keep))
    # the history of the query starts afresh, but the model stays usable if training fails
    model.is_trained_ = model.history_ is not None
    try:
        yield
    finally:
        model.is_trained_ = True
        for handle in handles:
            handle.remove()
        _restore(module, query, snapshot, free, everything=True)


def _free_parameters(module: nn.Module, query: dict[str, Any]) -> dict[str, bool]:
    fixed = graph_parameters(module)
    return {
        name: name not in fixed and (query["unfrozen"] or name in query["old_shapes"])
        for name, _ in module.named_parameters()
    }


def _block(old_shape: list[int]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in old_shape)


@torch.no_grad()
def _restore(
    module: nn.Module, query: dict[str, Any], snapshot: dict[str, torch.Tensor], free: dict[str, bool], everything: bool
) -> None:
    """Put back what must not move: what an optimizer could have moved, or ``everything``, buffers included."""
    fixed = graph_parameters(module)
    for name, value in module.state_dict().items():
        if name not in snapshot or snapshot[name].shape != value.shape:
            continue
        if free.get(name):
            if name in query["old_shapes"] and not query["unfrozen"]:
                block = _block(query["old_shapes"][name])
                value[block] = snapshot[name][block].to(value.device)
        elif name in fixed or (everything and not (query["unfrozen"] and name not in free)):
            value.copy_(snapshot[name].to(value.device))
