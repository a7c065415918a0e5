"""Many equal tasks through joblib, in order, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal


def run_tasks(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    *,
    n_jobs: int | None = None,
    prefer: Literal["threads", "processes"] = "processes",
    progress: bool = False,
    description: str = "",
) -> Iterator[Any]:
    """Results of ``function(*task)`` in the order of ``tasks``, which does not depend on ``n_jobs``.

    Parameters
    ----------
    function, tasks
        What to call, and the arguments of each call.
    n_jobs
        As in joblib: ``None`` is one, or what a surrounding ``joblib.parallel_config`` says; -1 all cores.
    prefer
        ``"threads"`` for work inside numpy, ``"processes"`` for work that holds the interpreter.
    progress
        Whether a bar is shown.
    description
        Text before the bar.
    """
    from joblib import Parallel, delayed, effective_n_jobs
    from rich.progress import track
    from threadpoolctl import threadpool_limits

    # several workers with several BLAS threads each are slower than either alone
    crowded = prefer == "threads" and effective_n_jobs(n_jobs) > 1
    with threadpool_limits(1, user_api="blas") if crowded else nullcontext():
        results = Parallel(n_jobs=n_jobs, prefer=prefer, return_as="generator")(delayed(function)(*t) for t in tasks)
        yield from track(results, description, total=len(tasks), transient=True) if progress else results
