"""Something to do as soon as another package is imported, so that importing ours need not import it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Call ``act`` once the package ``name`` is imported; at once if it is already.

    Parameters
    ----------
    name
        A top-level package.
    act
        Called without arguments after the package's module was executed.
    """
    if name in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Waiting(name, act))


class _Waiting(MetaPathFinder):
    """Finder that steps aside at the first import of one package and lets the usual ones find it."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute, act = spec.loader.exec_module, self._act

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            act()

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def register_accessor() -> None:
    """Add ``adata.causal``: importing the module of the namespace registers it."""
    # not `from ... import`: that module may itself be what imports anndata, and then stands half executed
    import_module("sccausal._accessor")
