"""Where real data sets lie, and cells from a file of the user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sccausal._errors import FileFormatError, SetupError, unknown_name
from sccausal.benchmark._task import Dataset, Keys, Request

if TYPE_CHECKING:
    from anndata import AnnData

ENVIRONMENT = "SCCAUSAL_DATA"


def data_folder(folder: str | Path | None = None) -> Path | None:
    """Folder of the real data sets: the argument, else the environment variable ``SCCAUSAL_DATA``, else ``None``.

    Parameters
    ----------
    folder
        Folder, or ``None`` to look at the environment.

    Raises
    ------
    sccausal._errors.SetupError
        The named folder does not exist.

    Examples
    --------
    >>> from sccausal.benchmark import data_folder
    >>> data_folder(".").is_dir()
    True
    """
    named = folder if folder is not None else os.environ.get(ENVIRONMENT)
    if not named:
        return None
    path = Path(named)
    if not path.is_dir():
        raise SetupError(f"The data folder {path} does not exist; name it by --folder or {ENVIRONMENT}.")
    return path


def data_file(request: Request, name: str) -> Path:
    """Path of a file or folder of the data folder.

    Raises
    ------
    sccausal._errors.SetupError
        There is no data folder, or the file is not in it.
    """
    if request.folder is None:
        raise SetupError(f"{name} is needed; name the folder that holds it by --folder or by {ENVIRONMENT}.")
    path = request.folder / name
    if not path.exists():
        raise SetupError(f"{name} is not in the data folder {request.folder}.")
    return path


def available(dataset: Dataset, folder: Path | None) -> bool:
    """Whether a data set can be loaded: simulators always, files if they are there."""
    return dataset.file is None or (folder is not None and (folder / dataset.file).exists())


def read_h5ad(path: Path) -> AnnData:
    """Cells of a file.

    Raises
    ------
    sccausal._errors.FileFormatError
        The file is no h5ad.
    """
    import anndata

    if not path.is_file():
        raise SetupError(f"There is no file {path}.")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{path} cannot be read as h5ad ({type(error).__name__}: {error}).") from error


def parse_keys(text: str) -> Keys:
    """``"condition_key=condition,control=ctrl"`` as :class:`Keys`; concepts are separated by ``|``.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A name is none of the keys.
    """
    known = [f for f in Keys.__dataclass_fields__ if f != "label_column"]
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise SetupError(f"--keys needs NAME=COLUMN, separated by commas; got {part!r}.")
        if name not in known:
            raise unknown_name("key", name, known, "--keys")
        found[name] = tuple(value.split("|")) if name == "concept_keys" else value
    return Keys(**found)


def file_dataset(path: Path, keys: Keys) -> Dataset:
    """A file of the user as data source; ``X`` must hold log1p(1e4) values, or counts, which are converted."""

    def load(request: Request) -> AnnData:
        adata = read_h5ad(path)
        for column in (keys.condition_key, keys.labels_key, keys.batch_key, keys.time_key, *keys.concept_keys):
            if column is not None and column not in adata.obs:
                raise unknown_name("column", column, adata.obs.columns, f"obs of {path.name}")
        return log1p_if_counts(adata)

    return Dataset(path.stem, load, keys, note=f"Cells of {path.name}.")


def log1p_if_counts(adata: AnnData) -> AnnData:
    """Cells with log1p(1e4) in ``X``; counts are kept in ``layers["counts"]``."""
    import numpy as np
    from scipy import sparse

    from sccausal.metrics import log1p_norm

    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    if not values.size or values.min() < 0 or not np.array_equal(values, np.rint(values)):
        return adata
    out = adata.copy()
    out.layers["counts"] = adata.X.copy()
    out.X = log1p_norm(adata).X
    return out
