"""Scores of a ranked edge list against a reference network. Rows of a matrix are sources, columns targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sccausal._errors import InputDataError, SetupError, unknown_name
from sccausal.metrics._info import METRICS


class EdgeUniverse(NamedTuple):
    """Scores and truth of all candidate edges: regulators of the truth x genes of the truth, no self loops.

    Parameters
    ----------
    weight
        Signed weights (r, g), 0 where the network is silent.
    truth
        Signs of the true edges (r, g); 1 where the sign is unknown, 0 for none.
    candidate
        Boolean (r, g), false on self loops.
    regulators, genes
        Names of the r rows and the g columns.
    signed
        Whether the truth has signs.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> truth = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"]})
    >>> found = pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"], "weight": [0.9, 0.4]})
    >>> universe = scc.metrics.edge_universe(found, truth)
    >>> universe.labels.tolist(), universe.scores.tolist()
    ([True, False, False, True], [0.9, 0.0, 0.4, 0.0])
    """

    weight: np.ndarray  # (r, g) signed weights, 0 where the network is silent
    truth: np.ndarray  # (r, g) sign of the true edge; 1 where the sign is unknown; 0 for none
    candidate: np.ndarray  # (r, g) bool
    regulators: list[str]
    genes: list[str]
    signed: bool

    @property
    def scores(self) -> np.ndarray:
        """``|weight|`` of the candidate edges (n,)."""
        return np.abs(self.weight[self.candidate])

    @property
    def labels(self) -> np.ndarray:
        """Whether each candidate edge is true (n,)."""
        return self.truth[self.candidate] != 0


class EarlyPrecision(NamedTuple):
    """Early precision and the numbers needed to trust it.

    Parameters
    ----------
    epr
        Early precision over the density of true edges; 1 at chance.
    early_precision
        Share of true edges among those that were counted.
    n_taken
        Edges that were counted, ties with the k-th included.
    n_nonzero
        Candidate edges with a weight.
    k
        True edges.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> found = scc.metrics.early_precision(np.array([0.9, 0.0, 0.0, 0.0]), np.array([True, True, False, False]))
    >>> found.epr, found.n_taken, found.k
    (2.0, 1, 2)
    """

    epr: float
    early_precision: float
    n_taken: int  # edges counted, ties at the k-th weight included
    n_nonzero: int  # candidate edges with a weight other than 0
    k: int  # number of true edges


def edge_universe(
    network: Any, truth: Any, *, regulators: Sequence[str] | None = None, genes: Sequence[str] | None = None
) -> EdgeUniverse:
    """Lay predicted and true edges over the same candidates.

    Parameters
    ----------
    network
        ``grn.Network``, an edge table with ``source, target, weight`` or a square frame (rows sources).
    truth
        The same, or a table with ``source, target`` and optionally ``sign`` (or a signed ``weight``).
    regulators
        Candidate sources; default: sources of the truth that the network knows.
    genes
        Candidate targets; default: all genes of the truth that the network knows.

    Raises
    ------
    sccausal._errors.InputDataError
        No true edge, or no false one, is left among the candidates.
    sccausal._errors.UnknownNameError
        ``regulators`` or ``genes`` names a gene the truth does not have.

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> truth = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"]})
    >>> found = pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"], "weight": [0.9, 0.4]})
    >>> universe = scc.metrics.edge_universe(found, truth)
    >>> universe.regulators, universe.genes, universe.scores.size
    (['A', 'B'], ['A', 'B', 'C'], 4)
    """
    predicted, known = _edges(network, "network")
    true, true_genes = _edges(truth, "truth")
    if isinstance(network, pd.DataFrame) and "source" in network.columns:
        known = known | true_genes  # a bare edge list does not say which genes it left out: all are candidates
    true = true[true["source"] != true["target"]]
    rows = sorted(set(true["source"])) if regulators is None else _checked(regulators, true_genes, "regulator")
    columns = (
        sorted(set(true["source"]) | set(true["target"])) if genes is None else _checked(genes, true_genes, "gene")
    )
    rows, columns = [r for r in rows if r in known], [c for c in columns if c in known]
    weight = _matrix(predicted, rows, columns)
    signs = _matrix(true.assign(weight=np.where(true["weight"] == 0, 0.0, np.sign(true["weight"]))), rows, columns)
    candidate = np.asarray(rows, dtype=object)[:, None] != np.asarray(columns, dtype=object)[None, :]
    n_true, n_all = int((signs[candidate] != 0).sum()) if candidate.size else 0, int(candidate.sum())
    if n_true == 0 or n_true == n_all:
        raise InputDataError(
            f"{n_true} of {n_all} candidate edges are true; scores need both true and false ones. "
            f"The truth has {len(true)} edges over {len(true_genes)} genes, of which the network knows {len(columns)}."
        )
    return EdgeUniverse(weight, signs, candidate, rows, columns, bool((true["weight"] < 0).any()))


def early_precision(scores: np.ndarray, labels: np.ndarray) -> EarlyPrecision:
    """Precision among the top-k edges over the density of true edges, k the number of true edges.

    All edges tied with the k-th weight are counted, so the order of ties cannot help. If fewer than k edges have a
    weight, only those are counted: a network of few edges can then look precise, which ``n_taken`` shows (read it
    beside ``k``). A network of k or more edges has no such freedom. Source: :cite:p:`Pratapa2020`.

    Parameters
    ----------
    scores
        Strength of each candidate edge (n,), 0 for none.
    labels
        Whether it is true (n,).

    Returns
    -------
    EarlyPrecision. ``epr`` is 1 at chance; higher is better.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> labels = np.array([True, True, False, False])
    >>> scc.metrics.early_precision(np.array([0.9, 0.1, 0.5, 0.0]), labels).epr
    1.0
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    k, nonzero = int(labels.sum()), int((scores > 0).sum())
    if nonzero == 0:
        return EarlyPrecision(0.0, 0.0, 0, 0, k)
    if nonzero <= k:
        taken = scores > 0
    else:
        taken = scores >= np.partition(scores, -k)[-k]
    precision = float(labels[taken].mean())
    return EarlyPrecision(precision / float(labels.mean()), precision, int(taken.sum()), nonzero, k)


