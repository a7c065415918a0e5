"""Files from the network, cached, with errors that say what to do offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sccausal._errors import FileFormatError, SCCausalError


class DownloadError(SCCausalError, OSError):
    """A public data set could not be downloaded.

    Examples
    --------
    >>> import sccausal as scc
    >>> issubclass(scc.datasets.DownloadError, OSError)
    True
    """


def cache_dir() -> Path:
    """Folder of downloaded files; the environment variable SCCAUSAL_DATA_DIR moves it."""
    import os

    import pooch

    chosen = os.environ.get("SCCAUSAL_DATA_DIR")
    return Path(chosen) if chosen else Path(pooch.os_cache("sccausal"))


@contextmanager
def explain_download(name: str, source: str) -> Iterator[None]:
    """Turn whatever a failing download raises into a :class:`DownloadError` with the way out."""
    from requests.exceptions import RequestException

    try:
        yield
    except (RequestException, OSError) as error:
        if isinstance(error, SCCausalError):
            raise
        raise DownloadError(
            f"{name} could not be downloaded from {source} ({type(error).__name__}: {error}). "
            f"Without a connection, fetch the file on another machine and give its place: {name}(path=...). "
            f"Downloads are kept in {cache_dir()}."
        ) from error


def existing(path: str | Path, name: str) -> Path:
    """The path, or an error that names it.

    Raises
    ------
    FileFormatError
        If nothing stands there.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileFormatError(f"{name}: there is no file or folder {path}.")
    return path
