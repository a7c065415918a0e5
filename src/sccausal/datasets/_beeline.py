"""Data of the BEELINE benchmark of gene network inference, from its own files or from h5ad."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, unknown_name
from sccausal.datasets._download import cache_dir, existing, explain_download

if TYPE_CHECKING:
    from anndata import AnnData

_DOI = "10.5281/zenodo.3701939"
_ARCHIVE = "BEELINE-data.zip"
_FILES = ("ExpressionData.csv", "refNetwork.csv", "PseudoTime.csv")
# name -> (folder of the archive, data set inside it)
_NAMES = {name: f"{name}/{name}-2000-1/" for name in ("GSD", "HSC", "mCAD", "VSC")} | {
    f"dyn-{short}": f"dyn-{short}/dyn-{short}-2000-1/" for short in ("BF", "BFC", "CY", "LI", "LL", "TF")
}
_NO_NETWORK = ("ExpressionData.csv", "GeneOrdering.csv", "PseudoTime.csv")
_DEFAULT_NETWORKS = ("network.csv", "refNetwork.csv")


def beeline(name: str | None = None, path: str | Path | None = None, network: str | None = None) -> AnnData:
    """Expression with a reference network :cite:p:`Pratapa2020`.

    Parameters
    ----------
    name
        A simulated data set of the benchmark to download (2000 cells, first replicate): "GSD", "HSC", "mCAD", "VSC",
        "dyn-BF", "dyn-BFC", "dyn-CY", "dyn-LI", "dyn-LL" or "dyn-TF". A path to a folder is taken as ``path``.
    path
        A local folder with ``ExpressionData.csv`` (genes x cells), ``refNetwork.csv`` (Gene1, Gene2, Type) and
        perhaps ``PseudoTime.csv``, or with ``expression.h5ad`` and networks as csv (source, target, sign).
    network
        File name of the network in the folder, with or without ".csv"; needed if there are several.

    Returns
    -------
    AnnData, cells x genes, ``X`` as in the file (levels, not counts), pseudotimes in ``obs``, ``var["is_regulator"]``
    (source of an edge), and the network in ``uns["truth"]["network"]``: source, target, weight (+1, -1; without signs
    1), repeated edges removed, self edges kept.

    Raises
    ------
    UnknownNameError
        If the name or the network is not known.
    DownloadError
        Without a connection; the message says how to use a local folder.
    FileFormatError
        If a file is missing or does not have the named columns.

    Examples
    --------
    >>> from sccausal.datasets import beeline
    >>> adata = beeline("GSD")  # doctest: +SKIP
    """
    if (name is None) == (path is None):
        raise FileFormatError("beeline needs either the name of a data set or path= to a folder.")
    if path is None and name is not None and Path(name).is_dir():
        path = name
    folder = existing(path, "beeline") if path is not None else _download(str(name))
    if folder.is_file():
        folder = folder.parent
    edges_file = _network_file(folder, network)
    if (folder / "expression.h5ad").exists():
        adata = _read_h5ad(folder / "expression.h5ad")
    else:
        adata = _read_csv(folder)
    edges = _read_network(edges_file, set(adata.var_names))
    adata.var["is_regulator"] = adata.var_names.isin(edges["source"])
    adata.uns["truth"] = {"network": edges, "file": edges_file.name}
    return adata


def _download(name: str) -> Path:
    """Folder with the three files of one data set, cut out of the archive; checked against Zenodo's own checksum."""
    import pooch

    if name not in _NAMES:
        raise unknown_name("BEELINE data set", name, _NAMES, "beeline")
    folder = cache_dir() / "beeline" / name
    if all((folder / file).exists() for file in _FILES):
        return folder
    with explain_download("beeline", f"doi:{_DOI}"):
        store = pooch.create(path=cache_dir(), base_url=f"doi:{_DOI}/", registry=None)
        store.load_registry_from_doi()
        members = store.fetch(_ARCHIVE, processor=pooch.Unzip())
    wanted = {Path(m).name: m for m in members if _NAMES[name] in Path(m).as_posix() and Path(m).name in _FILES}
    missing = [file for file in _FILES if file not in wanted]
    if missing:
        raise FileFormatError(f"{_ARCHIVE} holds no {', '.join(missing)} for {name}.")
    folder.mkdir(parents=True, exist_ok=True)
    for file, member in wanted.items():
        (folder / file).write_bytes(Path(member).read_bytes())
    return folder


def _network_file(folder: Path, network: str | None) -> Path:
    found = sorted(f for f in folder.glob("*.csv") if f.name not in _NO_NETWORK)
    if network is not None:
        named = [f for f in found if network in (f.name, f.stem)]
        if not named:
            raise unknown_name("network", network, [f.name for f in found], str(folder))
        return named[0]
    usual = [f for f in found if f.name in _DEFAULT_NETWORKS]
    candidates = usual or found
    if len(candidates) != 1:
        names = ", ".join(f.name for f in candidates) or "none"
        raise FileFormatError(f"beeline: {folder} must hold one network, or name one with network=; found: {names}.")
    return candidates[0]


def _read_h5ad(path: Path) -> AnnData:
    import anndata

    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise FileFormatError(f"beeline: {path} cannot be read ({type(error).__name__}: {error}).") from error


def _read_csv(folder: Path) -> AnnData:
    from anndata import AnnData

    path = folder / "ExpressionData.csv"
    if not path.exists():
        raise FileFormatError(f"beeline: {folder} holds neither expression.h5ad nor ExpressionData.csv.")
    try:
        table = pd.read_csv(path, index_col=0)
        values = table.to_numpy(dtype=np.float32)
    except (ValueError, UnicodeDecodeError) as error:
        raise FileFormatError(f"beeline: {path} is no table of numbers, genes x cells ({error}).") from error
    obs = pd.DataFrame(index=table.columns.astype(str))
    if (folder / "PseudoTime.csv").exists():
        times = pd.read_csv(folder / "PseudoTime.csv", index_col=0)
        times.index = times.index.astype(str)
        if not obs.index.isin(times.index).any():
            raise FileFormatError(f"beeline: PseudoTime.csv in {folder} names other cells than ExpressionData.csv.")
        times = times.reindex(obs.index)
        for i, column in enumerate(times.columns, start=1):
            obs[f"pseudotime_{i}"] = times[column].to_numpy(dtype=float)
        obs.insert(0, "pseudotime", times.mean(axis=1).to_numpy(dtype=float))
    return AnnData(X=values.T.copy(), obs=obs, var=pd.DataFrame(index=table.index.astype(str)))


def _read_network(path: Path, genes: set[str]) -> pd.DataFrame:
    table = pd.read_csv(path)
    names = {"Gene1": "source", "Gene2": "target", "Type": "sign"}
    table = table.rename(columns={c: names.get(str(c).strip(), str(c).strip().lower()) for c in table.columns})
    if not {"source", "target"} <= set(table.columns):
        raise FileFormatError(
            f"beeline: {path} needs the columns Gene1, Gene2 (Type) or source, target (sign); found {list(table)}."
        )
    table["weight"] = np.where(table["sign"].astype(str).str.strip() == "-", -1.0, 1.0) if "sign" in table else 1.0
    edges = table[["source", "target", "weight"]].astype({"source": str, "target": str})
    edges = edges.drop_duplicates(["source", "target"])
    inside = edges["source"].isin(genes) & edges["target"].isin(genes)
    if not inside.any():
        raise FileFormatError(f"beeline: no edge of {path} joins two genes of the expression matrix.")
    return edges[inside].reset_index(drop=True)
