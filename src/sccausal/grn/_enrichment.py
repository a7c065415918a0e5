"""What communities are about: gene sets over-represented among their regulators and targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sccausal._errors import FileFormatError, InputDataError, SetupError
from sccausal.grn._communities import Communities
from sccausal.grn._network import Network

GeneSets = Mapping[str, Iterable[str]] | str | Path


def read_gene_sets(source: GeneSets) -> dict[str, list[str]]:
    """Gene sets by name.

    Parameters
    ----------
    source
        A dictionary, the path of a GMT file (``.gmt``, ``.gmt.gz``), or the name of an Enrichr library
        (``"GO_Biological_Process_2023"``), which gseapy :cite:p:`Fang2023` loads from the internet.

    Returns
    -------
    dict from the name of a set to its genes, each once.

    Raises
    ------
    sccausal._errors.FileFormatError
        The file holds no gene sets.
    FileNotFoundError
        There is no such file.
    ImportError
        A library was named and gseapy is not installed.

    Examples
    --------
    >>> import sccausal as scc
    >>> scc.grn.read_gene_sets({"stress": ["ATF4", "DDIT3", "ATF4"]})
    {'stress': ['ATF4', 'DDIT3']}
    """
    if isinstance(source, Mapping):
        sets = {str(k): list(dict.fromkeys(map(str, v))) for k, v in source.items()}
    elif str(source).lower().endswith((".gmt", ".gmt.gz")):
        sets = _read_gmt(Path(source))
    else:
        sets = {str(k): list(dict.fromkeys(map(str, v))) for k, v in _gseapy().get_library(str(source)).items()}
    if not any(sets.values()):
        raise FileFormatError(f"{source!r} holds no gene sets." if not isinstance(source, Mapping) else "No gene sets.")
    return sets


def _read_gmt(path: Path) -> dict[str, list[str]]:
    import gzip

    if not path.is_file():
        raise FileNotFoundError(f"There is no gene set file at {path}.")
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    sets: dict[str, list[str]] = {}
    try:
        with opened(path, "rt", encoding="utf-8") as handle:
            for line in handle:
                fields = line.rstrip("\r\n").split("\t")
                if len(fields) > 2:
                    # Enrichr writes "GENE,weight"
                    genes = [f.split(",")[0].strip() for f in fields[2:]]
                    sets[fields[0]] = list(dict.fromkeys(g for g in genes if g))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise FileFormatError(f"{path} cannot be read as a GMT file ({error}).") from error
    return sets


def over_representation(
    communities: Communities | Mapping[str, Sequence[str]],
    gene_sets: GeneSets,
    *,
    network: Network | None = None,
    background: Sequence[str] | None = None,
    fdr: float = 0.05,
    min_size: int = 5,
    max_size: int = 500,
    background_share: float = 0.5,
) -> pd.DataFrame:
    r"""Gene sets over-represented in each community (hypergeometric test, by gseapy :cite:p:`Fang2023`).

    Parameters
    ----------
    communities
        Communities, or sets of genes by name.
    gene_sets
        As for :func:`read_gene_sets`.
    network
        Network whose targets of a community's members are counted with them; ``None`` looks at the members alone.
    background
        Genes that could have been found. Default: the genes of the network, else of all communities. Without a fitting
        background, all regulators are "enriched for transcription".
    fdr
        False discovery rate within a community (Benjamini and Hochberg).
    min_size, max_size
        Sets with fewer or more genes of the background are left out.
    background_share
        Terms enriched in at least this share of the communities (and in two) are background of the data set rather than
        the mark of a community.

    Returns
    -------
    DataFrame, one row per community and set that share a gene: ``community``, ``term``, ``overlap`` (shared genes),
    ``n_term``, ``n_community`` (both within the background), ``odds_ratio``, ``p_value``, ``q_value``, ``enriched``,
    ``n_communities`` (with the term enriched), ``is_background``, ``genes`` (``;`` between them); by community and
    p-value.

    Raises
    ------
    sccausal._errors.InputDataError
        No gene set has ``min_size`` genes of the background, or no community a gene of it.
    sccausal._errors.SetupError
        A setting is out of range.
    ImportError
        gseapy is not installed.

    Examples
    --------
    >>> import sccausal as scc
    >>> genes = [f"g{i}" for i in range(40)]
    >>> sets = {"pathway": genes[:6], "other": genes[20:30]}
    >>> table = scc.grn.over_representation({"C1": genes[:8]}, sets, background=genes)
    >>> table[["community", "term", "overlap", "enriched"]]
      community     term  overlap  enriched
    0        C1  pathway        6      True
    """
    if not 0 < fdr < 1 or not 0 < background_share <= 1 or min_size < 1 or max_size < min_size:
        raise SetupError("fdr lies in (0, 1), background_share in (0, 1], and 1 <= min_size <= max_size.")
    members = communities.members() if isinstance(communities, Communities) else communities
    lists = {str(k): _with_targets([str(g) for g in v], network) for k, v in members.items()}
    universe = _universe(lists, network, background)
    terms = {
        name: held
        for name, genes in read_gene_sets(gene_sets).items()
        if min_size <= len(held := [g for g in genes if g in universe]) <= max_size
    }
    if not terms:
        raise InputDataError(
            f"No gene set has {min_size} to {max_size} of the {len(universe)} background genes "
            f"({sorted(universe)[:3]}); check organism and kind of gene name."
        )
    tables = []
    for name, genes in lists.items():
        held = sorted(set(genes) & universe)
        if not held:
            raise InputDataError(f"No gene of community {name!r} is in the background ({genes[:3]}).")
        if any(set(held) & set(term) for term in terms.values()):  # gseapy calls it an error otherwise
            tables.append(_enriched_sets(name, held, terms, universe))
    if not tables:
        raise InputDataError("No community shares a gene with any of the gene sets; check organism and gene names.")
    table = pd.concat(tables, ignore_index=True)
    table["enriched"] = table["q_value"] <= fdr
    found_in = table[table["enriched"]].groupby("term")["community"].nunique()
    table["n_communities"] = table["term"].map(found_in).fillna(0).astype(int)
    table["is_background"] = table["n_communities"] >= max(2, int(np.ceil(background_share * len(lists))))
    columns = ["community", "term", "overlap", "n_term", "n_community", "odds_ratio", "p_value", "q_value", "enriched",
               "n_communities", "is_background", "genes"]  # fmt: skip
    order = {name: k for k, name in enumerate(lists)}
    table["_place"] = table["community"].map(order)
    return table.sort_values(["_place", "p_value", "term"], kind="stable", ignore_index=True)[columns]


def _with_targets(members: list[str], network: Network | None) -> list[str]:
    if network is None:
        return members
    frame = network.to_frame()
    targets = frame.loc[frame["source"].isin(members), "target"]
    return list(dict.fromkeys([*members, *targets]))


def _universe(
    lists: Mapping[str, Sequence[str]], network: Network | None, background: Sequence[str] | None
) -> set[str]:
    if background is not None:
        return {str(g) for g in background}
    return set(network.genes) if network is not None else {g for held in lists.values() for g in held}


def _enriched_sets(
    name: str, genes: Sequence[str], terms: Mapping[str, Sequence[str]], universe: set[str]
) -> pd.DataFrame:
    found = _gseapy().enrich(
        gene_list=list(genes), gene_sets=dict(terms), background=sorted(universe), outdir=None, cutoff=1.0, no_plot=True
    )
    raw = found.results
    counts = raw["Overlap"].str.split("/", expand=True).astype(int)
    return pd.DataFrame(
        {
            "community": name,
            "term": raw["Term"].astype(str),
            "overlap": counts[0],
            "n_term": counts[1],
            "n_community": len(genes),
            "odds_ratio": raw["Odds Ratio"].astype(float),
            "p_value": raw["P-value"].astype(float),
            "q_value": raw["Adjusted P-value"].astype(float),
            "genes": raw["Genes"].astype(str),
        }
    )


def _gseapy() -> Any:
    try:
        import gseapy
    except ModuleNotFoundError as error:
        raise ImportError('Over-representation needs gseapy: pip install "sccausal[enrichment]"') from error
    return gseapy
