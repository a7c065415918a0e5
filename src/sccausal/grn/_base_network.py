"""Base networks: which regulators may act on which genes, from a file, decoupler, CellOracle or any table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, InputDataError, SetupError, unknown_name
from sccausal.grn._network import Network

_NAMES_OF = {  # names under which tables of the field hold the columns
    "source": ("source", "tf", "TF", "regulator"),
    "target": ("target", "gene", "target_gene"),
    "weight": ("weight", "mor", "coef_mean", "importance"),
}
_RESOURCES = ("collectri", "dorothea")
_PEAK_COLUMNS = ("peak_id", "gene_short_name")  # of CellOracle's wide tables


def base_network(base: Any, *, organism: str = "human", levels: Sequence[str] | None = None) -> Network:
    """Read a base network: regulators and the genes they may act on.

    Parameters
    ----------
    base
        One of

        - a :class:`Network`, e.g. that of a model;
        - a table with the columns source and target (or tf, regulator; gene), and perhaps weight (or mor, coef_mean);
        - CellOracle's wide table (``peak_id``, ``gene_short_name``, one 0/1 column per regulator);
        - a dictionary from each target to its regulators, as CellOracle's ``TFdict``;
        - the path of such a table (``.csv``, ``.tsv``, ``.parquet``, also ``.gz``) or of a network file;
        - ``"collectri"`` or ``"dorothea"``: loaded by decoupler :cite:p:`BadiaIMompel2022`, which needs the internet.
    organism
        Organism of decoupler's resource.
    levels
        Grades of evidence to keep (DoRothEA: ``["A", "B", "C"]``), where a column ``confidence`` says them.

    Returns
    -------
    Network. Pairs listed several times are one edge, with the mean of their weights; without weights they are 1.

    Raises
    ------
    sccausal._errors.SetupError
        The table lacks a column, or the kind of ``base`` is not known.
    sccausal._errors.FileFormatError
        A file cannot be read as a table of edges.
    ImportError
        A resource was asked for and decoupler is not installed.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> table = pd.DataFrame({"tf": ["KLF1", "KLF1"], "gene": ["HBB", "HBA1"]})
    >>> scc.grn.base_network(table).to_frame()
      source target  weight
    0   KLF1   HBA1     1.0
    1   KLF1    HBB     1.0
    """
    if isinstance(base, Network):
        return base
    origin: dict[str, Any] = {"method": "base network"}
    if isinstance(base, str) and base in _RESOURCES:
        table, origin = _resource(base, organism), {**origin, "resource": base, "organism": organism}
    elif isinstance(base, str | Path):
        path = Path(base)
        if path.suffix == ".graphml":
            return Network.read(path)
        table, origin = _read_table(path), {**origin, "file": path.name}
    elif isinstance(base, Mapping):
        pairs = [(str(s), str(t)) for t, sources in base.items() for s in sources]
        table = pd.DataFrame(pairs, columns=["source", "target"])
    elif isinstance(base, pd.DataFrame):
        table = base
    else:
        raise SetupError(
            f"A base network is a Network, a table, a dictionary, a file or one of {_RESOURCES}; "
            f"got {type(base).__name__}."
        )
    return _to_network(table, levels, origin)


def _to_network(table: pd.DataFrame, levels: Sequence[str] | None, origin: Mapping[str, Any]) -> Network:
    if set(_PEAK_COLUMNS) <= set(table.columns):
        edges = _from_wide(table)
    else:
        edges = _named(table)
    if levels is not None:
        if "confidence" not in table.columns:
            raise unknown_name("column", "confidence", table.columns, "the base network (needed for `levels`)")
        edges = edges[table["confidence"].astype(str).isin([str(v) for v in levels]).to_numpy()]
    edges = edges.astype({"source": str, "target": str}).dropna()
    if edges.empty:
        raise InputDataError("The base network has no edge.")
    merged = edges.groupby(["source", "target"], sort=False)["weight"].mean().reset_index()
    regulators = list(pd.unique(merged["source"]))
    genes = list(pd.unique(pd.concat([merged["source"], merged["target"]])))
    return Network(merged, genes, origin, regulators)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    found = {}
    for name, others in _NAMES_OF.items():
        held = next((o for o in others if o in table.columns), None)
        if held is None and name != "weight":
            raise SetupError(
                f"A base network needs a column {name!r} (or {', '.join(others[1:])}); "
                f"found {list(map(str, table.columns))[:8]}."
            )
        if held is not None:
            found[name] = table[held]
    return pd.DataFrame({"weight": 1.0} | found, columns=["source", "target", "weight"], index=table.index)


def _from_wide(table: pd.DataFrame) -> pd.DataFrame:
    regulators = [c for c in table.columns if c not in _PEAK_COLUMNS]
    present = table[regulators].to_numpy() != 0
    row, column = np.nonzero(present)
    sources = np.asarray([str(r) for r in regulators], dtype=object)
    targets = table["gene_short_name"].astype(str).to_numpy(dtype=object)
    return pd.DataFrame({"source": sources[column], "target": targets[row], "weight": 1.0})


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"There is no base network at {path}, and decoupler's are {' and '.join(_RESOURCES)}.")
    endings = [s.lower() for s in path.suffixes]
    try:
        if ".parquet" in endings:
            return pd.read_parquet(path)
        # "NA" and "NAN" are names of genes
        return pd.read_csv(path, sep="\t" if ".tsv" in endings else ",", keep_default_na=False)
    except (ValueError, OSError, EOFError) as error:
        raise FileFormatError(f"{path} cannot be read as a table ({error}).") from error


def _resource(name: str, organism: str) -> pd.DataFrame:
    try:
        import decoupler as dc
    except ModuleNotFoundError as error:
        raise ImportError(
            f'The network {name!r} is loaded by decoupler: pip install "sccausal[enrichment]". A file of it needs none.'
        ) from error
    load = dc.op.collectri if name == "collectri" else dc.op.dorothea
    return load(organism=organism)


def network_from_celloracle(links: Any, cluster: str | None = None, *, p_value: float | None = None) -> Network:
    """Network of one cluster from CellOracle's ``Links`` :cite:p:`Kamimoto2023`.

    Parameters
    ----------
    links
        A ``Links`` object (its ``links_dict`` is read, so CellOracle need not be installed), a dictionary of its
        tables, or one of them.
    cluster
        Cluster to read; may be left out if there is one.
    p_value
        Keep only edges with CellOracle's own p-value at most this; it falls with the number of bags.

    Returns
    -------
    Network with the columns ``weight`` (``coef_mean``), ``p_value`` and further numeric ones.

    Raises
    ------
    sccausal._errors.UnknownNameError
        The cluster is not known.
    sccausal._errors.SetupError
        Several clusters, and none was named.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> links = pd.DataFrame({"source": ["A"], "target": ["B"], "coef_mean": [0.4], "p": [0.01]})
    >>> scc.grn.network_from_celloracle({"cluster 1": links}).to_frame()
      source target  weight  p_value
    0      A      B     0.4     0.01
    """
    tables = getattr(links, "links_dict", links)
    wanted: str | None = cluster
    if isinstance(tables, Mapping):
        names = list(map(str, tables))
        if cluster is None and len(names) != 1:
            raise SetupError(f"The links hold {len(names)} clusters ({', '.join(names[:5])}); name one as `cluster`.")
        wanted = names[0] if cluster is None else str(cluster)
        if wanted not in names:
            raise unknown_name("cluster", wanted, names, "the links")
        table = tables[next(k for k in tables if str(k) == wanted)]
    else:
        table = tables
    table = table.rename(columns={"coef_mean": "weight", "p": "p_value"})
    for column in ("source", "target"):
        if column in table:
            table[column] = table[column].astype(str)
    numeric = [c for c in table.columns if c in ("source", "target") or pd.api.types.is_numeric_dtype(table[c])]
    table = table[numeric]
    if p_value is not None:
        table = table[table["p_value"] <= p_value]
    regulators = list(pd.unique(table["source"])) if "source" in table else None
    return Network(table, metadata={"method": "CellOracle", "cluster": wanted}, regulators=regulators)


def network_to_links(network: Network) -> pd.DataFrame:
    """Edges as a table of CellOracle's ``Links``, for ``links.links_dict[cluster]``.

    Parameters
    ----------
    network
        A network, e.g. of :func:`sccausal.tl.grn`.

    Returns
    -------
    DataFrame with ``source``, ``target``, ``coef_mean``, ``coef_abs``, ``p`` and ``-logp``. An edge without a p-value
    gets 0, so that CellOracle's filter by p keeps it.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> network = scc.grn.Network(pd.DataFrame({"source": ["A"], "target": ["B"], "weight": [0.4]}))
    >>> scc.grn.network_to_links(network)[["source", "target", "coef_mean"]]
      source target  coef_mean
    0      A      B        0.4
    """
    frame = network.to_frame()
    p = frame["p_value"].to_numpy(dtype=float) if "p_value" in frame else np.zeros(len(frame))
    with np.errstate(divide="ignore"):
        log_p = -np.log10(p)
    return pd.DataFrame(
        {
            "source": frame["source"],
            "target": frame["target"],
            "coef_mean": frame["weight"],
            "coef_abs": frame["weight"].abs(),
            "p": p,
            "-logp": log_p,
        }
    )
