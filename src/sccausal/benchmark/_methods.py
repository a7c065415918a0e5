"""Which methods run in which task: an adapter is one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sccausal._errors import SetupError, unknown_name
from sccausal.benchmark._task import TASK_NAMES, Case, Problem, get_task

Kind = Literal["model", "baseline", "reference", "ceiling", "negative"]
KINDS: tuple[Kind, ...] = ("model", "baseline", "reference", "ceiling", "negative")


@dataclass(frozen=True)
class Method:
    """A named function that answers problems of a task.

    Parameters
    ----------
    name
        Name in results.
    kind
        ``"model"``; ``"baseline"``: a simple rule that models are tested against; ``"reference"``: a line to read
        scores by, not a rival; ``"ceiling"``: sees the truth; ``"negative"``: must score badly (shuffled labels).
    run
        ``Problem -> output``; for ceilings and references that need the truth, ``Case -> output`` or already scored
        rows (a DataFrame with ``group, metric, value``).
    sees_truth
        Whether ``run`` takes the case with its truth.
    applies
        Whether the method can answer a problem; default always.

    Examples
    --------
    >>> from sccausal.benchmark import methods
    >>> methods("doubles")["additive"].kind
    'baseline'
    """

    name: str
    kind: Kind
    run: Callable[[Any], Any]
    sees_truth: bool = False
    applies: Callable[[Problem], bool] | None = None

    def answer(self, case: Case) -> Any:
        """Output for a case."""
        return self.run(case if self.sees_truth else case.problem)

    def can(self, problem: Problem) -> bool:
        """Whether the problem is one for this method."""
        return self.applies is None or self.applies(problem)


_REGISTRY: dict[str, dict[str, Method]] = {name: {} for name in TASK_NAMES}


def register(
    task: str | Iterable[str],
    name: str,
    *,
    kind: Kind = "model",
    sees_truth: bool = False,
    applies: Callable[[Problem], bool] | None = None,
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Add a method to one or several tasks; a decorator of its adapter.

    Parameters
    ----------
    task
        Name of the task, or several.
    name
        Name of the method in results. A later method of the same name replaces the earlier one.
    kind
        See :class:`Method`.
    sees_truth
        Whether the function takes the :class:`Case` with its truth instead of the :class:`Problem`.
    applies
        Whether the method can answer a problem.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A task does not exist.
    sccausal._errors.SetupError
        The kind is not known, or a model asks for the truth.

    Examples
    --------
    >>> from sccausal.benchmark import register
    >>> @register("doubles", "MyModel")  # doctest: +SKIP
    ... def my_model(problem):
    ...     model = fit(problem.train, seed=problem.seed, **problem.keys.setup())
    ...     return model.predict(problem.source, problem.interventions)
    """
    names = [task] if isinstance(task, str) else list(task)
    if kind not in KINDS:
        raise SetupError(f"Unknown kind {kind!r}; use one of {', '.join(KINDS)}.")
    if sees_truth and kind in ("model", "baseline"):
        raise SetupError(f"A {kind} must not see the truth.")
    for t in names:
        if t not in _REGISTRY:
            raise unknown_name("task", t, TASK_NAMES, "sccausal.benchmark")

    def add(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        for t in names:
            _REGISTRY[t][name] = Method(name, kind, function, sees_truth, applies)
        return function

    return add


def methods(task: str) -> dict[str, Method]:
    """Methods of a task by name, in the order of registration.

    Parameters
    ----------
    task
        Name of the task.

    Examples
    --------
    >>> from sccausal.benchmark import methods
    >>> "additive" in methods("doubles")
    True
    """
    get_task(task)  # its module registers the rules and models that stand
    return dict(_REGISTRY[task])


def choose(task: str, models: Iterable[str] | None) -> list[Method]:
    """All rules and reference lines of a task, and the named models (all for ``None``).

    Raises
    ------
    sccausal._errors.UnknownNameError
        A model does not run in the task.
    """
    known = methods(task)
    if models is None:
        return list(known.values())
    lower = {name.lower(): name for name in known}
    named = []
    for name in models:
        if name.lower() not in lower:
            raise unknown_name("model", name, known, f"the task {task!r}")
        named.append(lower[name.lower()])
    return [m for m in known.values() if m.kind != "model" or m.name in named]