def filled_early_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """EPR when a network with fewer than k edges is filled up to k with edges at chance.

    The correction for lists that are too short: the missing places hold, in expectation, the density of true edges
    among the edges without a weight. Equal to :func:`early_precision` when k or more edges have a weight.

    Parameters
    ----------
    scores, labels
        As for :func:`early_precision`, (n,) each.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> labels = np.array([True, True, False, False])
    >>> scores = np.array([0.9, 0.0, 0.0, 0.0])  # one edge given, the second place filled at chance
    >>> round(scc.metrics.filled_early_precision(scores, labels), 2)
    1.33
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    found = early_precision(scores, labels)
    missing = found.k - found.n_taken
    if missing <= 0:
        return found.epr
    rest = labels[scores <= 0]
    hits = found.early_precision * found.n_taken + missing * (float(rest.mean()) if rest.size else 0.0)
    return hits / found.k / float(labels.mean())


def auprc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision; ties form one step.

    Parameters
    ----------
    scores, labels
        As for :func:`early_precision`.

    Returns
    -------
    Area in 0..1, higher is better; the density of true edges at chance.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.auprc(np.array([0.9, 0.5, 0.1]), np.array([True, False, False]))
    1.0
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(np.asarray(labels, dtype=bool)[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)  # last member of each tie
    recall = hits[last] / hits[-1]
    precision = hits[last] / (last + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a true edge outranks a false one, ties counting half; 0.5 at chance, higher is better.

    Parameters
    ----------
    scores, labels
        As for :func:`early_precision`, (n,) each.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> scc.metrics.auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    from scipy.stats import rankdata

    labels = np.asarray(labels, dtype=bool)
    n_true, n_false = int(labels.sum()), int((~labels).sum())
    if not n_true or not n_false:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def direction_accuracy(weight: np.ndarray, truth: np.ndarray) -> float:
    """Share of one-way true edges whose weight outweighs the opposite one.

    Parameters
    ----------
    weight, truth
        Square matrices (m, m), rows sources. Only pairs with exactly one true direction count; equal weights in both
        directions count half, so a symmetric matrix scores 0.5.

    Returns
    -------
    Share in 0..1 (NaN without a one-way edge), higher is better. Means nothing where only one direction is a
    parameter of the model.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.array([[0, 1], [0, 0]])  # the first gene acts on the second
    >>> scc.metrics.direction_accuracy(np.array([[0.0, 0.8], [0.1, 0.0]]), truth)
    1.0
    """
    strength, edge = np.abs(np.asarray(weight, dtype=np.float64)), np.asarray(truth) != 0
    if strength.shape != edge.shape or strength.shape[0] != strength.shape[1]:
        raise SetupError(f"Direction needs two square matrices; got {strength.shape} and {edge.shape}.")
    one_way = edge & ~edge.T
    np.fill_diagonal(one_way, False)
    if not one_way.any():
        return float("nan")
    gap = strength[one_way] - strength.T[one_way]
    return float(np.mean((gap > 0) + 0.5 * (gap == 0)))


def shd(estimate: np.ndarray, truth: np.ndarray) -> int:
    """Structural Hamming distance between two directed graphs: additions, deletions and reversals, each 1.

    Parameters
    ----------
    estimate, truth
        Square matrices (m, m), rows sources; nonzero means edge. The diagonal is ignored. A reversed edge counts once.
        Source: :cite:p:`Tsamardinos2006`.

    Returns
    -------
    Number of edges to change, lower is better.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    >>> scc.metrics.shd(truth.T, truth)  # both edges are turned
    2
    """
    a, b = np.asarray(estimate) != 0, np.asarray(truth) != 0
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise SetupError(f"SHD needs two square matrices of one size; got {a.shape} and {b.shape}.")
    differs = a != b
    upper = np.triu_indices(len(a), k=1)
    return int((differs | differs.T)[upper].sum())


def graph_scores(
    network: Any,
    truth: Any,
    *,
    regulators: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    n_null: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a network against a reference, beside two nulls and with the number of edges that were counted.

    Candidates are the regulators of the truth x the genes of the truth without self loops, as in
    :cite:p:`Pratapa2020`.

    Parameters
    ----------
    network, truth, regulators, genes
        As for :func:`edge_universe`. If the truth has negative weights or signs, the signed scores are added.
    n_null
        Draws of each null; 0 leaves the nulls out. ``null_shuffled``: the weights of each target are permuted over the
        sources (what remains is which genes are targets). ``null_degree``: an edge is scored by the out-strength of its
        source times the in-strength of its target (what node degree alone explains; one deterministic value).
    seed
        Seed of the permutations.

    Returns
    -------
    DataFrame with ``metric, value, direction, unit, null_shuffled, null_degree, n_edges_taken, n_edges_nonzero,
    n_edges_true, n_candidates``. ``epr`` fills networks of fewer than k edges at chance
    (:func:`filled_early_precision`), so a short list cannot fake it.

    Raises
    ------
    As :func:`edge_universe`.

    Examples
    --------
    >>> import numpy as np
    >>> import sccausal as scc
    >>> truth = np.triu(np.ones((5, 5)), 1)  # rows are sources
    >>> genes = list("ABCDE")
    >>> network = scc.grn.Network.from_matrix(truth + 0.1 * np.tril(truth.T, -1), genes)
    >>> table = scc.metrics.graph_scores(network, scc.grn.Network.from_matrix(truth, genes))
    >>> table.set_index("metric").loc["auroc", ["value", "null_degree"]].astype(float).round(2).to_dict()
    {'value': 1.0, 'null_degree': 0.88}
    """
    universe = edge_universe(network, truth, regulators=regulators, genes=genes)
    values = _ranking_scores(universe.weight, universe)
    taken = early_precision(universe.scores, universe.labels)
    table = pd.DataFrame(
        [(m, v, METRICS[m].direction, METRICS[m].unit) for m, v in values.items()],
        columns=["metric", "value", "direction", "unit"],
    )
    if n_null:
        rng = np.random.default_rng(seed)
        draws = [_ranking_scores(shuffled_null(universe, rng), universe) for _ in range(n_null)]
        degree = _ranking_scores(degree_null(universe), universe)
        table["null_shuffled"] = [float(np.mean([d[m] for d in draws])) for m in values]
        table["null_degree"] = [degree[m] if np.isfinite(values[m]) else np.nan for m in values]
    table["n_edges_taken"] = taken.n_taken
    table["n_edges_nonzero"] = taken.n_nonzero
    table["n_edges_true"] = taken.k
    table["n_candidates"] = int(universe.candidate.sum())
    return table


