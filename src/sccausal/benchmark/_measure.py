"""Time and peak memory of a piece of work."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATM = Path("/proc/self/statm")


@contextmanager
def measured(interval: float = 0.02) -> Iterator[dict[str, float]]:
    """Seconds and peak memory of a block, in the yielded dict once the block ends.

    Parameters
    ----------
    interval
        Seconds between two looks at the resident memory.

    Yields
    ------
    Dict that gets ``seconds`` (wall clock), ``peak_memory_mb`` (highest resident memory of the process) and
    ``added_memory_mb`` (that above the start). Where the memory cannot be sampled (no ``/proc``) the peak is that of
    the process so far, and ``added_memory_mb`` how far the block raised it.
    """
    box: dict[str, float] = {}
    before = _resident()
    peak = [before]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(interval):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        yield box
    finally:
        box["seconds"] = time.perf_counter() - start
        stop.set()
        watcher.join()
        highest = max(peak[0], _resident())
        box["peak_memory_mb"] = round(highest, 1)
        box["added_memory_mb"] = round(highest - before, 1)


def _resident() -> float:
    """Resident memory of the process in MB."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
