"""Large perturbation screens of the papers, in one schema, from the files their authors share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, unknown_name
from sccausal.datasets._download import DownloadError, existing
from sccausal.datasets._public import (
    _download_with_pertpy,
    _first_column,
    _need_control,
    _read,
    _with_counts,
    intervention_labels,
)
from sccausal.datasets._time_courses import _given

if TYPE_CHECKING:
    from anndata import AnnData

Screen = Literal["k562_essential", "k562_gwps", "rpe1"]
_SCREENS = ("k562_essential", "k562_gwps", "rpe1")
_TARGETS = ("intervention", "gene", "perturbation", "target_gene")
_LANE = "THP1-CaRPool-seq_and_HEK293FTstabRNA.GEXGDO{lane}."


def joung_2023(path: str | Path | None = None, *, isoforms: bool = False) -> AnnData:
    """Overexpression of transcription factors in human embryonic stem cells :cite:p:`Joung2023` (GSE217460).

    Parameters
    ----------
    path
        A local h5ad file of GEO with counts, unpacked, such as ``GSE217460_210322_TFAtlas_subsample_raw.h5ad``.
    isoforms
        Keep the open reading frames of a factor apart ("TFORF0001-HIF3A"); by default they are one target ("HIF3A").

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs["intervention"]``: "control" (GFP and mCherry) or the factor.

    Raises
    ------
    DownloadError
        No path is given: the file is packed and large, and has to be fetched by hand.
    FileFormatError
        The file cannot be read or lacks what the schema needs.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.joung_2023("TFAtlas_subsample_raw.h5ad")  # doctest: +SKIP
    >>> adata.obs["intervention"].nunique()  # doctest: +SKIP
    """
    name = "joung_2023"
    adata = _read(_given(path, name, "GEO, accession GSE217460"), name)
    column = _first_column(adata, ("intervention", "TF", "perturbation"), name)
    labels = adata.obs[column].astype(str)
    factors = labels.str.replace(r"^TFORF\d+-", "", regex=True)
    chosen = labels if isoforms else factors
    adata.obs["intervention"] = intervention_labels(chosen.where(~factors.isin(["GFP", "mCherry"]), "control"))
    _need_control(adata, column, name)
    return _with_counts(adata, name)


def replogle_2022(screen: Screen = "k562_essential", path: str | Path | None = None) -> AnnData:
    """CRISPR interference with thousands of genes in K562 and RPE1 cells :cite:p:`Replogle2022`.

    Parameters
    ----------
    screen
        ``"k562_essential"``, ``"k562_gwps"`` (genome-wide) or ``"rpe1"``.
    path
        A local h5ad file with counts, e.g. ``K562_essential_raw_singlecell_01.h5ad`` of the authors (figshare article
        20029387); by default the file that pertpy distributes is downloaded and kept, except for the essential screen
        (see Notes).

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs``: intervention ("control" or the target) and batch (the
    10x lane) where the file has it. Genes are named by symbol where the file has symbols, so that targets are found.

    Raises
    ------
    DownloadError
        Without a connection, or for the essential screen without a path.
    FileFormatError
        The file cannot be read, lacks what the schema needs, or holds another screen.
    sccausal._errors.UnknownNameError
        There is no such screen.

    Notes
    -----
    The loader of the essential screen in pertpy (1.0.3) fetches another data set (pertpy issue 916), so it is not used.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.replogle_2022("rpe1")  # doctest: +SKIP
    >>> adata.obs["intervention"].value_counts()  # doctest: +SKIP
    """
    if screen not in _SCREENS:
        raise unknown_name("screen", screen, _SCREENS, "replogle_2022")
    name = f"replogle_2022_{screen}"
    if path is None and screen == "k562_essential":
        raise DownloadError(
            "The essential screen has no download that can be relied on: fetch K562_essential_raw_singlecell_01.h5ad "
            "from figshare (article 20029387) and give its place: replogle_2022(path=...)."
        )
    adata = _download_with_pertpy(name) if path is None else _read(existing(path, name), name)
    column = _first_column(adata, _TARGETS, name)
    labels = adata.obs[column].astype(str)
    if labels.str.match(r"chr[0-9XY]+[.:]").mean() > 0.1:
        raise FileFormatError(f"{name}: obs[{column!r}] names genomic places ({labels.iloc[0]}): it is another screen.")
    adata.obs["intervention"] = intervention_labels(labels)
    _need_control(adata, column, name)
    lane = next((c for c in ("batch", "gem_group") if c in adata.obs), None)
    if lane is not None:
        adata.obs["batch"] = adata.obs[lane].astype(str).astype("category")
    if "gene_name" in adata.var and str(adata.var_names[0]).startswith("ENS"):
        adata.var["gene_id"] = adata.var_names.to_numpy()
        adata.var_names = adata.var["gene_name"].astype(str).to_numpy()
    return _with_counts(adata, name)


def wessels_2023(path: str | Path | None = None) -> AnnData:
    """Knock-down of single genes and pairs by Cas13 in THP-1 cells (CaRPool-seq) :cite:p:`Wessels2023` (GSE213957).

    Parameters
    ----------
    path
        A local h5ad file with counts and a column of pairs ("A_B", "NT_A"); or a folder with the files of GEO:
        ``GSE213957_THP1-CaRPool-seq.metadata.tsv`` and the matrices
        ``THP1-CaRPool-seq_and_HEK293FTstabRNA.GEXGDO1.matrix.mtx.gz`` (with ``barcodes.tsv.gz``, ``features.tsv.gz``)
        of the lanes.

    Returns
    -------
    AnnData with counts in ``layers["counts"]`` and ``obs["intervention"]``: "control", "A" or "A+B"; from the folder
    also ``obs["batch"]`` (the lane).

    Raises
    ------
    DownloadError, FileFormatError
        As :func:`joung_2023`.

    Examples
    --------
    >>> import sccausal as scc
    >>> adata = scc.datasets.wessels_2023("GSE213957")  # doctest: +SKIP
    >>> adata.obs["intervention"].str.contains("+", regex=False).sum()  # doctest: +SKIP
    """
    name = "wessels_2023"
    place = _given(path, name, "GEO, accession GSE213957")
    adata = _carpool_folder(place, name) if place.is_dir() else _read(place, name)
    column = _first_column(adata, ("intervention", "GenePair", "perturbation"), name)
    # guides of a pair are joined by "_", which no gene symbol holds
    adata.obs["intervention"] = intervention_labels(adata.obs[column].astype(str).str.replace("_", "+"))
    _need_control(adata, column, name)
    return _with_counts(adata, name)


def _carpool_folder(folder: Path, name: str) -> AnnData:
    """Lanes of GEO put together, with the cells that the authors annotated."""
    import anndata as ad
    import scanpy as sc

    notes = sorted(folder.glob("*CaRPool-seq.metadata.tsv*"))
    lanes = [n for n in range(1, 9) if list(folder.glob(_LANE.format(lane=n) + "matrix.mtx*"))]
    if len(notes) != 1 or not lanes:
        here = sorted(p.name for p in folder.iterdir())[:10]
        raise FileFormatError(f"{name}: {folder} lacks the metadata or the matrices of the lanes; found {here}.")
    parts = {}
    for lane in lanes:
        try:
            part = sc.read_10x_mtx(folder, prefix=_LANE.format(lane=lane))
        except (OSError, KeyError, ValueError) as error:
            raise FileFormatError(f"{name}: lane {lane} in {folder} cannot be read ({error}).") from error
        part.obs_names = [f"L{lane}_{_bare(barcode)}" for barcode in part.obs_names]
        part.var_names_make_unique()
        parts[str(lane)] = part
    adata = ad.concat(parts, label="batch")
    table = pd.read_csv(notes[0], sep="\t", index_col=0)
    table.index = [_bare(barcode) for barcode in table.index.astype(str)]
    known = np.flatnonzero(adata.obs_names.isin(table.index))
    if not len(known):
        raise FileFormatError(f"{name}: no barcode of the matrices ({adata.obs_names[0]}) is in {notes[0].name}.")
    adata = adata[known].copy()
    adata.obs = table.loc[adata.obs_names].assign(batch=adata.obs["batch"].to_numpy())
    return adata


def _bare(barcode: str) -> str:
    return re.sub(r"-\d+$", "", barcode)
