"""Tasks that models and simple rules are judged by, a runner that survives a kill, and a report.

A task is data, what is held out, metrics, and reference points. See :doc:`/user_guide/benchmark`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sccausal.benchmark._task import TASK_NAMES, Case, Dataset, Keys, Problem, Request, Task, get_task

if TYPE_CHECKING:
    from sccausal.benchmark._folder import data_folder
    from sccausal.benchmark._methods import Method, methods, register
    from sccausal.benchmark._report import write_report
    from sccausal.benchmark._results import load_results
    from sccausal.benchmark._runner import export_cases, run

_LAZY = {
    "Method": "_methods",
    "data_folder": "_folder",
    "export_cases": "_runner",
    "load_results": "_results",
    "methods": "_methods",
    "register": "_methods",
    "run": "_runner",
    "write_report": "_report",
}

__all__ = [
    "TASK_NAMES",
    "Case",
    "Dataset",
    "Keys",
    "Method",
    "Problem",
    "Request",
    "Task",
    "data_folder",
    "export_cases",
    "get_task",
    "load_results",
    "methods",
    "register",
    "run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"sccausal.benchmark.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sccausal.benchmark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