def shuffled_null(universe: EdgeUniverse, rng: np.random.Generator) -> np.ndarray:
    """Weights of each target permuted over its candidate sources (r, g).

    Parameters
    ----------
    universe
        Candidate edges with their weights (r, g).
    rng
        Source of the permutation.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> truth = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"]})
    >>> found = pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"], "weight": [0.9, 0.4]})
    >>> universe = scc.metrics.edge_universe(found, truth)
    >>> scc.metrics.shuffled_null(universe, np.random.default_rng(0)).shape  # regulators x genes
    (2, 3)
    """
    out = np.zeros_like(universe.weight)
    for j in range(out.shape[1]):
        rows = np.flatnonzero(universe.candidate[:, j])
        out[rows, j] = rng.permutation(universe.weight[rows, j])
    return out


def degree_null(universe: EdgeUniverse) -> np.ndarray:
    """Edge scores from node strength alone (r, g): out-strength of the source x in-strength of the target.

    Parameters
    ----------
    universe
        Candidate edges with their weights (r, g).

    Examples
    --------
    >>> import pandas as pd
    >>> import sccausal as scc
    >>> truth = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"]})
    >>> found = pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"], "weight": [0.9, 0.4]})
    >>> universe = scc.metrics.edge_universe(found, truth)
    >>> scc.metrics.degree_null(universe).shape  # regulators x genes
    (2, 3)
    """
    strength = np.abs(universe.weight) * universe.candidate
    out, into = strength.sum(axis=1), strength.sum(axis=0)
    # the edge's own weight must not speak for itself
    return (out[:, None] - strength) * (into[None, :] - strength)


