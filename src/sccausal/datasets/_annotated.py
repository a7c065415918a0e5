"""Cells of any annotated file in the names of this package, and atlases that are read that way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, SetupError, unknown_name
from sccausal.datasets._download import cache_dir, existing, explain_download
from sccausal.datasets._public import _copy_column, _read, _with_counts
from sccausal.datasets._time_courses import _from_tenx, _given, _number

if TYPE_CHECKING:
    from anndata import AnnData

Columns = Mapping[str, str | Sequence[str]]


def read_annotated(
    path: str | Path | Mapping[str, str | Path],
    columns: Columns | None = None,
    *,
    optional: Columns | None = None,
    counts: bool = True,
    name: str = "read_annotated",
) -> AnnData:
    """Read annotated cells and give their columns the names of this package.

    For data that have no loader of their own: the user guide has a recipe for each.

    Parameters
    ----------
    path
        An h5ad or h5mu file; a folder with a 10x matrix and ``metadata.csv`` (first column: the barcode); or a mapping
        of batch names to such places, which are put together on the genes they share.
    columns
        ``{new name: name in the file}``, or several names of which the first that is there is taken, e.g.
        ``{"cell_type": "celltype", "batch": ("tech", "donor")}``. The columns of the file stay as they are.
    optional
        The same for columns that may be missing.
    counts
        Whether there must be counts: in ``layers["counts"]``, else ``X``, else ``raw``. They are then in
        ``layers["counts"]``.
    name
        Name in error messages.

    Returns
    -------
    AnnData, cells x genes, the new columns categorical; of several files with ``obs["batch"]``.

    Raises
    ------
    sccausal._errors.FileFormatError
        A file cannot be read or lacks a column, or the files share no gene.
    sccausal._errors.InputDataError
        There are no counts.
    sccausal._errors.SetupError
        ``columns`` and a mapping of files both name the batch.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import sccausal as scc
    >>> cells = scc.datasets.simulate_perturb_seq(20, 10, 0, n_types=2, seed=0, sortability=False)
    >>> del cells.uns["truth"]
    >>> file = Path(mkdtemp()) / "cells.h5ad"
    >>> cells.write_h5ad(file)
    >>> adata = scc.datasets.read_annotated(file, {"kind": ("annotation", "cell_type")})
    >>> sorted(adata.obs["kind"].unique())
    ['type_0', 'type_1']
    """
    columns = {} if columns is None else columns
    if isinstance(path, Mapping):
        return _several(path, columns, optional, counts, name)
    place = existing(path, name)
    adata = _from_tenx(place, name) if place.is_dir() else _read_rna(place, name)
    return _named(adata, columns, optional, counts, name)


def heart_cell_atlas(path: str | Path | None = None) -> AnnData:
    """Cells and nuclei of the adult human heart from 14 donors :cite:p:`Litvinukova2020`.

    Parameters
    ----------
    path
        A local h5ad file, such as the full atlas; by default the 20 000 cells that scvi-tools distributes are
        downloaded and kept.

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs``: batch (the donor), cell_type, and source (cells or nuclei)
    where the file has it.

    Raises
    ------
    DownloadError
        Without a connection; the message says how to use a local file.
    FileFormatError
        If the file cannot be read or lacks what the schema needs.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.heart_cell_atlas()  # doctest: +SKIP
    >>> adata.obs["batch"].nunique()  # doctest: +SKIP
    """
    name = "heart_cell_atlas"
    if path is None:
        with explain_download(name, "the file store of scvi-tools"):
            import scvi.data

            adata = scvi.data.heart_cell_atlas_subsampled(save_path=str(cache_dir()))
    else:
        adata = _read_rna(existing(path, name), name)
    columns = {"batch": ("donor", "donor_id"), "cell_type": ("cell_type", "cell_type_original")}
    return _named(adata, columns, {"source": ("cell_source", "suspension_type")}, True, name)


def immune_atlas(path: str | Path | None = None) -> AnnData:
    """Immune cells of 16 tissues from 12 donors :cite:p:`DominguezConde2022`.

    Parameters
    ----------
    path
        The global h5ad file of https://www.tissueimmunecellatlas.org, or the copy of it in CELLxGENE.

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs``: donor, tissue, cell_type, and chemistry and sex where the
    file has them.

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`heart_cell_atlas`; no path is given: the site offers no file that could be checked by a hash.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.immune_atlas("global.h5ad")  # doctest: +SKIP
    >>> adata.obs[["donor", "tissue"]].drop_duplicates()  # doctest: +SKIP
    """
    name = "immune_atlas"
    columns = {
        "donor": ("Donor", "donor_id", "donor"),
        "tissue": ("Organ", "tissue"),
        "cell_type": ("Manually_curated_celltype", "cell_type"),
    }
    optional = {"chemistry": ("Chemistry", "assay"), "sex": ("Sex", "sex")}
    return read_annotated(
        _given(path, name, "https://www.tissueimmunecellatlas.org"), columns, optional=optional, name=name
    )


def merfish_brain(path: str | Path | None = None) -> AnnData:
    """Frontal cortex and striatum of mice of three ages, measured in place :cite:p:`Allen2023`.

    Parameters
    ----------
    path
        The MERFISH h5ad file of the untreated mice in CELLxGENE, collection 31937775-0602-4e52-a799-b6acdd2bac2e.

    Returns
    -------
    AnnData with ``obs``: donor (the mouse), age (as in the file), age_weeks (a number: ages lie on a line),
    cell_type, and region where the file has it; positions in ``obsm["spatial"]``. ``X`` is as in the file
    (expression per cell volume, no counts).

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`immune_atlas`; also if there are no positions.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.merfish_brain("merfish_control.h5ad")  # doctest: +SKIP
    >>> adata.obs.groupby("donor")["age_weeks"].first()  # doctest: +SKIP
    """
    name = "merfish_brain"
    place = _given(path, name, "CELLxGENE, collection 31937775-0602-4e52-a799-b6acdd2bac2e")
    columns = {"donor": ("donor_id", "donor", "animal"), "age": ("age", "development_stage"), "cell_type": "cell_type"}
    optional = {"region": ("region", "tissue_region", "clust_annot", "tissue")}
    adata = read_annotated(place, columns, optional=optional, counts=False, name=name)
    adata.obs["age_weeks"] = [_number(v, "age", name) for v in adata.obs["age"]]
    if "spatial" not in adata.obsm:
        pairs = [p for p in (("center_x", "center_y"), ("x", "y")) if set(p) <= set(adata.obs)]
        if not pairs:
            raise FileFormatError(
                f"{name}: neither obsm['spatial'] nor obs columns center_x, center_y; found {list(adata.obs)}."
            )
        adata.obsm["spatial"] = adata.obs[list(pairs[0])].to_numpy(dtype=float)
    return adata


def yost_2019(path: str | Path | None = None, response: Mapping[str, str] | None = None) -> AnnData:
    """Basal cell carcinoma before and after checkpoint blockade :cite:p:`Yost2019` (GSE123813, part of GSE123814).

    Parameters
    ----------
    path
        Folder with the files of GEO that end in ``bcc_scRNA_counts.txt.gz`` (genes x cells) and
        ``bcc_all_metadata.txt.gz``.
    response
        Response of each patient, from the clinical table of the paper; GEO does not hold it.

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs``: donor (the patient), treatment ("pre", "post"), cell_type,
    and response if it is given.

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`immune_atlas`.
    sccausal._errors.UnknownNameError
        ``response`` lacks a patient.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.yost_2019("GSE123813")  # doctest: +SKIP
    >>> adata.obs["treatment"].value_counts()  # doctest: +SKIP
    """
    from anndata import AnnData

    name = "yost_2019"
    folder = _given(path, name, "GEO, accession GSE123813")
    values, genes, cells = _sparse_table(_one_file(folder, "bcc_scRNA_counts.txt", name), name)
    notes = pd.read_csv(_one_file(folder, "bcc_all_metadata.txt", name), sep="\t")
    missing = {"cell.id", "patient", "treatment", "cluster"} - set(notes)
    if missing:
        raise FileFormatError(f"{name}: the metadata lack {sorted(missing)}; they have {list(notes)}.")
    notes = notes.set_index(notes["cell.id"].astype(str))
    rows = np.flatnonzero(np.isin(cells, notes.index))
    if not len(rows):
        raise FileFormatError(f"{name}: no cell of the counts ({cells[0]}, ...) is in the metadata.")
    adata = AnnData(values[rows], obs=notes.loc[cells[rows]], var=pd.DataFrame(index=pd.Index(genes)))
    adata.obs.index.name = None
    for new, old in (("donor", "patient"), ("treatment", "treatment"), ("cell_type", "cluster")):
        adata.obs[new] = adata.obs[old].astype(str).astype("category")
    if response is not None:
        for patient in adata.obs["donor"].cat.categories:
            if patient not in response:
                raise unknown_name("patient", patient, response, "`response`")
        adata.obs["response"] = adata.obs["donor"].astype(str).map(dict(response)).astype("category")
    return _with_counts(adata, name)


def _named(adata: AnnData, columns: Columns, optional: Columns | None, counts: bool, name: str) -> AnnData:
    for new, found in columns.items():
        _copy_column(adata, (found,) if isinstance(found, str) else tuple(found), new, name)
    for new, found in (optional or {}).items():
        here = [c for c in ((found,) if isinstance(found, str) else found) if c in adata.obs]
        if here:
            _copy_column(adata, tuple(here), new, name)
    return _with_counts(adata, name) if counts else adata


def _read_rna(path: Path, name: str) -> AnnData:
    data = _read(path, name)
    parts = getattr(data, "mod", None)
    if not isinstance(parts, Mapping):
        return data
    if "rna" not in parts:
        raise FileFormatError(f"{name}: the file has the modalities {list(parts)}, but no 'rna'.")
    return parts["rna"].copy()


def _several(
    paths: Mapping[str, str | Path], columns: Columns, optional: Columns | None, counts: bool, name: str
) -> AnnData:
    import anndata as ad

    if "batch" in columns:
        raise SetupError("The files are the batches, so `columns` must not name a batch; give one file for that.")
    parts = {
        str(batch): read_annotated(place, columns, optional=optional, counts=counts, name=f"{name}, {batch}")
        for batch, place in paths.items()
    }
    if not parts:
        raise SetupError(f"{name}: there is no file to read.")
    for part in parts.values():
        part.var_names_make_unique()
    adata = ad.concat(parts, join="inner", label="batch", index_unique="-")
    if adata.n_vars == 0:
        heads = {batch: str(part.var_names[0]) for batch, part in parts.items()}
        raise FileFormatError(f"{name}: the files share no gene name; the first of each are {heads}.")
    for column in adata.obs.columns:
        if column in columns or column in (optional or {}) or column == "batch":
            adata.obs[column] = adata.obs[column].astype(str).astype("category")
    return adata


def _one_file(folder: Path, ending: str, name: str) -> Path:
    found = sorted(p for p in folder.glob("*") if re.search(re.escape(ending) + r"(\.gz)?$", p.name))
    if len(found) != 1:
        here = sorted(p.name for p in folder.glob("*"))[:10]
        raise FileFormatError(f"{name}: {folder} must hold one file that ends in {ending}[.gz]; found {here}.")
    return found[0]


def _sparse_table(path: Path, name: str) -> tuple[Any, list[str], np.ndarray]:
    """Cells x genes of a table genes x cells that would not fit into memory as a whole."""
    from scipy import sparse

    blocks, genes, cells = [], [], np.array([], dtype=object)
    try:
        for chunk in pd.read_csv(path, sep="\t", index_col=0, chunksize=500):
            blocks.append(sparse.csr_matrix(chunk.to_numpy(dtype=np.float32)))
            genes += chunk.index.astype(str).tolist()
            cells = chunk.columns.astype(str).to_numpy(dtype=object)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise FileFormatError(f"{name}: {path} is no table of numbers, genes x cells ({error}).") from error
    if not blocks:
        raise FileFormatError(f"{name}: {path} is empty.")
    return sparse.csr_matrix(sparse.vstack(blocks).T), genes, cells
