"""Networks on disk: CSV, Parquet and GraphML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sccausal._errors import FileFormatError

if TYPE_CHECKING:
    from sccausal.grn._network import Network

ENDINGS = (".csv", ".parquet", ".graphml")
_KEY = b"sccausal_network"


def write_network(network: Network, path: Path) -> Path:
    """Write ``network`` in the format its ending names; return the path."""
    ending = _ending(path)
    frame = network.to_frame()
    about = _about(network)
    if ending == ".csv":
        frame.to_csv(path, index=False)
        path.with_name(path.name + ".json").write_text(about, encoding="utf-8")
    elif ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: about.encode()}), path)
    else:
        import networkx as nx

        graph = network.to_networkx()
        graph.graph = {"sccausal_network": about}
        nx.write_graphml(graph, path)
    return path


def read_network(path: Path) -> dict[str, Any]:
    """Arguments of :class:`~sccausal.grn.Network` from a file."""
    ending = _ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no network at {path}.")
    about: str | bytes | None = None
    try:
        if ending == ".csv":
            frame = pd.read_csv(
                path, dtype={"source": str, "target": str}, float_precision="round_trip", keep_default_na=False,
                na_values={"weight": [""]},
            )  # fmt: skip
            beside = path.with_name(path.name + ".json")
            about = beside.read_text(encoding="utf-8") if beside.is_file() else None
        elif ending == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            frame = table.to_pandas()
            about = (table.schema.metadata or {}).get(_KEY)
        else:
            frame, about = _read_graphml(path)
        facts = json.loads(about) if about else {}
    except (ValueError, KeyError, OSError, SyntaxError) as error:
        raise FileFormatError(f"{path} cannot be read as a network ({error}); it may be cut off or foreign.") from error
    lacking = [c for c in ("source", "target", "weight") if c not in frame.columns]
    if lacking:
        raise FileFormatError(f"{path} holds no network: the column(s) {', '.join(lacking)} are missing.")
    return {"frame": frame, **{k: facts[k] for k in ("genes", "metadata", "regulators") if facts.get(k) is not None}}


def _read_graphml(path: Path) -> tuple[pd.DataFrame, str | None]:
    import networkx as nx

    graph = nx.read_graphml(path)
    rows = [{"source": s, "target": t, "weight": 1.0, **data} for s, t, data in graph.edges(data=True)]
    frame = pd.DataFrame(rows, columns=None if rows else ["source", "target", "weight"])
    about = graph.graph.get("sccausal_network")
    if about is None:
        about = json.dumps({"genes": [str(n) for n in graph.nodes]})
    return frame.drop(columns="id", errors="ignore"), about


def _about(network: Network) -> str:
    regulators = None if network.regulators is network.genes else network.regulators
    return json.dumps({"genes": network.genes, "regulators": regulators, "metadata": network.metadata}, default=str)


def _ending(path: Path) -> str:
    if path.suffix.lower() not in ENDINGS:
        raise FileFormatError(f"A network file ends in {', '.join(ENDINGS)}; got {path.name!r}.")
    return path.suffix.lower()
