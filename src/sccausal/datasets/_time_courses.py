"""Published time courses of perturbed stem cells, read from files the user has, in one schema."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, SetupError, unknown_name
from sccausal.datasets._download import DownloadError, existing
from sccausal.datasets._public import _first_column, _need_control, _read, _with_counts, intervention_labels

if TYPE_CHECKING:
    from anndata import AnnData

    from sccausal.data import Split

_TIMES = ("time", "day", "days", "timepoint", "time_point", "stage")
_TARGETS = ("intervention", "target_gene", "gene_target", "perturbation", "gene", "ko_gene")
_CLONES = ("clone", "clone_id", "clone_barcode", "clonal_barcode")


def hipsc_timecourse(path: str | Path | None = None) -> AnnData:
    """Human pluripotent stem cells under 23 knock-outs at four times :cite:p:`Ishikawa2023`.

    Parameters
    ----------
    path
        A local h5ad file with counts, an ``obs`` column of targets (one of "intervention", "target_gene",
        "gene_target", "perturbation", "gene", "ko_gene") and one of times ("time", "day", "timepoint", ...; "D3" and
        "day 3" are read as 3); or a folder with the tables that RENGE works on: ``E.csv`` (cells x genes,
        log-normalised) and ``X.csv`` (the same cells x the knocked-out genes, one-hot, and the time in the last
        column).

    Returns
    -------
    AnnData with ``obs["intervention"]`` ("control" first) and ``obs["time"]`` (days). Counts are in
    ``layers["counts"]``; the tables of RENGE hold none, their log-normalised values are in ``X``.

    Raises
    ------
    DownloadError
        No path is given: the archive offers no file that could be checked by a hash.
    FileFormatError
        The file cannot be read or lacks what the schema needs.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.hipsc_timecourse("hipsc.h5ad")  # doctest: +SKIP
    >>> adata.obs.groupby("time")["intervention"].nunique()  # doctest: +SKIP
    """
    name = "hipsc_timecourse"
    place = _given(path, name, "the archive entry named by Ishikawa et al. (2023)")
    if place.is_dir():
        return _from_renge(place, name)
    adata = _read(place, name)
    _schema(adata, name)
    return _with_counts(adata, name)


def cardiac_timecourse(
    path: str | Path | None = None,
    *,
    control: str = "SCR",
    times: Sequence[float] | None = (0, 2, 6, 12),
    min_cells: int = 20,
) -> AnnData:
    """Cardiac differentiation of stem cells under inducible knock-downs, with clones (E-MTAB-14065).

    Parameters
    ----------
    path
        A local h5ad file with counts and annotation, or a folder with a 10x matrix (``matrix.mtx[.gz]``,
        ``features.tsv[.gz]``, ``barcodes.tsv[.gz]``) and ``metadata.csv`` whose first column is the barcode. The
        annotation needs a target, a time ("D0" is read as 0) and a clone ("clone", "clone_id", "clone_barcode").
    control
        Label of the control; other controls (B2M) are left in as targets unless they are removed.
    times
        Times to keep; ``None`` for all.
    min_cells
        Strata of time, target and clone with fewer cells are dropped, as in the paper.

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs``: intervention ("control" first), time (days), clone.

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`hipsc_timecourse`; also if no cell is left.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.cardiac_timecourse("E-MTAB-14065.h5ad")  # doctest: +SKIP
    >>> split = scc.datasets.clone_split(adata)  # doctest: +SKIP
    """
    name = "cardiac_timecourse"
    place = _given(path, name, "ArrayExpress, accession E-MTAB-14065")
    adata = _from_tenx(place, name) if place.is_dir() else _read(place, name)
    _schema(adata, name, control)
    clone = _first_column(adata, _CLONES, name)
    adata.obs["clone"] = adata.obs[clone].astype(str).astype("category")
    keep = adata.obs["clone"].astype(str).str.lower().isin(("nan", "none", "")).to_numpy() == np.False_
    if times is not None:
        keep &= np.isin(adata.obs["time"].to_numpy(), np.asarray(times, dtype=float))
    stratum = adata.obs[["time", "intervention", "clone"]].astype(str).agg("|".join, axis=1)
    size = stratum[keep].value_counts()
    keep &= stratum.isin(size.index[size >= min_cells]).to_numpy()
    if not keep.any():
        found = sorted(set(adata.obs["time"]))
        raise FileFormatError(f"{name}: no stratum of time, target and clone has {min_cells} cells; times are {found}.")
    adata = adata[keep].copy()
    for column in ("intervention", "clone"):
        adata.obs[column] = adata.obs[column].cat.remove_unused_categories()
    _need_control(adata, "intervention", name)
    return _with_counts(adata, name)


def clone_split(
    adata: AnnData,
    clone_key: str = "clone",
    *,
    intervention_key: str = "intervention",
    test_size: float = 0.3,
    seed: int = 0,
) -> Split:
    """Hold out whole clones, so that no test cell has a sister in training.

    Parameters
    ----------
    adata
        Cells with clones and interventions.
    clone_key, intervention_key
        Columns of ``obs``.
    test_size
        Share of the cells to hold out; clones are added, in random order, while each intervention keeps a clone in
        training.
    seed
        Seed of the order.

    Returns
    -------
    A :class:`~sccausal.data.Split`.

    Raises
    ------
    sccausal._errors.UnknownNameError
        A column does not exist.
    sccausal._errors.SetupError
        ``test_size`` is out of range, or no intervention has two clones.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> adata = scc.datasets.simulate_time_course(10, 30, 3, times=(1, 2), seed=0)
    >>> adata.obs["clone"] = np.random.default_rng(0).integers(0, 12, adata.n_obs).astype(str)
    >>> split = scc.datasets.clone_split(adata)
    >>> set(adata.obs["clone"].iloc[split.train]) & set(adata.obs["clone"].iloc[split.test])
    set()
    """
    from sccausal.data import Split

    for key in (clone_key, intervention_key):
        if key not in adata.obs:
            raise unknown_name("column", key, list(map(str, adata.obs.columns)), "adata.obs")
    if not 0 < test_size < 1:
        raise SetupError(f"test_size must be between 0 and 1, got {test_size}.")
    clone = adata.obs[clone_key].astype(str).to_numpy()
    cells = pd.crosstab(clone, adata.obs[intervention_key].astype(str).to_numpy())
    left, held = (cells > 0).sum(), 0
    test: list[str] = []
    for name in np.random.default_rng(seed).permutation(np.sort(cells.index.to_numpy(dtype=object))):
        own = cells.loc[name] > 0
        if held >= test_size * adata.n_obs:
            break
        if (left[own] > 1).all():
            left, held = left - own, held + int(cells.loc[name].sum())
            test.append(name)
    if not test:
        raise SetupError(f"No clone of adata.obs[{clone_key!r}] can be held out: every intervention has one clone.")
    rows = np.isin(clone, test)
    held_out = {"clones": test, "clone_key": clone_key, "seed": seed}
    return Split(np.flatnonzero(~rows), np.flatnonzero(rows), task="clones", params=held_out)


def _given(path: str | Path | None, name: str, source: str) -> Path:
    if path is None:
        raise DownloadError(
            f"{name} has no download: fetch the files from {source} and give their place: {name}(path=...). "
            "The formats that are read stand in its documentation."
        )
    return existing(path, name)


def _schema(adata: AnnData, name: str, control: str | None = None) -> None:
    """Write ``obs["intervention"]`` and ``obs["time"]``."""
    target = _first_column(adata, _TARGETS, name)
    labels = adata.obs[target].astype(str)
    if control is not None:
        labels = labels.where(labels.str.upper() != control.upper(), "control")
    adata.obs["intervention"] = intervention_labels(labels)
    _need_control(adata, target, name)
    column = _first_column(adata, _TIMES, name)
    adata.obs["time"] = [_number(v, column, name) for v in adata.obs[column]]


def _number(value: Any, column: str, name: str) -> float:
    """First number in "D3", "day 3", 3.0."""
    found = re.search(r"-?\d+(?:\.\d+)?", str(value))
    if found is None:
        raise FileFormatError(f"{name}: obs[{column!r}] holds {value!r}, in which there is no time.")
    return float(found.group())


def _from_renge(folder: Path, name: str) -> AnnData:
    from anndata import AnnData

    tables = {}
    for file in ("E.csv", "X.csv"):
        if not (folder / file).exists():
            raise FileFormatError(
                f"{name}: {folder} holds no {file}; found {sorted(p.name for p in folder.iterdir())}."
            )
        tables[file] = pd.read_csv(folder / file, index_col=0)
    expression, design = tables["E.csv"], tables["X.csv"]
    if not expression.index.equals(design.index):
        raise FileFormatError(f"{name}: E.csv and X.csv do not list the same cells in the same order.")
    hit = design.iloc[:, :-1].to_numpy(dtype=float)
    if not np.isin(hit, (0.0, 1.0)).all():
        raise FileFormatError(f"{name}: X.csv must be one-hot but for its last column, the time.")
    targets = design.columns[:-1].astype(str).to_numpy()
    labels = ["+".join(targets[row > 0]) or "control" for row in hit]
    obs = pd.DataFrame(
        {"intervention": intervention_labels(labels), "time": design.iloc[:, -1].to_numpy(dtype=float)},
        index=expression.index.astype(str),
    )
    var = pd.DataFrame(index=pd.Index(expression.columns.astype(str)))
    adata = AnnData(expression.to_numpy(dtype=np.float32), obs=obs, var=var)
    _need_control(adata, "intervention", name)
    return adata


def _from_tenx(folder: Path, name: str) -> AnnData:
    import scanpy as sc

    if not (folder / "metadata.csv").exists():
        found = sorted(p.name for p in folder.iterdir())
        raise FileFormatError(f"{name}: {folder} holds no metadata.csv; found {found}.")
    try:
        adata = sc.read_10x_mtx(folder)
    except (OSError, KeyError, ValueError) as error:
        raise FileFormatError(f"{name}: no 10x matrix can be read in {folder} ({error}).") from error
    annotation = pd.read_csv(folder / "metadata.csv", index_col=0)
    annotation.index = annotation.index.astype(str)
    shared = [c for c in adata.obs_names if c in annotation.index]
    if not shared:
        raise FileFormatError(f"{name}: no barcode of the matrix is in metadata.csv (first column).")
    adata = adata[shared].copy()
    adata.obs = annotation.loc[shared]
    adata.var_names_make_unique()
    return adata
