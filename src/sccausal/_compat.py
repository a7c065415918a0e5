"""Everything the package takes from scvi-tools beyond its public surface, in one place.

Each name here may move with a release of scvi-tools; nothing else in the package imports a private module of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import rich.pretty  # noqa: F401  # scvi-tools' view_anndata_setup uses it without importing it
from scvi.data import AnnDataManager
from scvi.data._constants import (
    _FIELD_REGISTRIES_KEY,
    _MODEL_NAME_KEY,
    _SCVI_UUID_KEY,
    _SETUP_ARGS_KEY,
    _SETUP_METHOD_NAME,
    _STATE_REGISTRY_KEY,
)
from scvi.model._utils import parse_device_args
from scvi.model.base import _save_load
from scvi.train._logger import SimpleLogger as SimpleLogger  # the logger behind model.history

FIELD_REGISTRIES: str = _FIELD_REGISTRIES_KEY
MODEL_NAME: str = _MODEL_NAME_KEY
SCVI_UUID: str = _SCVI_UUID_KEY
SETUP_ARGS: str = _SETUP_ARGS_KEY
SETUP_METHOD: str = _SETUP_METHOD_NAME
STATE_REGISTRY: str = _STATE_REGISTRY_KEY

# modules that hold their own reference to scvi-tools' reader of saved models
_READERS = (
    "scvi.model.base._save_load",
    "scvi.model.base._base_model",
    "scvi.model.base._archesmixin",
    "scvi.train._callbacks",
    "scvi.hub._metadata",
)

Reader = Callable[..., tuple[dict[str, Any], Any, dict[str, Any], Any]]


def torch_device(accelerator: str, device: int | str) -> Any:
    """Device object for Lightning's ``accelerator`` and one ``device``."""
    parts = parse_device_args(
        accelerator=accelerator, devices=device, return_device="torch", validate_single_device=True
    )
    return parts[2]


def state_registry(registry: dict[str, Any], key: str) -> dict[str, Any]:
    """What a field wrote into the registry; empty if the model does not use it."""
    field = registry[FIELD_REGISTRIES].get(key) or {}
    return dict(field.get(STATE_REGISTRY) or {})


def setup_args(registry: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the ``setup_anndata`` call behind a registry."""
    return dict(registry.get(SETUP_ARGS) or {})


def forget_manager(model: Any, adata: Any) -> None:
    """Drop scvi-tools' notes about a temporary AnnData, which would otherwise stay in memory with it."""
    uuid = adata.uns.get(SCVI_UUID)
    type(model)._setup_adata_manager_store.pop(uuid, None)
    type(model)._per_instance_manager_store.get(model.id, {}).pop(uuid, None)


def teach_scvi_to_read(is_ours: Callable[[str, str], bool], read: Reader) -> None:
    """Let scvi-tools' own readers (``SaveCheckpoint``, hub, ``load_registry``) open the models of this package.

    They look for ``model.pt`` through one private function. It is wrapped so that folders for which ``is_ours`` is
    true go to ``read``; all others go where they went before.
    """
    original = _save_load._load_saved_files
    if getattr(original, "_sccausal", False):
        return

    def load_saved_files(
        dir_path: str,
        load_adata: bool,
        prefix: str | None = None,
        map_location: Any = None,
        backup_url: str | None = None,
    ) -> tuple[dict[str, Any], Any, dict[str, Any], Any]:
        if backup_url is None and is_ours(str(dir_path), prefix or ""):
            return read(str(dir_path), load_adata, prefix=prefix, map_location=map_location)
        return original(dir_path, load_adata, prefix=prefix, map_location=map_location, backup_url=backup_url)

    load_saved_files._sccausal = True  # type: ignore[attr-defined]
    for name in _READERS:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "_load_saved_files"):
            module._load_saved_files = load_saved_files  # type: ignore[attr-defined]


def summary_stats(registry: dict[str, Any]) -> dict[str, int]:
    """Counts (``n_vars``, ``n_batch``, ...) that belong to a registry."""
    return {k: int(v) for k, v in AnnDataManager._get_summary_stats_from_registry(registry).items()}
