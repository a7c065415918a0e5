"""The edge table every network in the package is handed around as."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.grn._files import read_network, write_network

if TYPE_CHECKING:
    import networkx as nx
    from anndata import AnnData

EDGE_COLUMNS = ("source", "target", "weight")


class Network:
    """Directed, weighted gene network.

    Edges are kept in the order of falling ``|weight|``; ties are ordered by source and target name, so that equal
    networks have equal tables. In every matrix, rows are sources (regulators) and columns are targets.

    Parameters
    ----------
    frame
        Edges with the columns ``source``, ``target``, ``weight`` and any further ones (e.g. ``stability``, the share
        of ensemble members that hold the edge, in 0..1). A zero weight is an edge that was considered and found empty;
        :meth:`from_matrix` leaves those out.
    genes
        All genes the network speaks about, isolated ones included, in the order matrices will have. Default: the genes
        of the edges in order of appearance.
    metadata
        JSON-able facts about the origin of the network (method, data, threshold, ...).
    regulators
        Genes that were allowed as sources. Default: all genes.

    Raises
    ------
    sccausal._errors.UnknownNameError
        An edge names a gene that is not in ``genes``.
    sccausal._errors.InputDataError
        A weight is not finite, or an edge is listed twice.

    Examples
    --------
    >>> import pandas as pd
    >>> from sccausal.grn import Network
    >>> net = Network(pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"], "weight": [0.5, -2.0]}))
    >>> net.to_frame()["target"].tolist()
    ['C', 'B']
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        genes: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        regulators: Sequence[str] | None = None,
    ) -> None:
        table = _checked_edges(frame)
        if genes is None:
            listed = pd.unique(pd.concat([table["source"], table["target"]], ignore_index=True))
            extra = [str(r) for r in regulators or () if str(r) not in set(listed)]
            genes = [*map(str, listed), *extra]
        self.genes: list[str] = [str(g) for g in genes]
        if len(set(self.genes)) != len(self.genes):
            twice = pd.Index(self.genes)[pd.Index(self.genes).duplicated()][0]
            raise InputDataError(f"Gene {twice!r} is listed twice in `genes`; make the names unique first.")
        self.regulators: list[str] = self.genes if regulators is None else [str(r) for r in regulators]
        known = set(self.genes)
        for kind, names in (("regulator", self.regulators), ("gene", table["source"]), ("gene", table["target"])):
            missing = next((n for n in names if n not in known), None)
            if missing is not None:
                raise unknown_name(kind, missing, self.genes, "the genes of the network")
        outside = set(table["source"]) - set(self.regulators)
        if outside:
            raise unknown_name("source", sorted(outside)[0], self.regulators, "the regulators of the network")
        self.metadata: dict[str, Any] = copy.deepcopy(dict(metadata or {}))
        self._frame = _sorted_edges(table)

    @classmethod
    def from_matrix(
        cls,
        matrix: Any,
        genes: Sequence[str],
        regulators: Sequence[str] | None = None,
        threshold: float = 0.0,
        *,
        metadata: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        self_loops: bool = False,
    ) -> Network:
        """Build a network from a weight matrix whose rows are sources.

        Parameters
        ----------
        matrix
            Array or scipy sparse matrix, (len(regulators), len(genes)).
        genes
            Names of the columns.
        regulators
            Names of the rows; default: ``genes``.
        threshold
            Only entries with ``|weight| > threshold`` become edges.
        metadata
            As for :class:`Network`.
        extra
            Further edge columns as matrices of the same shape, e.g. ``{"stability": S}``.
        self_loops
            Whether entries from a gene to itself are kept.

        Returns
        -------
        Network

        Raises
        ------
        sccausal._errors.SetupError
            The shape of the matrix is not that of the names.
        """
        genes = [str(g) for g in genes]
        rows = genes if regulators is None else [str(r) for r in regulators]
        shape = (len(rows), len(genes))
        if tuple(matrix.shape) != shape:
            raise SetupError(
                f"The matrix is {tuple(matrix.shape)}, but the names give {shape} (rows are sources, columns targets)."
            )
        coo = sparse.coo_matrix(matrix)
        coo.sum_duplicates()
        if not np.isfinite(coo.data).all():
            raise InputDataError("The matrix holds values that are not finite.")
        keep = np.abs(coo.data) > threshold
        source = np.asarray(rows, dtype=object)[coo.row[keep]]
        target = np.asarray(genes, dtype=object)[coo.col[keep]]
        frame = pd.DataFrame({"source": source, "target": target, "weight": coo.data[keep].astype(np.float64)})
        for name, values in (extra or {}).items():
            if tuple(values.shape) != shape:
                raise SetupError(f"extra[{name!r}] is {tuple(values.shape)}, expected {shape}.")
            picked = sparse.csr_matrix(values) if sparse.issparse(values) else np.asarray(values)
            frame[name] = np.asarray(picked[coo.row[keep], coo.col[keep]]).ravel()
        if not self_loops:
            frame = frame[frame["source"] != frame["target"]]
        return cls(frame, genes, metadata, None if regulators is None else rows)

    @property
    def sign(self) -> pd.Series:
        """Sign of each edge (-1, 0 or 1), in the order of :meth:`to_frame`."""
        return np.sign(self._frame["weight"]).astype(int).rename("sign")

    def to_frame(self) -> pd.DataFrame:
        """Edges as a table: source, target, weight and further columns (decoupler's ``net`` format)."""
        return self._frame.copy()

    def to_matrix(
        self, genes: Sequence[str] | None = None, *, as_sparse: bool = False
    ) -> np.ndarray | sparse.csr_matrix:
        """Weights as a (genes, genes) matrix, rows are sources.

        Parameters
        ----------
        genes
            Order of rows and columns, or a part of the genes; default :attr:`genes`.
        as_sparse
            Return a CSR matrix.

        Raises
        ------
        sccausal._errors.UnknownNameError
            A gene is not in the network.
        """
        order = self.genes if genes is None else [str(g) for g in genes]
        return self._weights(order, order, "weight", as_sparse)

    def to_networkx(self) -> nx.DiGraph:
        """Directed graph with every gene as a node and every edge column as an attribute."""
        import networkx as nx

        graph = nx.DiGraph(**{k: v for k, v in self.metadata.items() if isinstance(v, str | int | float | bool)})
        regulators = set(self.regulators)
        graph.add_nodes_from((g, {"regulator": g in regulators}) for g in self.genes)
        names = list(self._frame.columns[2:])
        for edge in self._frame.itertuples(index=False, name=None):
            graph.add_edge(edge[0], edge[1], **{n: _plain(v) for n, v in zip(names, edge[2:], strict=True)})
        return graph

    def to_anndata(self) -> AnnData:
        """Weights as an AnnData: one observation per regulator, one variable per gene.

        Returns
        -------
        AnnData with ``X`` (regulators, genes) CSR, further numeric edge columns in ``layers`` and the metadata in
        ``uns["network"]``.
        """
        from anndata import AnnData

        layers = {
            name: self._weights(self.regulators, self.genes, name, True)
            for name in self._frame.columns[3:]
            if pd.api.types.is_numeric_dtype(self._frame[name])
        }
        weights = self._weights(self.regulators, self.genes, "weight", True)
        adata = AnnData(
            X=weights,
            obs=pd.DataFrame({"n_targets": np.diff(weights.indptr)}, index=pd.Index(self.regulators, name="source")),
            var=pd.DataFrame({"n_sources": weights.getnnz(axis=0)}, index=pd.Index(self.genes, name="target")),
            layers=layers,
        )
        adata.uns["network"] = copy.deepcopy(self.metadata)
        return adata

    def to_celloracle(self) -> pd.DataFrame:
        """Wide base network as CellOracle reads it.

        Returns
        -------
        DataFrame with one row per regulated gene: ``peak_id``, ``gene_short_name`` and one 0/1 column per regulator
        that has a target. No chromatin peak stands behind these edges, so ``peak_id`` repeats the gene's name.
        """
        edges = self._frame[self._frame["weight"] != 0]
        sources = set(edges["source"])
        columns = [g for g in self.regulators if g in sources]
        targets = set(edges["target"])
        rows = [g for g in self.genes if g in targets]
        present = (self._weights(columns, rows, "weight", False) != 0).T.astype(float)
        wide = pd.DataFrame(present, columns=columns)
        wide.insert(0, "gene_short_name", rows)
        wide.insert(0, "peak_id", rows)
        return wide

    def top(self, n: int) -> Network:
        """Network of the ``n`` edges with the largest ``|weight|`` (fewer if there are fewer)."""
        if n < 0:
            raise SetupError(f"top(n) needs n >= 0, got {n}.")
        return self._with(self._frame.head(int(n)))

    def drop_self_loops(self) -> Network:
        """Network without edges from a gene to itself."""
        return self._with(self._frame[self._frame["source"] != self._frame["target"]])

    def write(self, path: str | Path) -> Path:
        """Write to ``.csv``, ``.parquet`` or ``.graphml``.

        A CSV holds the edges alone; genes without edges, the regulators and the metadata go beside it into
        ``<path>.json``, which :meth:`read` takes up when it is there.

        Raises
        ------
        sccausal._errors.FileFormatError
            The ending is none of the three.
        """
        return write_network(self, Path(path))

    @classmethod
    def read(cls, path: str | Path) -> Network:
        """Read what :meth:`write` wrote, or any table with source, target and weight.

        Raises
        ------
        sccausal._errors.FileFormatError
            The ending is unknown, or the content is no network.
        """
        return cls(**read_network(Path(path)))

    def _with(self, frame: pd.DataFrame) -> Network:
        regulators = None if self.regulators is self.genes else self.regulators
        return Network(frame, self.genes, self.metadata, regulators)

    def _weights(self, rows: Sequence[str], columns: Sequence[str], value: str, as_sparse: bool) -> Any:
        row_at = {g: i for i, g in enumerate(rows)}
        column_at = {g: i for i, g in enumerate(columns)}
        known = set(self.genes)
        for gene in [*row_at, *column_at]:
            if gene not in known:
                raise unknown_name("gene", gene, self.genes, "the network")
        i = self._frame["source"].map(row_at)
        j = self._frame["target"].map(column_at)
        held = (i.notna() & j.notna()).to_numpy()
        values = self._frame[value].to_numpy(dtype=np.float64)[held]
        where = (i[held].to_numpy(dtype=np.int64), j[held].to_numpy(dtype=np.int64))
        matrix = sparse.csr_matrix((values, where), shape=(len(rows), len(columns)))
        return matrix if as_sparse else matrix.toarray()

    def __len__(self) -> int:
        return len(self._frame)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self.genes == other.genes and self.regulators == other.regulators and self._frame.equals(other._frame)

    __hash__ = None  # type: ignore[assignment]  # compared by content, and the metadata may change

    def __repr__(self) -> str:
        method = self.metadata.get("method")
        origin = f", method {method}" if method else ""
        lines = [f"Network: {len(self)} edges, {len(self.genes)} genes, {len(self.regulators)} regulators{origin}"]
        if len(self):
            lines.append(self._frame.head(5).to_string(index=False))
        if len(self) > 5:
            lines.append("...")
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _checked_edges(frame: pd.DataFrame) -> pd.DataFrame:
    missing = [c for c in EDGE_COLUMNS if c not in frame.columns]
    if missing:
        raise SetupError(f"The edge table lacks the column(s) {missing}; found {list(map(str, frame.columns))}.")
    others = [c for c in frame.columns if c not in EDGE_COLUMNS]
    table = frame.loc[:, [*EDGE_COLUMNS, *others]].reset_index(drop=True)
    for end in ("source", "target"):
        if table[end].isna().any():
            raise InputDataError(f"The column {end!r} has missing gene names; drop those edges.")
        table[end] = table[end].astype(str).astype(object)
    weight = pd.to_numeric(table["weight"], errors="coerce").astype(np.float64)
    if not np.isfinite(weight).all():
        row = int(np.flatnonzero(~np.isfinite(weight.to_numpy()))[0])
        edge = f"{table['source'][row]} -> {table['target'][row]}"
        raise InputDataError(f"The weight of {edge} is {frame['weight'].iloc[row]!r}, not a finite number.")
    table["weight"] = weight
    twice = table.duplicated(["source", "target"])
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise InputDataError(
            f"The edge {table['source'][row]} -> {table['target'][row]} is listed more than once; aggregate it first."
        )
    return table


def _sorted_edges(table: pd.DataFrame) -> pd.DataFrame:
    order = np.lexsort((_codes(table["target"]), _codes(table["source"]), -table["weight"].abs().to_numpy()))
    return table.iloc[order].reset_index(drop=True)


def _codes(names: Iterable[str]) -> np.ndarray:
    return np.unique(np.asarray(list(names), dtype=str), return_inverse=True)[1]
