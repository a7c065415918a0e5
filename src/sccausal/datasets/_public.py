"""Public perturbation data in one schema, downloaded through pertpy or read from a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, InputDataError
from sccausal.datasets._download import cache_dir, existing, explain_download

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_CONTROL_WORDS = frozenset({"control", "ctrl", "ctl", "nt", "non-targeting", "nontargeting", "negctrl", "none", ""})


def kang_2018(path: str | Path | None = None) -> AnnData:
    """Peripheral blood cells with and without interferon beta :cite:p:`Kang2018`.

    Parameters
    ----------
    path
        A local h5ad file; by default the file that pertpy distributes is downloaded and kept.

    Returns
    -------
    AnnData with UMI counts in ``layers["counts"]`` (``X`` as in the file) and ``obs``: condition ("control",
    "stimulated"), cell_type, and donor where the file has it. All other columns stay.

    Raises
    ------
    DownloadError
        Without a connection; the message says how to use a local file.
    FileFormatError
        If the file cannot be read or lacks what the schema needs.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.kang_2018()  # doctest: +SKIP
    >>> adata.obs["condition"].value_counts()  # doctest: +SKIP
    """
    adata = _load("kang_2018", path)
    words = {"ctrl": "control", "stim": "stimulated", "stimulated": "stimulated", "control": "control"}
    column = _first_column(adata, ("condition", "label", "stim"), "kang_2018", accept=set(words))
    label = adata.obs[column].astype(str).str.lower().map(words)
    adata.obs["condition"] = pd.Categorical(label, categories=["control", "stimulated"])
    _copy_column(adata, ("cell_type", "cell_abbr", "seurat_annotations", "cell"), "cell_type", "kang_2018")
    donor = next((c for c in ("donor", "replicate", "ind") if c in adata.obs), None)
    if donor is not None:
        adata.obs["donor"] = adata.obs[donor].astype(str).astype("category")
    return _with_counts(adata, "kang_2018")


def norman_2019(path: str | Path | None = None) -> AnnData:
    """CRISPR activation of single genes and pairs in K562 cells :cite:p:`Norman2019`.

    Parameters
    ----------
    path
        A local h5ad file; by default the file that pertpy distributes is downloaded and kept.

    Returns
    -------
    AnnData with UMI counts in ``layers["counts"]`` and ``obs["intervention"]``: "control", "A" or "A+B".

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`kang_2018`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.norman_2019()  # doctest: +SKIP
    >>> adata.obs["intervention"].nunique()  # doctest: +SKIP
    """
    adata = _load("norman_2019", path)
    candidates = ("intervention", "perturbation", "perturbation_name", "guide_merged", "condition", "guide_ids")
    column = _first_column(adata, candidates, "norman_2019")
    adata.obs["intervention"] = intervention_labels(adata.obs[column])
    _need_control(adata, column, "norman_2019")
    return _with_counts(adata, "norman_2019")


def papalexi_2021(path: str | Path | None = None, keep_unassigned: bool = False) -> AnnData:
    """ECCITE-seq of knock-outs in stimulated THP-1 cells, RNA part :cite:p:`Papalexi2021`.

    Parameters
    ----------
    path
        A local h5ad or h5mu file; by default the file that pertpy distributes is downloaded and kept.
    keep_unassigned
        Whether to keep cells without an assigned guide (intervention "unassigned").

    Returns
    -------
    AnnData with UMI counts in ``layers["counts"]`` and ``obs``: intervention ("control" or the target), replicate
    where the file has it.

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`kang_2018`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.papalexi_2021()  # doctest: +SKIP
    >>> adata.obs["intervention"].value_counts()  # doctest: +SKIP
    """
    adata = _load("papalexi_2021", path)
    column = _first_column(adata, ("intervention", "gene_target", "gene", "perturbation"), "papalexi_2021")
    adata.obs["intervention"] = intervention_labels(adata.obs[column])
    _need_control(adata, column, "papalexi_2021")
    unassigned = (adata.obs["intervention"].astype(str).str.lower() == "unassigned").to_numpy()
    if unassigned.any() and not keep_unassigned:
        logger.info("papalexi_2021: %d cells without an assigned guide are left out.", int(unassigned.sum()))
        adata = adata[~unassigned].copy()
        adata.obs["intervention"] = adata.obs["intervention"].cat.remove_unused_categories()
    return _with_counts(adata, "papalexi_2021")


def intervention_labels(values: Iterable[Any], sep: str = "+") -> pd.Categorical:
    """Labels of any spelling ("ctrl", "A+ctrl", "B,A", "NT") as "control", "A" or "A+B".

    The two genes of a pair are put into alphabetical order, so that one pair has one label. The control comes first
    among the categories.
    """
    text = pd.Series([str(v) for v in values])
    spelt = {raw: _one_label(raw, sep) for raw in text.unique()}
    labels = text.map(spelt)
    found = sorted(set(labels) - {"control"})
    return pd.Categorical(labels, categories=["control", *found])


def _one_label(raw: str, sep: str) -> str:
    parts = [part.strip() for part in re.split(r"[+,;|]", raw)]
    genes = sorted({part for part in parts if part.lower() not in _CONTROL_WORDS and part.lower() != "nan"})
    return sep.join(genes) if genes else "control"


def _download_with_pertpy(name: str) -> Any:
    """Run pertpy's loader with our cache as its folder."""
    import scanpy as sc

    with explain_download(name, "pertpy's file store"):
        import pertpy.data

        folder, sc.settings.datasetdir = sc.settings.datasetdir, cache_dir()
        try:
            return getattr(pertpy.data, name)()
        finally:
            sc.settings.datasetdir = folder