def _ranking_scores(weight: np.ndarray, universe: EdgeUniverse) -> dict[str, float]:
    scores, labels = np.abs(weight[universe.candidate]), universe.labels
    density = float(labels.mean())
    area = auprc(scores, labels)
    early = early_precision(scores, labels)
    values = {
        "epr": filled_early_precision(scores, labels),
        "early_precision": early.early_precision,
        "auprc": area,
        "auprc_ratio": area / density,
        "auroc": auroc(scores, labels),
        "direction_accuracy": _universe_direction(weight, universe),
    }
    if universe.signed:
        values |= _signed_scores(weight, universe)
    return values


def _universe_direction(weight: np.ndarray, universe: EdgeUniverse) -> float:
    both = [g for g in universe.genes if g in set(universe.regulators)]
    rows = [universe.regulators.index(g) for g in both]
    columns = [universe.genes.index(g) for g in both]
    block = np.ix_(rows, columns)
    return direction_accuracy(weight[block], universe.truth[block]) if both else float("nan")


def _signed_scores(weight: np.ndarray, universe: EdgeUniverse) -> dict[str, float]:
    """EPR where an edge of the wrong sign is a miss, and the share of right signs among true edges with a weight."""
    signs, truth = np.sign(weight[universe.candidate]), universe.truth[universe.candidate]
    scores, labels = np.abs(weight[universe.candidate]), universe.labels
    early = early_precision(scores, labels)
    if early.n_nonzero == 0:
        return {"signed_epr": 0.0, "sign_accuracy": float("nan")}
    cut = np.partition(scores, -early.k)[-early.k] if early.n_nonzero > early.k else np.nextafter(0, 1)
    taken = scores >= cut
    right = taken & labels & (signs == truth)
    seen = labels & (scores > 0)
    accuracy = float(np.mean(signs[seen] == truth[seen])) if seen.any() else float("nan")
    return {"signed_epr": float(right.sum() / max(taken.sum(), early.k) / labels.mean()), "sign_accuracy": accuracy}


def _checked(names: Sequence[str], known: set[str], kind: str) -> list[str]:
    chosen = [str(n) for n in names]
    for name in chosen:
        if name not in known:
            raise unknown_name(kind, name, sorted(known), "the true network")
    return list(dict.fromkeys(chosen))


def _edges(network: Any, what: str) -> tuple[pd.DataFrame, set[str]]:
    """Edge table (source, target, weight) and all known genes."""
    if hasattr(network, "to_frame") and hasattr(network, "genes"):
        return network.to_frame()[["source", "target", "weight"]], set(map(str, network.genes))
    if not isinstance(network, pd.DataFrame):
        raise SetupError(f"The {what} must be a Network, an edge table or a square frame; got {type(network)}.")
    if {"source", "target"} <= set(network.columns):
        return _edge_table(network, what)
    if list(map(str, network.index)) != list(map(str, network.columns)):
        raise SetupError(f"The {what} needs columns source and target, or equal row and column names (rows sources).")
    values = network.to_numpy(dtype=np.float64)
    _finite(values, what)
    i, j = np.nonzero(values)
    names = np.asarray([str(c) for c in network.columns], dtype=object)
    return pd.DataFrame({"source": names[i], "target": names[j], "weight": values[i, j]}), set(names)


def _edge_table(frame: pd.DataFrame, what: str) -> tuple[pd.DataFrame, set[str]]:
    table = pd.DataFrame({"source": frame["source"].astype(str), "target": frame["target"].astype(str)})
    column = next((c for c in ("weight", "sign") if c in frame.columns), None)
    if column is None:
        table["weight"] = 1.0
    else:
        sign = frame[column].map({"+": 1.0, "-": -1.0}) if frame[column].dtype == object else frame[column]
        table["weight"] = pd.to_numeric(sign, errors="coerce").to_numpy(dtype=np.float64)
        _finite(table["weight"].to_numpy(), what)
    table = table.drop_duplicates(["source", "target"])
    return table, set(table["source"]) | set(table["target"])


def _finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise InputDataError(f"The {what} has weights that are not finite numbers.")


def _matrix(edges: pd.DataFrame, rows: list[str], columns: list[str]) -> np.ndarray:
    out = np.zeros((len(rows), len(columns)))
    row_at, column_at = {g: i for i, g in enumerate(rows)}, {g: i for i, g in enumerate(columns)}
    i, j = edges["source"].map(row_at), edges["target"].map(column_at)
    held = (i.notna() & j.notna()).to_numpy()
    out[i[held].astype(int), j[held].astype(int)] = edges["weight"].to_numpy()[held]
    return out