def _load(name: str, path: str | Path | None) -> AnnData:
    """The file as AnnData, RNA part of a MuData."""
    data = _download_with_pertpy(name) if path is None else _read(existing(path, name), name)
    parts = getattr(data, "mod", None)
    if not isinstance(parts, Mapping):
        return data
    if "rna" not in parts:
        raise FileFormatError(f"{name}: the file has the modalities {list(parts)}, but no 'rna'.")
    adata = parts["rna"].copy()
    for column in data.obs.columns.difference(adata.obs.columns):
        adata.obs[column] = data.obs[column].reindex(adata.obs_names)
    # muon prefixes the columns it pulls up
    adata.obs.columns = [c.removeprefix("rna:") if c.removeprefix("rna:") not in adata.obs else c for c in adata.obs]
    return adata


def _read(path: Path, name: str) -> Any:
    readers: dict[str, Callable[[Path], Any]] = {}
    if path.suffix == ".h5mu":
        import mudata

        readers[".h5mu"] = mudata.read_h5mu
    else:
        import anndata

        readers[".h5ad"] = anndata.read_h5ad
    reader = readers.get(path.suffix)
    if reader is None:
        raise FileFormatError(f"{name}: {path} is not an h5ad or h5mu file.")
    try:
        return reader(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise FileFormatError(f"{name}: {path} cannot be read ({type(error).__name__}: {error}).") from error


def _first_column(adata: AnnData, candidates: tuple[str, ...], name: str, accept: set[str] | None = None) -> str:
    """First of the columns that is there (and holds only accepted words)."""
    for column in candidates:
        if column in adata.obs:
            found = set(adata.obs[column].astype(str).str.lower().unique())
            if accept is None or found <= accept:
                return column
    words = f" holding only {sorted(accept)}" if accept else ""
    raise FileFormatError(
        f"{name}: no obs column among {', '.join(candidates)}{words}; the file has {list(adata.obs.columns)}."
    )


def _copy_column(adata: AnnData, candidates: tuple[str, ...], to: str, name: str) -> None:
    column = _first_column(adata, candidates, name)
    adata.obs[to] = adata.obs[column].astype(str).astype("category")


def _need_control(adata: AnnData, column: str, name: str) -> None:
    if not (adata.obs["intervention"] == "control").any():
        seen = adata.obs[column].astype(str).unique()[:6].tolist()
        raise FileFormatError(f"{name}: no control cells in obs[{column!r}]; it holds {seen}.")


def _with_counts(adata: AnnData, name: str) -> AnnData:
    """Make sure that ``layers["counts"]`` holds counts: those that are there, else ``X``, else ``raw``."""
    if "counts" not in adata.layers:
        raw = None if adata.raw is None or not adata.var_names.isin(adata.raw.var_names).all() else adata.raw
        # some atlases keep log values in X and the counts in raw
        found = [m for m in (adata.X, raw if raw is None else raw[:, adata.var_names].X) if m is not None]
        counts = next((matrix for matrix in found if _holds_counts(matrix)), None)
        if counts is None:
            raise InputDataError(f"{name}: neither layers['counts'] nor X nor raw holds counts.")
        adata.layers["counts"] = counts.copy()
    adata.var_names_make_unique()
    return adata


def _holds_counts(matrix: Any) -> bool:
    values = matrix.data if hasattr(matrix, "data") and not isinstance(matrix, np.ndarray) else matrix
    sample = np.asarray(values).ravel()[:100_000]
    return bool(sample.size and (sample >= 0).all() and (sample == np.round(sample)).all())
